# VoP on MMAction2's CLIP4Clip: its annotation files, VideoTextDataset,
# pipelines and schedule, with our model, learning rate and metric.
#
# Its test set has an item for each caption, and each item counts as a video:
# right for MSR-VTT's 1k-A split with one caption per video. Where a video has
# several, test with type='vop.VideoTextDataset' and 'vop.CLIPTokenize'.
#
# MMAction2's CLIPTokenize needs OpenAI's package `clip`:
# pip install git+https://github.com/openai/CLIP.git
_base_ = 'clip4clip_with_vop_metric.py'

model = dict(
    _delete_=True,
    type='vop.RetrievalRecognizer',
    clip=dict(name='ViT-B-32-quickgelu', pretrained='openai'),
    visual=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]),
    text=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.2))
