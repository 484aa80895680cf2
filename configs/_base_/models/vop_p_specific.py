# VoP^P with SPECIFIC (0 to 8) of the 8 visual tokens made video-specific
# (Fig. 5); with 0 it is VoP.
_base_ = 'vop_text.py'

specific = int('{{$SPECIFIC:4}}')
lengths = dict(LearnedPrompt=8 - specific, PositionPrompt=specific)
model = dict(
    visual=dict(
        prompts=[
            dict(type=f'vop.{kind}', length=length) for kind, length in lengths.items() if length
        ]
    )
)
