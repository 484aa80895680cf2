# The same with CLIP as it is: tools/test.py needs no checkpoint.
_base_ = 'vop_captions_kinetics400.py'

model = dict(backbone=dict(prompts=[], temporal_layers=0), cls_head=dict(text=dict(prompts=[])))
