# VoP^F+P as backbone of MMAction2's Recognizer3D, with its linear head. Any
# method of ../_base_/models/ can take its place.
_base_ = ['../_base_/models/vop_fp.py', '_kinetics400_.py']

model = dict(
    _delete_=True,
    type='Recognizer3D',
    backbone={
        **_base_.model.visual,
        'type': 'vop.VideoBackbone',
        'clip': _base_.model.clip,
        'num_frames': _base_.num_frames,
    },
    cls_head=dict(
        type='I3DHead', num_classes=400, in_channels=512, dropout_ratio=0.5, average_clips='prob'
    ),
    data_preprocessor=_base_.data_preprocessor,
)
