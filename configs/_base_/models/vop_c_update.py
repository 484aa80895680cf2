# VoP whose context modelling module updates the [CLS] tokens instead of making
# prompts (Table 4).
_base_ = 'vop.py'

model = dict(visual=dict(cls_update=dict(type='vop.ContextUpdate')))
