"""Small CLIPs of every kind that can be prompted."""

import json
from functools import partial

from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn

SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2.0)
ROPE = dict(use_rot_pos_emb=True, ref_feat_shape=(2, 2))
PE = dict(
    attn_type='rope',
    use_pre_transformer_norm=True,
    rope_grid_indexing='xy',
    attn_pool_num_heads=2,
    norm_layer=partial(nn.LayerNorm, eps=1e-5),
    **ROPE,
)


def stem(in_chans=3, **kwargs):
    backbone = ConvStem(channels=(12, 24, 48), stride=(4, 2, 1), kernel_size=(4, 2, 1), padding=0)
    return HybridEmbed(backbone, proj=False, **dict(kwargs, patch_size=1))


# As the models of timm that CLIPs of open_clip have, but small.
TRUNKS = dict(
    pe_core=partial(Eva, rope_grid_offset=1.0, **PE),
    pe_core_without_cls=partial(Eva, class_token=False, **PE),
    eva01=Eva,
    eva02=partial(
        Eva, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, **ROPE
    ),
    eva02_enormous=partial(Eva, use_post_norm=True),
    siglip=partial(VisionTransformer, class_token=False),
    mobileclip_b=partial(VisionTransformer, no_embed_class=True, embed_layer=stem),
    mobileclip2_l=partial(VisionTransformer, pre_norm=True),
    # Not of a CLIP yet, but of these blocks.
    scales_and_norms=partial(VisionTransformer, init_values=0.5, qk_norm=True),
    eva_scales_and_norms=partial(Eva, init_values=0.5, qk_norm=True, rope_rotate_half=True, **ROPE),
)
for name, trunk in TRUNKS.items():

    def create(pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir, *, trunk=trunk, **kw):
        model = trunk(**{**SMALL, **kw})
        model.default_cfg = {}
        return model

    create.__name__ = f'small_{name}'
    register_model(create)


def timm(name, pool, **kwargs):
    return dict(timm_model_name=f'small_{name}', timm_pool=pool, image_size=32, **kwargs)


CLIPA_VISION = dict(no_ln_pre=True, pool_type='avg', final_ln_after_pool=True)
VISION = dict(
    pe_core=timm('pe_core', 'map', timm_proj=None),
    pe_core_without_cls=timm('pe_core_without_cls', 'map', timm_proj=None),
    eva01=timm('eva01', 'token', timm_proj=None),
    eva02=timm('eva02', 'token', timm_proj=None),
    eva02_enormous=timm('eva02_enormous', 'token', timm_proj=None),
    siglip=timm('siglip', 'map', timm_proj='none'),
    mobileclip_b=timm('mobileclip_b', 'token', timm_proj=None),
    mobileclip2_l=timm('mobileclip2_l', 'token', timm_proj=None, timm_drop_path=0.1),
    scales_and_norms=timm('scales_and_norms', 'avg', timm_proj='linear'),
    eva_scales_and_norms=timm('eva_scales_and_norms', 'token', timm_proj=None),
    clip=dict(image_size=32, patch_size=8, layers=3, width=48, head_width=12),
    clipa=dict(image_size=32, patch_size=8, layers=3, width=48, head_width=12, **CLIPA_VISION),
    mean_of_normed=dict(
        image_size=32, patch_size=8, layers=3, width=48, head_width=12, pool_type='avg'
    ),
)
LAST = dict(no_causal_mask=True, pool_type='last')
WORDS = dict(
    causal={},
    siglip=dict(
        LAST, proj_bias=True, norm_kwargs=dict(eps=1e-6), act_kwargs=dict(approximate='tanh')
    ),
    siglip_i18n=dict(LAST, proj_type='none'),
    clipa=LAST,
    mobileclip2_l=dict(no_causal_mask=True),
)


def write_small_clip(folder, vision='clipa', words='causal'):
    """Write the config of a small CLIP with these towers; give its path."""
    text = dict(context_length=20, vocab_size=49408, width=48, heads=4, layers=3)
    config = dict(embed_dim=48, vision_cfg=VISION[vision], text_cfg=text | WORDS[words])
    path = folder / f'{vision}-{words}.json'
    path.write_text(json.dumps(dict(config, custom_text=True)))
    return str(path)
