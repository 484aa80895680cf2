# All bias terms of CLIP train (Table 1).
_base_ = 'zero_shot.py'

model = dict(visual=dict(tuning='bias'), text=dict(tuning='bias'))
