# VoP with MMAction2's mean of frame embeddings, which are not normalised.
_base_ = '../vop_msrvtt.py'

model = dict(adapter=dict(type='SimpleMeanAdapter'))
