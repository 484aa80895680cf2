# VoP on MMAction2's CLIP4Clip: its annotation files, VideoTextDataset,
# pipelines and schedule, with our model, learning rate and metric.
#
# Its test set has an item for each caption, and each item counts as a video:
# right for MSR-VTT's 1k-A split with one caption a video. Where a video has
# several, test with type='vop.VideoTextDataset' and 'vop.CLIPTokenize'.
_base_ = [
    'mmaction::retrieval/clip4clip/'
    'clip4clip_vit-base-p32-res224-clip-pre_8xb16-u12-5e_msrvtt-9k-rgb.py'
]

# The second is a stand-in for OpenAI's package `clip`, if that is missing.
custom_imports = dict(
    imports=['projects.vop', 'projects.vop.openai_clip'],
    allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='vop.RetrievalRecognizer',
    clip=dict(name='ViT-B-32-quickgelu', pretrained='openai'),
    visual=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]),
    text=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]))
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.2))

val_evaluator = dict(type='vop.RetrievalMetric')
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='t2v/R@1', rule='greater'))
