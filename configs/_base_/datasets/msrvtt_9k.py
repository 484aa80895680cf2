# MSR-VTT: trained on 9,000 videos with about 20 captions each, tested on the
# 1k-A split. tools/data/msrvtt.py makes the annotation files.
_base_ = '_video_text.py'

data_root = '{{$DATA_ROOT:data/msrvtt}}'

train_dataloader = dict(dataset=dict(ann_file='train_9k.json', data_root=data_root))
val_dataloader = dict(dataset=dict(ann_file='test_1k.json', data_root=data_root))
test_dataloader = val_dataloader
