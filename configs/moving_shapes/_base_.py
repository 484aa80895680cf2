# What all configs of MovingShapes share. The CLIP has 6 layers, of which a
# VoP^F method has the last 3 attend over the whole video.
_base_ = ['../_base_/datasets/moving_shapes.py', '../_base_/runtime.py']

clip = dict(
    name='configs/moving_shapes/moving-shapes-clip.json',
    pretrained='data/moving_shapes/clip.pt')

# 96 training clips: 3 steps an epoch, 288 in all.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=96, val_interval=24)
default_hooks = dict(
    logger=dict(interval=3), checkpoint=dict(interval=24))
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.2))
param_scheduler = dict(
    type='CosineAnnealingLR',
    eta_min=0,
    by_epoch=True,
    convert_to_iter_based=True)
auto_scale_lr = dict(enable=False, base_batch_size=32)
