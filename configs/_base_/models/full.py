# All of CLIP trains (Table 1).
_base_ = 'zero_shot.py'

model = dict(visual=dict(tuning='full'), text=dict(tuning='full'))
