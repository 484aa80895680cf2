# MovingShapes, which tools/data/moving_shapes.py makes. A flip would change
# left and right, so it is not augmented but by where frames are sampled.
_base_ = '../_base_/datasets/_video_text.py'

data_root = 'data/moving_shapes'
num_frames = 8

train_pipeline = [
    dict(type='vop.DecordKeep'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1),
    dict(type='ArrayDecode'),
    dict(type='Resize', scale=(32, 32), interpolation='bicubic'),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(type='PackActionInputs', collect_keys=('imgs', 'text'), meta_keys=('video_id',)),
]
test_pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=num_frames, num_clips=1, test_mode=True),
    dict(type='DecordDecode'),
    *train_pipeline[3:],
]

# The clips fit into memory, and are of our own making: read in this process,
# they take less time than handing them over from another would.
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(ann_file='train.json', data_root=data_root, pipeline=train_pipeline, timeout=None),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(ann_file='test.json', data_root=data_root, pipeline=test_pipeline, timeout=None),
)
test_dataloader = val_dataloader
