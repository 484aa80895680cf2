# VoP with prompts in layers i to j alone (Fig. 4): DEPTH=i-j.
_base_ = 'vop.py'

first, last = map(int, '{{$DEPTH:1-12}}'.split('-'))
prompts = [dict(type='vop.LearnedPrompt', length=8, layers=(first, last))]
model = dict(visual=dict(prompts=prompts), text=dict(prompts=prompts))
