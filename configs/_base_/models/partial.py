# The last layer of each encoder trains (Table 1).
_base_ = 'zero_shot.py'

model = dict(visual=dict(tuning='partial'), text=dict(tuning='partial'))
