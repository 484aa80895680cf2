_base_ = ['../_base_/models/vop_f.py', '_base_.py']

model = dict(clip={{_base_.clip}}, visual=dict(num_frames={{_base_.num_frames}}, temporal_layers=2))
