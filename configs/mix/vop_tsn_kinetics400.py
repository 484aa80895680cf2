# MMAction2's own TSN config with VoP^F+P in place of ResNet-50: its data,
# Recognizer2D and TSNHead.
_base_ = [
    'mmaction::recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.py'
]

custom_imports = dict(imports=['projects.vop'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='vop.VideoBackbone',
        clip=dict(name='ViT-B-32-quickgelu', pretrained='openai'),
        num_frames=8,
        temporal_layers=4,
        prompts=[
            dict(type='vop.LearnedPrompt', length=4, layers='frame'),
            dict(type='vop.PositionPrompt', length=4, layers='frame'),
            dict(type='vop.LearnedPrompt', length=8, layers='video'),
        ],
    ),
    cls_head=dict(in_channels=512),
    data_preprocessor=dict(mean=[122.7709, 116.7460, 104.0937], std=[68.5005, 66.6322, 70.3232]),
)

# TSN is tested with 25 frames in ten crops, which are no whole videos of 8.
test_pipeline = _base_.val_pipeline
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

# Prompts train with AdamW. For 30 epochs; not tuned.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.2))
train_cfg = dict(max_epochs=30)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)]
