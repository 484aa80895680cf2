# MovingShapes, which tools/data/moving_shapes.py makes. A flip would change
# left and right, so it is not augmented but by where frames are sampled.
data_root = 'data/moving_shapes'
data_prefix = dict(video='videos')
num_frames = 8

train_pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(32, 32), interpolation='bicubic'),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(
        type='PackActionInputs',
        collect_keys=('imgs', 'text'),
        meta_keys=('video_id', ))
]
test_pipeline = [dict(step) for step in train_pipeline]
test_pipeline[1]['test_mode'] = True

# 32 pairs a step in all, shared among the processes of the run.
batch_size = max(1, 32 // int('{{$WORLD_SIZE:1}}'))

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='vop.ReproducibleSampler', shuffle=True),
    dataset=dict(
        type='vop.VideoTextDataset',
        ann_file='train.json',
        data_root=data_root,
        data_prefix=data_prefix,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='vop.VideoTextDataset',
        ann_file='test.json',
        data_root=data_root,
        data_prefix=data_prefix,
        pipeline=test_pipeline,
        test_mode=True))
test_dataloader = val_dataloader

val_evaluator = dict(type='vop.RetrievalMetric')
test_evaluator = val_evaluator
