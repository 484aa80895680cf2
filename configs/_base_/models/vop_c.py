# VoP^C: 4 of the 8 visual tokens are made from the [CLS] tokens of all frames
# (Sec. 3.3.2).
_base_ = 'vop_text.py'

model = dict(
    visual=dict(
        prompts=[
            dict(type='vop.LearnedPrompt', length=4),
            dict(type='vop.ContextPrompt', length=4, cmm='bilstm'),
        ]
    )
)
