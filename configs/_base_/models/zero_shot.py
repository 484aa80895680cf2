# CLIP as it is; the methods of the paper add prompts to this.
model = dict(
    type='vop.RetrievalRecognizer',
    clip=dict(name='ViT-B-32-quickgelu', pretrained='openai'),
    visual=dict(type='vop.VideoEncoder', num_frames=12, prompts=[]),
    text=dict(type='vop.TextEncoder', prompts=[]),
)
