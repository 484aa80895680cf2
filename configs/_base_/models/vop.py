# VoP: the same 8 tokens for every frame (Sec. 3.2).
_base_ = 'vop_text.py'

model = dict(visual=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]))
