# The 12 directions of MovingShapes as classes, read by MMAction2's
# VideoDataset. A model that is blind to the order of frames gets 50 % at
# best, as a clip and its reverse have the same frames.
_base_ = '_kinetics400_.py'

data_root = 'data/moving_shapes'
clip = dict(name='configs/moving_shapes/moving-shapes-clip.json', pretrained=f'{data_root}/clip.pt')

train_pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=8, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(32, 32), interpolation='bicubic'),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename',)),
]
test_pipeline = [dict(step) for step in train_pipeline]
test_pipeline[1]['test_mode'] = True

train_dataloader = dict(
    num_workers=2,
    dataset=dict(
        ann_file='train_directions.txt',
        data_root=data_root,
        data_prefix=dict(video='videos'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        ann_file='test_directions.txt',
        data_root=data_root,
        data_prefix=dict(video='videos'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# 96 training clips: 3 steps an epoch.
train_cfg = dict(max_epochs=96, val_interval=24)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
default_hooks = dict(logger=dict(interval=3), checkpoint=dict(interval=24))
