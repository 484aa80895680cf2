# VoP^F whose layers K_S + 1 to 12 attend over all frames (Fig. 6); with K_S=12
# it is VoP.
_base_ = 'vop.py'

model = dict(visual=dict(temporal_layers=12 - int('{{$K_S:8}}')))
