"""The authors' released model, against its computation written plainly.

It reads a state dict of the released names, and nothing of this project or open_clip.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers import MODELSCOPE_CLIP, ROOT, released_state
from helpers import MODELSCOPE_TEXT as TEXT
from helpers import MODELSCOPE_VISUAL as VISUAL
from mmengine.config import Config

from projects.vop.datasets.transforms import CLIPTokenize
from projects.vop.errors import UserError
from projects.vop.models import ModelScopeTextEncoder, open_towers
from projects.vop.registry import MODELS

CONFIG = ROOT / 'configs/vop_msrvtt_released.py'
START, END = 49406, 49407
# [EOT] stands in slot 1 to 68, and from 69 on the caption is cut. It is read
# from the zeros after it, from slot 60 on (72 of 77) near or at the suffix.
LENGTHS = range(81)


# Its computation, written plainly


def layer_norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'])


def block(state, name, x, causal=False):
    """One layer on [n x length x d], with heads of 64."""
    n, length, d = x.shape
    h = layer_norm(state, f'{name}.ln_1', x)
    qkv = h @ state[f'{name}.attn.in_proj_weight'].T + state[f'{name}.attn.in_proj_bias']
    q, k, v = qkv.view(n, length, 3, d // 64, 64).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / 8
    if causal:
        scores = scores + torch.full((length, length), -torch.inf).triu(1)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, d)
    x = x + out @ state[f'{name}.attn.out_proj.weight'].T + state[f'{name}.attn.out_proj.bias']
    h = layer_norm(state, f'{name}.ln_2', x)
    h = h @ state[f'{name}.mlp.c_fc.weight'].T + state[f'{name}.mlp.c_fc.bias']
    h = h * torch.sigmoid(1.702 * h)
    return x + h @ state[f'{name}.mlp.c_proj.weight'].T + state[f'{name}.mlp.c_proj.bias']


def released_frames(state, frames):
    """Embeddings [n x e] of frames [n x 3 x h x w]."""
    prompts = state[VISUAL]
    kernel = state['image_encoder.conv1.weight']
    x = F.conv2d(frames, kernel, stride=kernel.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    cls = state['image_encoder.class_embedding'].expand(len(x), 1, -1)
    x = torch.cat([cls, x], 1) + state['image_encoder.positional_embedding']
    for layer in range(len(prompts)):
        p = prompts[layer].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], p, x[:, 1:]], 1)
        if layer == 0:
            x = layer_norm(state, 'image_encoder.ln_pre', x)
        x = block(state, f'image_encoder.transformer.resblocks.{layer}', x)
        x = torch.cat([x[:, :1], x[:, 1 + p.shape[1] :]], 1)
    x = layer_norm(state, 'image_encoder.ln_post', x[:, 0])
    return x @ state['image_encoder.proj']


def released_videos(state, videos):
    """Embeddings [b x e] of videos [b x f x 3 x h x w], as they are scored."""
    each = []
    for video in videos:
        frames = released_frames(state, video)
        frames = frames / frames.norm(dim=-1, keepdim=True)
        each.append(frames.mean(0))
    return torch.stack(each)


def released_ids(captions, prompts=8):
    """Captions, lists of word ids, as the released tokenizer gives them."""
    ids = torch.zeros(len(captions), 77 - prompts, dtype=torch.long)
    for row, words in zip(ids, captions):
        tokens = [START, *words, END]
        if len(tokens) > len(row):
            tokens = tokens[: len(row) - 1] + [END]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def released_texts(state, ids, prefix=4):
    """Embeddings [n x e], not normalised, of token ids [n x 69]."""
    prompts = state[TEXT]
    suffix = prompts.shape[1] - prefix
    x = state['text_encoder.token_embedding.weight'][ids]
    for layer in range(len(prompts)):
        p = prompts[layer].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], p[:, :prefix], x[:, 1:]], 1)
        x = torch.cat([x[:, :-1], p[:, prefix:], x[:, -1:]], 1)
        assert x.shape[1] == 77
        if layer == 0:
            x = x + state['text_encoder.positional_embedding']
        x = block(state, f'text_encoder.transformer.resblocks.{layer}', x, causal=True)
        if layer < len(prompts) - 1:
            x = torch.cat([x[:, :1], x[:, 1 + prefix : -1 - suffix], x[:, -1:]], 1)
    x = layer_norm(state, 'text_encoder.ln_final', x)
    read = ids.argmax(-1) + prefix + suffix
    return x[torch.arange(len(x)), read] @ state['text_encoder.text_projection']


def captions_of(*lengths):
    """Captions of so many words, each a list of ids."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, START, (length,), generator=generator).tolist() for length in lengths]


def clip_ids(captions):
    """Captions as CLIP's own tokenizer gives them, [n x 77]."""
    return released_ids(captions, prompts=0)


def load(encoder, state, name, *prompts):
    """Give an encoder the weights and prompts of a released state."""
    own = encoder.backbone.state_dict()
    encoder.backbone.load_state_dict({key: state[f'{name}.{key}'] for key in own})
    for prompt, tokens in zip(encoder.prompts, prompts):
        prompt.tokens.data.copy_(tokens)


def make(clip, state, prefix, suffix, **kwargs):
    """The text encoder alone."""
    encoder = ModelScopeTextEncoder(
        open_towers(clip),
        prompts=[dict(type='vop.LearnedPrompt', length=length) for length in (prefix, suffix)],
        **kwargs,
    )
    load(encoder, state, 'text_encoder', *state[TEXT].split([prefix, suffix], 1))
    return encoder


@pytest.fixture(scope='module')
def small_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp('clip') / 'small-clip.json'
    path.write_text(json.dumps(MODELSCOPE_CLIP))
    return str(path)


@pytest.fixture(scope='module')
def state():
    return released_state()


@pytest.fixture(scope='module')
def model(small_clip, state):
    """Of the config, with the weights of the released state."""
    model = Config.fromfile(CONFIG).model
    model.clip = dict(name=small_clip)
    model = MODELS.build(model).eval()
    load(model.visual, state, 'image_encoder', state[VISUAL][:, 0])
    load(model.text, state, 'text_encoder', *state[TEXT].split(4, 1))
    return model


def assert_same(ours, theirs, tolerance=1e-5):
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@torch.no_grad()
def test_captions_of_every_length_one_by_one(model, state):
    for caption in captions_of(*LENGTHS[:3], *LENGTHS[56:]):
        assert_same(model.text(clip_ids([caption])), released_texts(state, released_ids([caption])))


@torch.no_grad()
@pytest.mark.parametrize(
    'lengths',
    [LENGTHS, LENGTHS[:12], [3, 62], [3, 63], [3, 66], [3, 67], [0, 68, 5]],
)
def test_captions_in_a_batch(model, state, lengths):
    captions = captions_of(*lengths)
    ours = model.encode_text(clip_ids(captions))
    theirs = released_texts(state, released_ids(captions))
    assert_same(ours, theirs / theirs.norm(dim=-1, keepdim=True))


@torch.no_grad()
def test_a_caption_that_says_endoftext(model, state):
    captions = [[5, END, 6, 7], *captions_of(2, 70)]
    theirs = released_texts(state, released_ids(captions))
    assert_same(model.text(clip_ids(captions)), theirs)
    assert_same(model.text(clip_ids(captions[:1])), theirs[:1])


@torch.no_grad()
def test_captions_as_the_pipeline_tokenizes_them(model, state):
    captions = ['', 'dog', 'dog dog', 'dog ' * 67, 'dog ' * 68, 'dog ' * 90]
    ids = CLIPTokenize().transform(dict(text=captions))['text']
    theirs = released_texts(state, released_ids([[ids[1, 1]] * c.count('dog') for c in captions]))
    assert_same(model.text(ids), theirs)
    assert_same(model.text(ids[1:3, :6]), theirs[1:3])  # short rows are filled with zeros


@torch.no_grad()
def test_videos(model, state):
    videos = torch.randn(3, 4, 3, 32, 32)
    ours = model.encode_video(videos)
    assert_same(ours, released_videos(state, videos))
    assert ours.norm(dim=-1).max() < 0.999  # not normalised again


@torch.no_grad()
@pytest.mark.parametrize('prefix, suffix', [(7, 1), (1, 7), (2, 3), (30, 45)])
def test_other_numbers_of_prompts(small_clip, prefix, suffix):
    prompts = prefix + suffix
    state = released_state(prompts=prompts)
    encoder = make(small_clip, state, prefix, suffix)
    captions = captions_of(0, 1, 2, *LENGTHS[56:])
    theirs = released_texts(state, released_ids(captions, prompts), prefix)
    assert_same(encoder(clip_ids(captions)), theirs)


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('lengths', [[2, 5, 9], [0, 59, 63, 66, 68, 75]])
def test_gradients(small_clip, state, lengths, with_cp):
    encoder = make(small_clip, state, 4, 4, with_cp=with_cp)
    captions = captions_of(*lengths)
    theirs = dict(state)
    theirs[TEXT] = state[TEXT].clone().requires_grad_()
    for output in (encoder(clip_ids(captions)), released_texts(theirs, released_ids(captions))):
        weight = torch.linspace(-1, 1, output.numel()).view_as(output)
        (output * weight).sum().backward()
    for prompt, gradient in zip(encoder.prompts, theirs[TEXT].grad.split(4, dim=1)):
        # Short captions never see the suffix: it stands behind them.
        ours = torch.zeros_like(gradient) if prompt.tokens.grad is None else prompt.tokens.grad
        assert_same(ours, gradient, 1e-4)
        assert gradient.any() or max(lengths) < 60


def test_bfloat16_autocast_stays_close(model):
    ids = clip_ids(captions_of(0, 9, 60, 66, 80))
    exact = model.text(ids)
    with torch.autocast('cpu', torch.bfloat16):
        rough = model.text(ids)
    similarity = torch.cosine_similarity(exact, rough.float(), dim=-1)
    assert similarity.min() > 0.99
    rough.float().sum().backward()
    for prompt in model.text.prompts:
        assert prompt.tokens.grad.isfinite().all() and prompt.tokens.grad.any()
    model.zero_grad()


def test_a_batch_costs_no_more_than_its_longest_caption(model):
    lengths = []
    handle = model.text.backbone.transformer.resblocks[0].ln_1.register_forward_hook(
        lambda _, x, __: lengths.append(x[0].shape[1])
    )
    model.text(clip_ids(captions_of(2, 9)))
    handle.remove()
    assert lengths == [10 + 8 + 1]


@pytest.mark.parametrize(
    'prompts', [[], [{}], [{}, {}, {}], [{}, dict(layers=(1, 2))], [dict(layers=(2, 3)), {}]]
)
def test_other_prompts_are_refused(small_clip, prompts):
    prompts = [dict(type='vop.LearnedPrompt', length=4) | prompt for prompt in prompts]
    with pytest.raises(UserError, match='the prefix and the suffix; got'):
        ModelScopeTextEncoder(dict(name=small_clip), prompts=prompts)


@pytest.mark.slow
@torch.no_grad()
def test_the_real_size_converted_as_a_user_does(run_tool, tmp_path):
    state = released_state(12, 768, 512, 512, 32, 7)
    assert state[VISUAL].shape == (12, 1, 8, 768)
    assert state[TEXT].shape == (12, 8, 512)
    source, out, weights = (tmp_path / name for name in ('VoP_msrvtt9k.pth', 'vop.pth', 'clip.pt'))
    torch.save(dict(state_dict=state), source)
    run_tool('tools/convert_modelscope.py', source, out, '--clip-out', weights)
    model = Config.fromfile(CONFIG).model
    model.clip.pretrained = str(weights)
    model = MODELS.build(model).eval()
    model.load_state_dict(torch.load(out, weights_only=True)['state_dict'])
    captions = captions_of(3, 62, 66, 80)
    assert_same(model.text(clip_ids(captions)), released_texts(state, released_ids(captions)))
    videos = torch.randn(1, 2, 3, 224, 224)
    assert_same(model.encode_video(videos), released_videos(state, videos))
