_base_ = [
    '_base_/models/lora.py',
    '_base_/datasets/msrvtt_9k.py',
    '_base_/schedules/adamw_5e.py',
    '_base_/runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=1e-4))
