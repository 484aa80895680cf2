# VoP, which is blind to the order of frames, with MMAction2's
# TransformerAdapter, which sees it.
_base_ = '../moving_shapes/vop.py'

model = dict(
    adapter=dict(
        type='TransformerAdapter',
        num_segs=8,
        transformer_width=64,
        transformer_heads=2,
        transformer_layers=2,
    )
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(adapter=dict(lr_mult=0.1))))
