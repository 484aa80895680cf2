# MSR-VTT with the older training split of 7,010 videos.
_base_ = 'msrvtt_9k.py'

train_dataloader = dict(dataset=dict(ann_file='train_7k.json'))
