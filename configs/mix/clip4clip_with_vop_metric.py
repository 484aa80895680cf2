# MMAction2's CLIP4Clip as it is, with our metric: both directions, and ties
# counted as chance would. Each item of its test set counts as a video; see
# vop_on_clip4clip_data.py.
#
# MMAction2's CLIP4Clip needs OpenAI's package `clip`:
# pip install git+https://github.com/openai/CLIP.git
_base_ = [
    'mmaction::retrieval/clip4clip/'
    'clip4clip_vit-base-p32-res224-clip-pre_8xb16-u12-5e_msrvtt-9k-rgb.py'
]

custom_imports = dict(imports=['projects.vop'], allow_failed_imports=False)

val_evaluator = dict(type='vop.RetrievalMetric')
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(type='vop.CheckpointHook', save_best='t2v/R@1'))
