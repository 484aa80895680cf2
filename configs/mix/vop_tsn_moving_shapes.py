# The same with Recognizer2D and TSNHead.
_base_ = 'vop_recognizer_moving_shapes.py'

model = dict(
    type='Recognizer2D', cls_head=dict(type='TSNHead'), data_preprocessor=dict(format_shape='NCHW')
)

train_pipeline = [dict(step) for step in _base_.train_pipeline]
train_pipeline[4]['input_format'] = 'NCHW'
test_pipeline = [dict(step) for step in _base_.test_pipeline]
test_pipeline[4]['input_format'] = 'NCHW'

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
