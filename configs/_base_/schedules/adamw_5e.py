# The paper's: AdamW, weight decay 0.2, cosine decay over 5 epochs, batch 32
# in total. It searches the learning rate of each method in [1e-6, 1e-2].
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.2))

param_scheduler = dict(
    type='CosineAnnealingLR', eta_min=0, by_epoch=True, convert_to_iter_based=True
)

# --auto-scale-lr scales the learning rate by (GPUs x batch_size) / 32.
auto_scale_lr = dict(enable=False, base_batch_size=32)
