# MSVD: 1,200 training, 100 validation and 670 test videos with about 40
# captions each. tools/data/msvd.py makes the annotation files.
_base_ = '_video_text.py'

data_root = '{{$DATA_ROOT:data/msvd}}'

train_dataloader = dict(dataset=dict(ann_file='train.json', data_root=data_root))
val_dataloader = dict(dataset=dict(ann_file='test.json', data_root=data_root))
test_dataloader = val_dataloader
