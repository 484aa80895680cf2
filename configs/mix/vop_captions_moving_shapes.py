# The same with the directions as captions, through the prompted text tower.
_base_ = 'vop_recognizer_moving_shapes.py'

model = dict(
    cls_head=dict(
        _delete_=True,
        type='vop.CaptionHead',
        classes=f'{_base_.data_root}/directions.txt',
        templates=['a square moves {}', 'a cross moves {}'],
        clip=_base_.clip,
        text=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]),
    )
)
