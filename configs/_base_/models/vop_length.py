# VoP with prompts of another length (Fig. 4): LENGTH tokens in each layer of
# both encoders.
_base_ = 'vop.py'

prompts = [dict(type='vop.LearnedPrompt', length=int('{{$LENGTH:8}}'))]
model = dict(visual=dict(prompts=prompts), text=dict(prompts=prompts))
