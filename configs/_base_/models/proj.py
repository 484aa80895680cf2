# The projections into the joint space train (Table 1).
_base_ = 'zero_shot.py'

model = dict(visual=dict(tuning='proj'), text=dict(tuning='proj'))
