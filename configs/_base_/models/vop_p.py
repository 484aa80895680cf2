# VoP^P: 4 of the 8 visual tokens belong to the frame's position (Sec. 3.3.1).
_base_ = 'vop_text.py'

model = dict(
    visual=dict(
        prompts=[
            dict(type='vop.LearnedPrompt', length=4),
            dict(type='vop.PositionPrompt', length=4),
        ]
    )
)
