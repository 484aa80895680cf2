# What the data sets share: how videos and captions become batches. A data set
# adds its data_root and annotation files; the videos lie in data_root/videos.
# The environment variable DATA_ROOT names another root, such as a copy that
# tools/data/compress_videos.py made.
data_prefix = dict(video='videos')
num_frames = 12

train_pipeline = [
    dict(type='DecordInit'),
    dict(type='vop.TimeWindow'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='RandomResizedCrop', area_range=(0.5, 1.0)),
    dict(type='Resize', scale=(224, 224), keep_ratio=False, interpolation='bicubic'),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(type='PackActionInputs', collect_keys=('imgs', 'text'), meta_keys=('video_id',)),
]
test_pipeline = [
    dict(type='DecordInit'),
    dict(type='vop.TimeWindow'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 224), interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(type='PackActionInputs', collect_keys=('imgs', 'text'), meta_keys=('video_id',)),
]

# The paper's 32 pairs a step in total, shared among the GPUs of the run (1, 2,
# 4, 8, 16 or 32 of them). The tools set WORLD_SIZE to what --launcher says.
batch_size = max(1, 32 // int('{{$WORLD_SIZE:1}}'))

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=8,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),  # stack frames in the workers
    sampler=dict(type='vop.ReproducibleSampler', shuffle=True),
    dataset=dict(type='vop.VideoTextDataset', data_prefix=data_prefix, pipeline=train_pipeline),
)
# As in the field, training is watched on the test split. Where there is a
# val.json, it is watched on that with
#   --cfg-options val_dataloader.dataset.ann_file=val.json
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='vop.VideoTextDataset', data_prefix=data_prefix, pipeline=test_pipeline, test_mode=True
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='vop.RetrievalMetric')
test_evaluator = val_evaluator
