# VoP^F+P with the classes as captions, through the prompted text tower. Put
# MMAction2's tools/data/kinetics/label_map_k400.txt into data/kinetics400/.
_base_ = 'vop_recognizer_kinetics400.py'

model = dict(
    cls_head=dict(
        _delete_=True,
        type='vop.CaptionHead',
        classes=f'{_base_.data_root}/label_map_k400.txt',
        templates=['a video of {}', 'a person {}', 'people {}'],
        clip=_base_.model.backbone.clip,
        text=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]),
    )
)
