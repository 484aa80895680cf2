# DiDeMo: the sentences of a video as one paragraph, for its first 30 s. 8,395
# training, 1,065 validation and 1,004 test videos. tools/data/didemo.py makes
# the annotation files.
_base_ = '_video_text.py'

data_root = '{{$DATA_ROOT:data/didemo}}'

train_dataloader = dict(dataset=dict(ann_file='train.json', data_root=data_root))
val_dataloader = dict(dataset=dict(ann_file='test.json', data_root=data_root))
test_dataloader = val_dataloader
