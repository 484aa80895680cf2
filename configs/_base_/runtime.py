custom_imports = dict(imports=['projects.vop'], allow_failed_imports=False)
default_scope = 'mmaction'

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, ignore_last=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # `published_keys` also leaves copies of the best and the last checkpoint
    # that hold the weights alone: half a megabyte for VoP at ViT-B/32.
    checkpoint=dict(
        type='vop.CheckpointHook',
        interval=1,
        save_best='t2v/R@1',
        published_keys=['meta', 'state_dict'],
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
visualizer = dict(type='ActionVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_level = 'INFO'
load_from = None
resume = False
# A fixed seed, so that a resumed run equals an uninterrupted one; --seed sets
# another.
randomness = dict(seed=0)
