"""Which parameters train: the baselines of Table 1, counted and listed."""

import pytest
import torch

from projects.vop.engine import open_config
from projects.vop.engine.parameters import (
    PAPER_CLIP_PARAMETERS,
    build_without_weights,
    count_as_paper,
    count_by_part,
)
from projects.vop.models import TextEncoder, VideoEncoder, open_towers
from projects.vop.paper import TABLE_1

# Trained as the paper counts it, and as it is (with what the paper leaves
# out of its count), at ViT-B/32.
PARAMETERS = dict(
    zero_shot=(0, 0),
    full=(119_826_432, 151_277_312),  # all of CLIP but its logit scale
    bias=(124_928, 171_008),
    proj=(655_360, 655_360),
    partial=(7_680_512, 10_240_256),
    adapter_attn=(1_982_976, 1_982_976),
    adapter_ffn=(1_982_976, 1_982_976),
    vop_text=(12 * 8 * 512, 12 * 8 * 512),
    vop_visual=(12 * 8 * 768, 12 * 8 * 768),
    vop=(122_880, 122_880),
    vop_p=(528_384, 528_384),
    vop_c=(14_257_152, 14_257_152),
    vop_f=(122_880, 132_096),
    vop_fp=(393_216, 402_432),
    vop_fc=(14_269_440, 14_278_656),
)


@pytest.mark.parametrize('method', TABLE_1)
def test_parameters_at_vit_b_32_are_those_of_the_paper(method):
    config = open_config(f'configs/{method}_msrvtt.py')
    assert config.model.clip == dict(name='ViT-B-32-quickgelu', pretrained='openai')
    model = build_without_weights(config)
    assert config.model.clip.pretrained == 'openai'  # left as it was
    parts = count_by_part(model)
    trained = sum(part.trained for part in parts.values())
    assert (count_as_paper(model), trained) == PARAMETERS[method]
    clip = sum(sum(part) for name, part in parts.items() if 'backbone' in name)
    assert clip == 151_277_313 - 1  # all of CLIP but its logit scale


@pytest.mark.parametrize('method', [m for m, row in TABLE_1.items() if row.params])
def test_the_share_is_what_the_paper_prints(method):
    share = f'{100 * PARAMETERS[method][0] / PAPER_CLIP_PARAMETERS:.3f}%'
    printed = TABLE_1[method].params.split('(')[1].rstrip(')')
    if method == 'vop_fc':  # less than its parts, in the paper
        assert (share, printed) == ('11.908%', '11.785%')
    else:
        assert float(share[:-1]) == float(printed[:-1])


def trained_names(encoder):
    return {
        name.removeprefix('backbone.') for name, p in encoder.named_parameters() if p.requires_grad
    }


def test_what_each_word_lets_train(tiny_clip):
    """Written out for the text tower of the tiny CLIP, which has 3 layers."""

    def trains(tuning):
        return trained_names(TextEncoder(dict(name=tiny_clip), tuning=tuning))

    block = [
        'ln_1.weight',
        'ln_1.bias',
        'attn.in_proj_weight',
        'attn.in_proj_bias',
        'attn.out_proj.weight',
        'attn.out_proj.bias',
        'ln_2.weight',
        'ln_2.bias',
        'mlp.c_fc.weight',
        'mlp.c_fc.bias',
        'mlp.c_proj.weight',
        'mlp.c_proj.bias',
    ]
    layers = [{f'transformer.resblocks.{i}.{name}' for name in block} for i in range(3)]
    loose = {
        'positional_embedding',
        'text_projection',
        'token_embedding.weight',
        'ln_final.weight',
        'ln_final.bias',
    }
    assert trains('frozen') == set()
    assert trains('proj') == {'text_projection'}
    assert trains('partial') == layers[2]
    assert trains('full') == set.union(loose, *layers)
    assert trains('bias') == {name for name in set.union(loose, *layers) if name.endswith('bias')}


def test_proj_is_the_projection_of_each_encoder(tiny_clip):
    encoder = VideoEncoder(dict(name=tiny_clip), tuning='proj')
    assert trained_names(encoder) == {'proj'}


def test_there_is_no_other_word(tiny_clip):
    with pytest.raises(ValueError, match="one of frozen, full, bias, proj, partial, got 'head'"):
        VideoEncoder(dict(name=tiny_clip), tuning='head')


def test_a_tower_without_what_should_train_is_refused(tiny_clip):
    towers = open_towers(tiny_clip)
    towers.text.text_projection = None
    with pytest.raises(ValueError, match="tuning='proj'.*no such parameters"):
        TextEncoder(towers, tuning='proj')


@pytest.mark.parametrize(
    'arguments',
    [
        dict(adapters=[dict(type='vop.ParallelAdapter', parallel_to='attn')]),
        dict(adapters=[dict(type='vop.ParallelAdapter', parallel_to='ffn')]),
        dict(adapters=[dict(type='vop.LoRA')]),
        dict(cls_update=dict(type='vop.ContextUpdate')),
    ],
)
def test_training_starts_from_clip(tiny_clip, arguments):
    torch.manual_seed(0)
    towers = open_towers(tiny_clip)
    videos = torch.randn(2, 3, 3, 32, 32)
    plain = VideoEncoder(towers)(videos)
    assert torch.equal(VideoEncoder(towers, **arguments)(videos), plain)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(adapters=[dict(type='vop.ParallelAdapter', parallel_to='mlp')]),
            "'attn' or 'ffn', got 'mlp'",
        ),
        (
            dict(adapters=[dict(type='vop.LoRA', rank=0)]),
            'rank',
        ),
        (
            dict(adapters=[dict(type='vop.ParallelAdapter', parallel_to='ffn', hidden=0)]),
            'hidden must be at least 1',
        ),
        (
            dict(cls_update=dict(type='vop.ContextUpdate', cmm='gru')),
            "'bilstm', 'lstm' or 'transformer', got 'gru'",
        ),
        (dict(cls_update=dict(type='vop.ContextUpdate'), temporal_layers=3), 'leaves none'),
    ],
)
def test_what_cannot_be_is_refused(tiny_clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoEncoder(dict(name=tiny_clip), **arguments)
