# ActivityNet Captions: the sentences of a video as one paragraph. 10,009
# training videos, tested on the 4,917 of val1. tools/data/activitynet.py makes
# the annotation files.
_base_ = '_video_text.py'

data_root = '{{$DATA_ROOT:data/activitynet}}'

train_dataloader = dict(dataset=dict(ann_file='train.json', data_root=data_root))
val_dataloader = dict(dataset=dict(ann_file='test.json', data_root=data_root))
test_dataloader = val_dataloader
