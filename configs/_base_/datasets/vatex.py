# VATEX: 25,991 training, 1,500 validation and 1,500 test videos with 10
# English captions each. tools/data/vatex.py makes the annotation files.
_base_ = '_video_text.py'

data_root = '{{$DATA_ROOT:data/vatex}}'

train_dataloader = dict(dataset=dict(ann_file='train.json', data_root=data_root))
val_dataloader = dict(dataset=dict(ann_file='test.json', data_root=data_root))
test_dataloader = val_dataloader
