_base_ = ['../_base_/models/lora.py', '_base_.py']

model = dict(clip={{_base_.clip}}, visual=dict(num_frames={{_base_.num_frames}}))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
