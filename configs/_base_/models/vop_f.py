# VoP^F: the last 4 layers attend over all frames at once (Sec. 3.3.3).
_base_ = 'vop.py'

model = dict(visual=dict(temporal_layers=4))
