"""The methods of the paper and others, and how an encoder is compared with an oracle."""

import copy

import torch


def learned(length, **kwargs):
    return dict(type='vop.LearnedPrompt', length=length, **kwargs)


def position(length, **kwargs):
    return dict(type='vop.PositionPrompt', length=length, **kwargs)


def context(length, **kwargs):
    return dict(type='vop.ContextPrompt', length=length, **kwargs)


def adapter(beside, **kwargs):
    return dict(type='vop.ParallelAdapter', parallel_to=beside, hidden=32, **kwargs)


TUNINGS = ['full', 'bias', 'proj', 'partial']

# The tiny CLIP has 3 layers.
VISUAL = dict(
    vop=dict(prompts=[learned(8)]),
    vop_p=dict(prompts=[learned(4), position(4)]),
    vop_c=dict(prompts=[learned(4), context(4)]),
    vop_c_lstm=dict(prompts=[learned(4), context(4, cmm='lstm')]),
    vop_c_transformer=dict(prompts=[learned(4), context(4, cmm='transformer')]),
    vop_f=dict(prompts=[learned(8)], temporal_layers=2),
    vop_fp=dict(
        prompts=[learned(4, layers='frame'), position(4), learned(8, layers='video')],
        temporal_layers=1,
    ),
    vop_fc=dict(
        prompts=[learned(4, layers='frame'), context(4), learned(8, layers='video')],
        temporal_layers=1,
    ),
    all_temporal=dict(prompts=[learned(3)], temporal_layers=3),
    no_prompts=dict(),
    no_prompts_temporal=dict(temporal_layers=2),
    only_layer_2=dict(prompts=[learned(5, layers=(2, 2))]),
    layers_1_to_2=dict(prompts=[learned(5, layers=(1, 2))]),
    only_last_layer=dict(prompts=[position(2, layers=(3, 3))]),
    all_specific=dict(prompts=[context(8)]),
    position_and_context=dict(prompts=[position(2), context(3)]),
    cls_update=dict(prompts=[learned(8)], cls_update=dict(type='vop.ContextUpdate')),
    cls_update_transformer_temporal=dict(
        cls_update=dict(type='vop.ContextUpdate', cmm='transformer'), temporal_layers=1
    ),
    adapter_attn=dict(adapters=[adapter('attn')]),
    adapter_ffn=dict(adapters=[adapter('ffn')]),
    adapters_and_prompts=dict(
        adapters=[adapter('attn'), adapter('ffn')],
        prompts=[learned(4), context(4)],
        temporal_layers=1,
    ),
    bias_and_prompts=dict(tuning='bias', prompts=[position(4)]),
    full_temporal=dict(tuning='full', temporal_layers=2),
    **{tuning: dict(tuning=tuning) for tuning in TUNINGS},
)
TEXT = dict(
    vop=dict(prompts=[learned(8)]),
    two_prompts=dict(prompts=[learned(4), learned(3)]),
    layers_2_to_3=dict(prompts=[learned(6, layers=(2, 3))]),
    only_layer_1=dict(prompts=[learned(8, layers=(1, 1))]),
    no_prompts=dict(),
    adapter_attn=dict(adapters=[adapter('attn')]),
    adapters_and_prompts=dict(adapters=[adapter('ffn'), adapter('attn')], prompts=[learned(8)]),
    partial_and_prompts=dict(tuning='partial', prompts=[learned(8)]),
    **{tuning: dict(tuning=tuning) for tuning in TUNINGS},
)


def make(encoder, towers, **kwargs):
    torch.manual_seed(1)
    encoder = encoder(copy.deepcopy(towers), **kwargs)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if not name.startswith('backbone'):
                parameter.normal_(std=0.3)
    return encoder


def gradients(encoder, output):
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    encoder.zero_grad()
    (output * weight).sum().backward()
    return {
        name: parameter.grad
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad
    }


def assert_same(ours, theirs, tolerance):
    """The largest difference, relative to the largest value."""
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def assert_same_gradients(ours, theirs, all_used=True):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_same(ours[name], theirs[name], 1e-4)
        assert ours[name].abs().max() > 0 or not all_used, name
