# VoP with MMAction2's TransformerAdapter over the frame embeddings, which
# sees their order. It starts from random weights and trains at a tenth of the
# prompts' learning rate; not tuned.
_base_ = '../vop_msrvtt.py'

model = dict(
    adapter=dict(
        type='TransformerAdapter',
        num_segs=12,
        transformer_width=512,
        transformer_heads=8,
        transformer_layers=4,
    )
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(adapter=dict(lr_mult=0.1))))
