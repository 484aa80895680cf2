# VoP^F+C: VoP^C in the layers that work within a frame, VoP^F above them.
_base_ = 'vop_text.py'

model = dict(
    visual=dict(
        temporal_layers=4,
        prompts=[
            dict(type='vop.LearnedPrompt', length=4, layers='frame'),
            dict(type='vop.ContextPrompt', length=4, cmm='bilstm', layers='frame'),
            dict(type='vop.LearnedPrompt', length=8, layers='video'),
        ],
    )
)
