"""Every member of the family against the paper's equations."""

import open_clip
import pytest
import reference
import torch
from methods import (
    TEXT,
    VISUAL,
    assert_same,
    assert_same_gradients,
    context,
    gradients,
    learned,
    make,
    position,
)

from projects.vop.models import TextEncoder, VideoEncoder, open_towers

CAPTIONS = [
    'a man cleans a pool',
    'a',
    '',
    'a very long caption ' * 30,
    ' '.join(['dog'] * 66),
    ' '.join(['dog'] * 67),
    ' '.join(['dog'] * 68),
    ' '.join(['dog'] * 75),
]


@pytest.fixture(scope='module')
def towers(tiny_clip):
    torch.manual_seed(0)
    towers = open_towers(tiny_clip)
    with torch.no_grad():
        for tower in (towers.visual, towers.text):
            for parameter in tower.parameters():
                # Biases and gains at 0 and 1 would hide a wrong one.
                parameter += 0.05 * torch.randn_like(parameter)
    return towers


@pytest.mark.parametrize('batch, frames', [(1, 4), (3, 4), (2, 1), (2, 7)])
@pytest.mark.parametrize('method', VISUAL)
def test_video_encoder_equals_the_paper(towers, method, batch, frames):
    encoder = make(VideoEncoder, towers, num_frames=4, **VISUAL[method])
    videos = torch.randn(batch, frames, 3, 32, 32)
    ours = encoder(videos)
    theirs = torch.stack([reference.encode_frames(encoder, video) for video in videos])
    assert_same(ours, theirs, 1e-5)
    if any(p.requires_grad for p in encoder.parameters()):
        # The recurrent weights of a CMM do nothing in a video of one frame.
        assert_same_gradients(
            gradients(encoder, ours), gradients(encoder, theirs), all_used=frames > 1
        )


@pytest.mark.parametrize('method', TEXT)
@pytest.mark.parametrize('captions', [CAPTIONS, CAPTIONS[:2], CAPTIONS[2:3]])
def test_text_encoder_equals_the_paper(towers, method, captions):
    encoder = make(TextEncoder, towers, **TEXT[method])
    ids = open_clip.get_tokenizer('ViT-B-32')(captions)
    ours = encoder(ids)
    theirs = torch.stack([reference.encode_caption(encoder, caption) for caption in ids])
    assert_same(ours, theirs, 1e-5)
    if any(p.requires_grad for p in encoder.parameters()):
        assert_same_gradients(gradients(encoder, ours), gradients(encoder, theirs))


def test_without_prompts_it_is_open_clip(towers):
    frames = torch.randn(2, 3, 3, 32, 32)
    ours = make(VideoEncoder, towers)(frames)
    assert_same(ours.flatten(0, 1), towers.visual(frames.flatten(0, 1)), 1e-5)
    ids = open_clip.get_tokenizer('ViT-B-32')(CAPTIONS)
    assert_same(make(TextEncoder, towers)(ids), towers.text(ids), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ViT-S-32', 'ViT-B-32-quickgelu'])
def test_a_clip_of_open_clip_by_name_is_reproduced(name):
    """Against ``CLIP.encode_image`` and ``encode_text``, as users know it."""
    torch.manual_seed(0)
    clip = open_clip.create_model(name)
    towers = open_towers(name)
    towers.visual.load_state_dict(clip.visual.state_dict())
    towers.text.load_state_dict(
        {k: v for k, v in clip.state_dict().items() if not k.startswith(('visual', 'logit'))}
    )
    frames = torch.randn(1, 2, 3, 224, 224)
    ids = open_clip.get_tokenizer(name)(CAPTIONS)
    with torch.no_grad():
        assert_same(VideoEncoder(towers)(frames)[0], clip.encode_image(frames[0]), 1e-5)
        assert_same(TextEncoder(towers)(ids), clip.encode_text(ids), 1e-5)


@pytest.mark.parametrize('method', ['vop', 'vop_c', 'vop_fp', 'adapters_and_prompts', 'full'])
def test_gradient_checkpointing_changes_nothing(towers, method):
    videos = torch.randn(2, 4, 3, 32, 32)
    results = []
    for with_cp in (False, True):
        encoder = make(VideoEncoder, towers, num_frames=4, with_cp=with_cp, **VISUAL[method])
        output = encoder(videos)
        results.append((output, gradients(encoder, output)))
    (plain, plain_grad), (cp, cp_grad) = results
    assert_same(cp, plain, 1e-6)
    for name in plain_grad:
        assert_same(cp_grad[name], plain_grad[name], 1e-6)


def test_gradient_checkpointing_keeps_fewer_activations(towers):
    kept = {}
    for with_cp in (False, True):
        encoder = make(VideoEncoder, towers, prompts=[learned(8)], with_cp=with_cp)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            encoder(torch.randn(2, 4, 3, 32, 32))
        kept[with_cp] = sum(sizes)
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize('method', VISUAL)
def test_bfloat16_autocast_stays_close(towers, method):
    encoder = make(VideoEncoder, towers, num_frames=4, **VISUAL[method])
    videos = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        exact = encoder(videos)
        with torch.autocast('cpu', torch.bfloat16):
            rough = encoder(videos)
    similarity = torch.cosine_similarity(exact, rough.float(), dim=-1)
    assert similarity.min() > 0.99


def test_bfloat16_autocast_of_text_stays_close(towers):
    encoder = make(TextEncoder, towers, prompts=[learned(8)])
    ids = open_clip.get_tokenizer('ViT-B-32')(CAPTIONS)
    with torch.no_grad():
        exact = encoder(ids)
        with torch.autocast('cpu', torch.bfloat16):
            rough = encoder(ids)
    similarity = torch.cosine_similarity(exact, rough.float(), dim=-1)
    assert similarity.min() > 0.99


@torch.no_grad()
@pytest.mark.parametrize('method', VISUAL)
def test_it_says_whether_it_sees_the_order_of_frames(towers, method):
    encoder = VideoEncoder(clip=towers, num_frames=4, **VISUAL[method])
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1)
    frames = torch.randn(1, 4, 3, 32, 32)
    forward, backward = (encoder(each).mean(1) for each in (frames, frames.flip(1)))
    assert encoder.sees_order == (not torch.allclose(forward, backward, rtol=1e-4, atol=1e-5))


def test_layers_in_front_of_the_first_prompt_keep_no_graph(towers):
    encoder = make(VideoEncoder, towers, prompts=[learned(2, layers=(3, 3))])
    seen = {}
    for layer, block in enumerate(encoder.backbone.transformer.resblocks, 1):
        block.ln_2.register_forward_hook(
            lambda _, __, out, layer=layer: seen.update({layer: out.requires_grad})
        )
    encoder(torch.randn(1, 2, 3, 32, 32))
    assert seen == {1: False, 2: False, 3: True}


def test_frames_of_the_wrong_size_are_refused(towers):
    encoder = make(VideoEncoder, towers)
    with pytest.raises(ValueError, match=r'frames of \(32, 32\).*Resize'):
        encoder(torch.randn(1, 2, 3, 48, 48))
    with pytest.raises(ValueError, match='b x f x 3 x h x w'):
        encoder(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(temporal_layers=4), 'temporal_layers must be 0 to 3'),
        (dict(temporal_layers=-1), 'temporal_layers must be 0 to 3'),
        (dict(num_frames=0), 'num_frames must be positive'),
        (dict(prompts=[learned(8, layers=(1, 4))]), 'no layers 1 to 4'),
        (dict(prompts=[learned(8, layers=(0, 2))]), 'no layers 0 to 2'),
        (dict(prompts=[learned(8, layers=(3, 2))]), 'no layers 3 to 2'),
        (dict(prompts=[learned(8, layers='deep')]), "'frame' or 'video'"),
        (dict(prompts=[learned(8, layers='video')]), 'no layers 4 to 3'),
        (dict(prompts=[learned(0)]), 'length must be at least 1'),
        (dict(prompts=[position(4, layers=(1, 3))], temporal_layers=1), 'end it at layer 2'),
        (dict(prompts=[context(4, layers=(3, 3))], temporal_layers=1), 'end it at layer 2'),
        (dict(prompts=[context(4, cmm='gru')]), "'bilstm', 'lstm'"),
    ],
)
def test_a_method_that_cannot_be_is_refused(towers, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(VideoEncoder, towers, **arguments)


@pytest.mark.parametrize('prompt', [position(4), context(4)])
def test_video_prompts_are_refused_in_text(towers, prompt):
    with pytest.raises(ValueError, match='a text has none'):
        make(TextEncoder, towers, prompts=[prompt])


def test_prompts_that_leave_no_room_for_a_caption_are_refused(towers):
    with pytest.raises(ValueError, match='leave no room'):
        make(TextEncoder, towers, prompts=[learned(76)])
    make(TextEncoder, towers, prompts=[learned(75)])
