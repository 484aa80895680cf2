"""The authors' released model, against its computation written plainly.

The computation reads a state dict with the names of the released file, and
nothing of this project or of open_clip.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config

from projects.vop.datasets.transforms import CLIPTokenize
from projects.vop.models import ModelScopeTextEncoder, open_towers
from projects.vop.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
START, END = 49406, 49407
VISUAL = 'visual_prompt_learner.visual_prompts'
TEXT = 'text_prompt_learner.text_prompts'
# The released code has heads of 64, whatever the width.
SMALL_CLIP = dict(
    embed_dim=32,
    quick_gelu=True,
    vision_cfg=dict(image_size=32, patch_size=16, layers=3, width=128, head_width=64),
    text_cfg=dict(context_length=77, vocab_size=49408, width=128, heads=2, layers=3),
)


def released_state(layers=3, visual=128, text=128, embed=32, patch=16, grid=2, prompts=8):
    """Random weights in the layout of the released file."""
    shapes = {
        'clip.logit_scale': (),
        'clip.visual.class_embedding': (visual,),
        'clip.visual.positional_embedding': (grid**2 + 1, visual),
        'clip.visual.conv1.weight': (visual, 3, patch, patch),
        'clip.visual.proj': (visual, embed),
        'clip.positional_embedding': (77, text),
        'clip.token_embedding.weight': (49408, text),
        'clip.text_projection': (text, embed),
        VISUAL: (layers, 1, 8, visual),
        TEXT: (layers, prompts, text),
    }
    for norm, width in (
        ('clip.visual.ln_pre', visual),
        ('clip.visual.ln_post', visual),
        ('clip.ln_final', text),
    ):
        shapes[f'{norm}.weight'] = shapes[f'{norm}.bias'] = (width,)
    for tower, width in (('clip.visual', visual), ('clip', text)):
        for layer in range(layers):
            block = f'{tower}.transformer.resblocks.{layer}'
            for name, out, into in (
                ('attn.in_proj_', 3, 1),
                ('attn.out_proj.', 1, 1),
                ('mlp.c_fc.', 4, 1),
                ('mlp.c_proj.', 1, 4),
            ):
                shapes[f'{block}.{name}weight'] = out * width, into * width
                shapes[f'{block}.{name}bias'] = (out * width,)
            for norm in ('ln_1', 'ln_2'):
                for kind in ('weight', 'bias'):
                    shapes[f'{block}.{norm}.{kind}'] = (width,)
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        # Matrices that keep the scale of what goes through them.
        std = shape[-1] ** -0.5 if name.endswith('_weight') or 'c_' in name else 0.3
        state[name] = std * torch.randn(shape)
        if '.ln_' in name and name.endswith('weight'):
            state[name] += 1
    for name in list(state):
        if name.startswith('clip.visual.'):
            state[name.replace('clip.visual', 'image_encoder')] = state[name]
        elif name.startswith('clip.') and name != 'clip.logit_scale':
            state[name.replace('clip', 'text_encoder')] = state[name]
    return state


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


def converted(folder, state, clip):
    """Convert a released file as a user does; open it with its CLIP."""
    source, out, weights = (folder / name for name in ('VoP_msrvtt9k.pth', 'vop.pth', 'clip.pt'))
    torch.save(dict(state_dict=state), source)
    config = str(ROOT / 'configs/vop_msrvtt_released.py')
    done = subprocess.run(
        [
            sys.executable,
            'tools/convert_modelscope.py',
            source,
            out,
            '--clip-out',
            weights,
            '--cfg-options',
            f'model.clip.name={clip}',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'random weights' not in done.stdout  # it has none in the end
    source.unlink()
    model = Config.fromfile(config).model
    model.clip = dict(name=str(clip), pretrained=str(weights))
    model = MODELS.build(model)
    model.load_state_dict(torch.load(out, weights_only=True)['state_dict'])
    weights.unlink()
    return model.eval()


@pytest.fixture(scope='module')
def small_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp('clip') / 'small-clip.json'
    path.write_text(json.dumps(SMALL_CLIP))
    return str(path)


@pytest.fixture(scope='module')
def state():
    return released_state()


@pytest.fixture(scope='module')
def model(small_clip, state, tmp_path_factory):
    return converted(tmp_path_factory.mktemp('model'), state, small_clip)


def make(clip, state, prefix, suffix, **kwargs):
    """The text encoder alone, with the weights of a released state."""
    encoder = ModelScopeTextEncoder(
        open_towers(clip),
        prompts=[dict(type='vop.LearnedPrompt', length=length) for length in (prefix, suffix)],
        **kwargs,
    )
    encoder.backbone.load_state_dict(
        {name: state[f'text_encoder.{name}'] for name in encoder.backbone.state_dict()}
    )
    with torch.no_grad():
        for prompt, tokens in zip(encoder.prompts, state[TEXT].split([prefix, suffix], 1)):
            prompt.tokens.copy_(tokens)
    return encoder


def assert_same(ours, theirs, tolerance=1e-5):
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


# [EOT] stands in slot 1 to 68, and from 69 on the caption is cut. It is read
# from the zeros after it, from slot 60 on (72 of 77) near or at the suffix.
LENGTHS = range(81)


@torch.no_grad()
def test_captions_of_every_length_one_by_one(model, state):
    for caption in captions_of(*LENGTHS):
        assert_same(model.text(clip_ids([caption])), released_texts(state, released_ids([caption])))


@torch.no_grad()
@pytest.mark.parametrize(
    'lengths',
    [LENGTHS, LENGTHS[::-1], LENGTHS[:12], [3, 62], [3, 63], [3, 66], [3, 67], [0, 68, 5]],
)
def test_captions_in_a_batch(model, state, lengths):
    captions = captions_of(*lengths)
    ours = model.encode_text(clip_ids(captions))
    theirs = released_texts(state, released_ids(captions))
    assert_same(ours, theirs / theirs.norm(dim=-1, keepdim=True))


@torch.no_grad()
def test_a_caption_that_says_endoftext_does_not_depend_on_the_batch(model, state):
    captions = [[5, END, 6, 7], *captions_of(2, 70)]
    theirs = released_texts(state, released_ids(captions))
    assert_same(model.text(clip_ids(captions)), theirs)
    assert_same(model.text(clip_ids(captions[:1])), theirs[:1])


@torch.no_grad()
def test_captions_as_the_pipeline_tokenizes_them(model, state):
    captions = ['', 'dog', 'dog dog', 'dog ' * 67, 'dog ' * 68, 'dog ' * 90]
    [(_, dog, _)] = CLIPTokenize().transform({'text': ['dog']})['text'][:, :3].tolist()
    theirs = released_ids([[dog] * text.count('dog') for text in captions])
    assert_same(
        model.text(CLIPTokenize().transform(dict(text=captions))['text']),
        released_texts(state, theirs),
    )


@torch.no_grad()
def test_short_rows_of_ids_are_filled_with_zeros(model, state):
    caption = captions_of(4)
    assert_same(model.text(clip_ids(caption)[:, :6]), released_texts(state, released_ids(caption)))


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
    captions = captions_of(*LENGTHS)
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
    ids = clip_ids(captions_of(*LENGTHS))
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
    'prompts',
    [
        [],
        [dict(length=8)],
        [dict(length=4), dict(length=2), dict(length=2)],
        [dict(length=4), dict(length=4, layers=(1, 2))],
        [dict(length=4, layers=(2, 3)), dict(length=4)],
    ],
)
def test_other_prompts_are_refused(small_clip, prompts):
    with pytest.raises(ValueError, match='the prefix and the suffix; got'):
        ModelScopeTextEncoder(
            dict(name=small_clip), prompts=[dict(type='vop.LearnedPrompt', **p) for p in prompts]
        )


@pytest.mark.slow
@torch.no_grad()
def test_the_size_of_the_real_file(tmp_path):
    state = released_state(12, 768, 512, 512, 32, 7)
    assert state[VISUAL].shape == (12, 1, 8, 768)
    assert state[TEXT].shape == (12, 8, 512)
    model = converted(tmp_path, state, 'ViT-B-32-quickgelu')
    captions = captions_of(3, 62, 66, 80)
    assert_same(model.text(clip_ids(captions)), released_texts(state, released_ids(captions)))
    videos = torch.randn(1, 2, 3, 224, 224)
    assert_same(model.encode_video(videos), released_videos(state, videos))
