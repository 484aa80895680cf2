# LoRA of queries and values (arXiv 2106.09685), which the paper does not have.
_base_ = 'zero_shot.py'

adapters = [dict(type='vop.LoRA', rank=8)]
model = dict(visual=dict(adapters=adapters), text=dict(adapters=adapters))
