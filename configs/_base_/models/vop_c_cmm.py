# VoP^C with another context modelling module (Table 3): CMM=transformer, lstm
# or bilstm.
_base_ = 'vop_text.py'

model = dict(
    visual=dict(
        prompts=[
            dict(type='vop.LearnedPrompt', length=4),
            dict(type='vop.ContextPrompt', length=4, cmm='{{$CMM:bilstm}}'),
        ]
    )
)
