# Adapter^FFN: a bottleneck in parallel to each FFN (Table 1).
_base_ = 'zero_shot.py'

adapters = [dict(type='vop.ParallelAdapter', parallel_to='ffn', hidden=64)]
model = dict(visual=dict(adapters=adapters), text=dict(adapters=adapters))
