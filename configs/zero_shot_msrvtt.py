_base_ = [
    '_base_/models/zero_shot.py',
    '_base_/datasets/msrvtt_9k.py',
    '_base_/schedules/adamw_5e.py',
    '_base_/runtime.py',
]
