# Kinetics-400 as MMAction2's own configs lay it out, read by its VideoDataset
# and scored by its AccMetric. DATA_ROOT names another root, such as a copy
# that tools/data/compress_videos.py made. What trains is what a config of
# this folder adds.
_base_ = ['../_base_/schedules/adamw_5e.py', '../_base_/runtime.py']

data_root = '{{$DATA_ROOT:data/kinetics400}}'
num_frames = 8

# MMAction2 normalises pixels in [0, 255]: these are CLIP's mean and standard
# deviation times 255.
data_preprocessor = dict(
    type='ActionDataPreprocessor',
    mean=[122.7709, 116.7460, 104.0937],
    std=[68.5005, 66.6322, 70.3232],
    format_shape='NCTHW',
)

train_pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='RandomResizedCrop', area_range=(0.5, 1.0)),
    dict(type='Resize', scale=(224, 224), keep_ratio=False, interpolation='bicubic'),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename',)),
]
test_pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 224), interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename',)),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='VideoDataset',
        ann_file='kinetics400_train_list_videos.txt',
        data_root=data_root,
        data_prefix=dict(video='videos_train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='VideoDataset',
        ann_file='kinetics400_val_list_videos.txt',
        data_root=data_root,
        data_prefix=dict(video='videos_val'),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator

# 8 GPUs with 32 videos each; not tuned.
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=256)
default_hooks = dict(logger=dict(interval=100), checkpoint=dict(save_best='acc/top1'))
