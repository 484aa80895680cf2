# MovingShapes, which tools/data/moving_shapes.py makes. A flip would change
# left and right, so it is not augmented but by where frames are sampled.
_base_ = '../_base_/datasets/_video_text.py'

data_root = 'data/moving_shapes'
num_frames = 8

train_pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(32, 32), interpolation='bicubic'),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(type='PackActionInputs', collect_keys=('imgs', 'text'), meta_keys=('video_id',)),
]
test_pipeline = [dict(step) for step in train_pipeline]
test_pipeline[1]['test_mode'] = True

train_dataloader = dict(
    num_workers=2, dataset=dict(ann_file='train.json', data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(
    num_workers=2, dataset=dict(ann_file='test.json', data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
