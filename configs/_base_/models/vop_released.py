# VoP as the authors' one released model computes it (ModelScope,
# damo/cv_vit-b32_retrieval_vop): 4 text prompts in front of the words and 4
# after them, and the mean of the frames is not normalised again.
# tools/convert_modelscope.py converts its checkpoint.
_base_ = 'vop_visual.py'

model = dict(
    text=dict(
        type='vop.ModelScopeTextEncoder',
        prompts=[
            dict(type='vop.LearnedPrompt', length=4),
            dict(type='vop.LearnedPrompt', length=4),
        ],
    ),
    normalize_video=False,
)
