# LSMDC: clips of movies, mostly with one sentence each. The paper counts
# 109,673 training, 7,408 validation and 1,000 test clips. tools/data/lsmdc.py
# makes the annotation files.
_base_ = '_video_text.py'

data_root = '{{$DATA_ROOT:data/lsmdc}}'

train_dataloader = dict(dataset=dict(ann_file='train.json', data_root=data_root))
val_dataloader = dict(dataset=dict(ann_file='test.json', data_root=data_root))
test_dataloader = val_dataloader
