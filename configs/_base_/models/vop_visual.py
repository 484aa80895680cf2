# Visual prompts alone (Table 2).
_base_ = 'zero_shot.py'

model = dict(visual=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]))
