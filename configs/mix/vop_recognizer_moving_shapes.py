# VoP^F+P as backbone of Recognizer3D: in which direction does the shape move?
_base_ = ['../_base_/models/vop_fp.py', '_moving_shapes_.py']

model = dict(
    _delete_=True,
    type='Recognizer3D',
    backbone={
        **_base_.model.visual,
        'type': 'vop.VideoBackbone',
        'clip': _base_.clip,
        'num_frames': _base_.num_frames,
        'temporal_layers': 2,
    },
    cls_head=dict(
        type='I3DHead', num_classes=12, in_channels=64, dropout_ratio=0.5, average_clips='prob'
    ),
    data_preprocessor=_base_.data_preprocessor,
)
