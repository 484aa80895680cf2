# What all configs of MovingShapes share. The CLIP has 4 layers, of which a
# VoP^F method has the last 2 attend over the whole video.
_base_ = ['_data_.py', '../_base_/schedules/adamw_5e.py', '../_base_/runtime.py']

clip = dict(
    name='configs/moving_shapes/moving-shapes-clip.json', pretrained='data/moving_shapes/clip.pt'
)

# 96 training clips: 3 steps an epoch, 432 in total.
train_cfg = dict(max_epochs=144, val_interval=48)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
default_hooks = dict(logger=dict(interval=3), checkpoint=dict(interval=48))
