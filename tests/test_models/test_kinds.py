"""Every kind of CLIP against the concatenating form on the modules of timm and open_clip."""

import copy
import itertools
from functools import partial

import open_clip
import pytest
import reference
import torch
from kinds import VISION, WORDS, write_small_clip
from methods import TEXT, VISUAL, assert_same, assert_same_gradients, gradients, learned, make
from open_clip.transformer import ResidualAttentionBlock
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from torch import nn
from torch.func import functional_call

from projects.vop.errors import UserError
from projects.vop.models import LoRA, TextEncoder, VideoEncoder, open_towers
from projects.vop.models.block_kinds import steps_of
from projects.vop.models.towers import TimmImageTower

LORAS = [dict(type='vop.LoRA', rank=3, alpha=6)]
WITH_LORA = dict(
    lora=dict(adapters=LORAS),
    lora_and_prompts=dict(adapters=LORAS, prompts=[learned(4)]),
    lora_over_frames=dict(adapters=LORAS, prompts=[learned(4)], temporal_layers=2),
)


@pytest.fixture(scope='module')
def open_small(tmp_path_factory):
    """Opens a small CLIP of some kind of towers."""
    folder = tmp_path_factory.mktemp('clips')

    def open_one(vision='clipa', words='causal'):
        torch.manual_seed(0)
        towers = open_towers(write_small_clip(folder, vision, words))
        with torch.no_grad():
            for parameter in (*towers.visual.parameters(), *towers.text.parameters()):
                # Biases and gains at 0 and 1 would hide a wrong one.
                parameter += 0.05 * torch.randn_like(parameter)
        return towers

    return open_one


def has_cls(clip):
    return not hasattr(clip, 'trunk') or clip.trunk.cls_token is not None


def naive_layer(encoder, layer, frames, prompts):
    """A layer on the tokens [m x d] of frames, which attend to each other and to the prompts."""
    clip = encoder.backbone
    cls = int(has_cls(clip))
    head = [torch.stack([frame[0] for frame in frames])] if cls else []
    head = ([] if prompts is None else [prompts]) + head
    x = torch.cat([*head, *(frame[cls:] for frame in frames)])
    count = sum(map(len, head))
    if hasattr(clip, 'trunk'):
        block, kwargs = clip.trunk.blocks[layer - 1], {}
        rope = getattr(clip.trunk, 'rope', None)
        if rope is not None:
            block.attn.num_prefix_tokens = count  # which are not rotated
            kwargs = dict(rope=rope.get_embed().repeat(len(frames), 1))
        x = naive_block(encoder, layer, block, x, **kwargs)
        block.attn.num_prefix_tokens = cls
    else:
        x = naive_block(encoder, layer, clip.transformer.resblocks[layer - 1], x)
    patches = x[count:].chunk(len(frames))
    own = x[count - cls * len(frames) : count]
    return [torch.cat([own[i : i + cls], patches[i]]) for i in range(len(frames))]


def naive_block(encoder, layer, block, x, **kwargs):
    lora = [adapter for adapter in encoder.adapters if isinstance(adapter, LoRA)]
    if lora:
        weights = naive_lora(lora[0], layer, dict(block.named_parameters()))
        return functional_call(block, weights, (x[None],), kwargs)[0]
    if not encoder.adapters:
        return block(x[None], **kwargs)[0]
    beside = dict.fromkeys(('attn', 'ffn'), lambda h: 0)
    for each in encoder.adapters:
        beside[each.parallel_to] = partial(reference.adapt, each, layer)
    if isinstance(block, EvaBlockPostNorm):
        x = x + block.norm1(block.attn(x[None], **kwargs)[0]) + beside['attn'](x)
        return x + block.norm2(block.mlp(x)) + beside['ffn'](x)
    if isinstance(block, ResidualAttentionBlock):
        norms, scales = (block.ln_1, block.ln_2), (block.ls_1, block.ls_2)
        attend = block.attention
    else:
        attend, norms = block.attn, (block.norm1, block.norm2)
        if isinstance(block, EvaBlock):
            gains = block.gamma_1, block.gamma_2
            scales = [partial(torch.mul, 1 if gain is None else gain) for gain in gains]
        else:
            scales = block.ls1, block.ls2
    h = norms[0](x)
    x = x + scales[0](attend(h[None], **kwargs)[0]) + beside['attn'](h)
    h = norms[1](x)
    return x + scales[1](block.mlp(h)) + beside['ffn'](h)


def naive_lora(lora, layer, weights):
    """The weights of a block with low-rank updates in those of queries and values."""
    query, value = (
        each[layer - 1].up.weight @ each[layer - 1].down.weight * 2
        for each in (lora.query, lora.value)
    )
    changes = {'attn.q_proj.weight': query, 'attn.v_proj.weight': value}
    for fused in ('attn.in_proj_weight', 'attn.qkv.weight'):
        changes[fused] = torch.cat([query, torch.zeros_like(query), value])
    return {name: value + changes.get(name, 0) for name, value in weights.items()}


def naive_video(encoder, video):
    """Frame embeddings [F x e] of one video [F x 3 x H x W]."""
    clip, f = encoder.backbone, len(video)
    trunk = getattr(clip, 'trunk', None)
    caught = []
    # What goes into the first block, and what the last gives on to what follows.
    first = (trunk.blocks if trunk else clip.transformer.resblocks)[0]
    handle = first.register_forward_pre_hook(lambda block, inputs: caught.append(inputs[0]))
    clip(video)
    handle.remove()
    tokens = [*caught[0]]
    for layer in range(1, encoder.spec.layers + 1):
        if layer == encoder.spec.frame_layers + 1:
            table = encoder.frame_positional_embedding
            tokens = [x + table[int((i + 0.5) / f * len(table))] for i, x in enumerate(tokens)]
        cls = torch.stack([x[0] if has_cls(clip) else x.mean(0) for x in tokens])
        if encoder.cls_update and layer <= encoder.spec.frame_layers:
            update = encoder.cls_update
            cls = cls + reference.linear(update.fc, reference.cmm_states(update.cmm, cls))
            tokens = [torch.cat([c[None], x[1:]]) for c, x in zip(cls, tokens)]
        prompts = reference.prompt_tokens(encoder, layer, f, cls)
        if layer == 1:
            pre_norm = trunk.norm_pre if trunk else clip.ln_pre
            prompts = [None if p is None else pre_norm(p) for p in prompts]
        if layer <= encoder.spec.frame_layers:
            pairs = zip(tokens, prompts)
            tokens = [naive_layer(encoder, layer, [x], p)[0] for x, p in pairs]
        else:
            tokens = naive_layer(encoder, layer, tokens, prompts[0])
    x = torch.stack(tokens)
    if trunk:
        return clip.head(trunk.forward_head(trunk.norm(x)))
    if clip.pool_type == 'tok':
        return clip.ln_post(x[:, 0]) @ clip.proj
    if clip.final_ln_after_pool:
        return clip.ln_post(x[:, 1:].mean(1)) @ clip.proj
    return clip.ln_post(x)[:, 1:].mean(1) @ clip.proj


def naive_caption(encoder, ids):
    """Embedding [e] of one caption, token ids [t], under no causal mask."""
    clip = encoder.backbone
    before = 0 if clip.pool_type == 'last' else 1
    first = reference.prompt_tokens(encoder, 1, 1, None)[0]
    slots = clip.context_length - (0 if first is None else len(first))
    end = clip.context_length - 1 if clip.pool_type == 'last' else int(ids.argmax())
    if end >= slots:
        ids, end = torch.cat([ids[: slots - 1], ids[end : end + 1]]), slots - 1
    words = clip.token_embedding.weight[ids[:slots]]
    for layer in range(1, encoder.spec.layers + 1):
        prompts = reference.prompt_tokens(encoder, layer, 1, None)[0]
        prompts = words[:0] if prompts is None else prompts
        x = torch.cat([words[:before], prompts, words[before:]])
        if layer == 1:
            x = x + clip.positional_embedding[: len(x)]
        x = naive_block(encoder, layer, clip.transformer.resblocks[layer - 1], x)
        words = torch.cat([x[:before], x[before + len(prompts) :]])
    x = clip.ln_final(words)[end]
    if clip.text_projection is None:
        return x
    return (
        clip.text_projection(x)
        if isinstance(clip.text_projection, nn.Linear)
        else x @ clip.text_projection
    )


FAMILY = 'vop vop_p vop_c vop_f vop_fp vop_fc'.split()
BASELINES = (
    'bias partial full_temporal proj adapters_and_prompts cls_update lora_over_frames'.split()
)
PAIRS = [
    *itertools.product(VISION, FAMILY),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in itertools.product(VISION, BASELINES)),
    *(
        pytest.param('pe_core', method, marks=pytest.mark.slow)
        for method in (VISUAL | WITH_LORA).keys() - {*FAMILY, *BASELINES}
    ),
]


@pytest.mark.parametrize('kind, method', sorted(PAIRS, key=str))
def test_video_encoder_equals_the_concatenating_form(open_small, kind, method):
    towers = open_small(kind)
    settings = dict((VISUAL | WITH_LORA)[method], num_frames=4)
    if 'cls_update' in settings and kind in ('pe_core_without_cls', 'siglip'):
        with pytest.raises(UserError, match='which .* has not'):
            VideoEncoder(towers, **settings)
        return
    encoder = make(VideoEncoder, towers, **settings)
    for frames in (4, 1, 3) if method in ('vop_fc', 'vop_fp') else (4,):
        video = torch.randn(2, frames, 3, 32, 32)
        ours, theirs = encoder(video), torch.stack([naive_video(encoder, v) for v in video])
        assert_same(ours, theirs, 1e-5)
        if ours.requires_grad:
            own, others = gradients(encoder, ours), gradients(encoder, theirs)
            # What is added to all keys alike changes no weight.
            for name in [name for name in own if name.endswith('k_norm.bias')]:
                del own[name], others[name]
            assert_same_gradients(own, others, all_used=False)


CAPTIONS = ['a man cleans a pool', 'a', '', *(' '.join(['dog'] * n) for n in (8, 9, 10, 16, 40))]


@pytest.mark.parametrize('method', [*TEXT, 'lora', 'lora_and_prompts'])
@pytest.mark.parametrize('kind', [kind for kind in WORDS if kind != 'causal'])
def test_text_encoder_equals_the_concatenating_form(open_small, kind, method):
    towers = open_small(words=kind)
    if method == 'proj' and kind == 'siglip_i18n':
        with pytest.raises(UserError, match='no such parameters'):
            TextEncoder(towers, **TEXT[method])
        return
    encoder = make(TextEncoder, towers, **(TEXT | WITH_LORA)[method])
    tokens = open_clip.SimpleTokenizer(context_length=20)(CAPTIONS)
    ours, theirs = encoder(tokens), torch.stack([naive_caption(encoder, ids) for ids in tokens])
    assert_same(ours, theirs, 1e-5)
    if ours.requires_grad:
        own = gradients(encoder, ours)
        assert_same_gradients(own, gradients(encoder, theirs), all_used=False)


@pytest.mark.parametrize('kind', VISION)
def test_a_step_of_each_kind_in_every_form(open_small, kind):
    """Gradient checkpointing, autocast, and the state without frozen weights."""
    towers, settings = open_small(kind), dict(VISUAL['vop_fc'], num_frames=4)
    encoder = make(VideoEncoder, towers, **settings)
    video = torch.randn(2, 4, 3, 32, 32)
    plain = encoder(video)
    wanted = gradients(encoder, plain)
    encoder.with_cp = True
    assert_same(encoder(video), plain, 1e-6)
    assert_same_gradients(gradients(encoder, encoder(video)), wanted, all_used=False)
    encoder.with_cp = False
    with torch.autocast('cpu', torch.bfloat16):
        assert_same(encoder(video), plain, 0.05)
    state = encoder.state_dict()
    assert not [name for name in state if name.startswith('backbone')]
    other = make(VideoEncoder, towers, **settings)
    torch.nn.init.zeros_(other.prompts[0].tokens)
    other.load_state_dict(copy.deepcopy(state))
    assert_same(copy.deepcopy(other)(video), plain, 1e-6)
    with pytest.raises(UserError, match='frozen weights differ'):
        torch.nn.init.zeros_([*other.backbone.parameters()][-1])
        other.load_state_dict(state)


@pytest.mark.parametrize('kind', VISION)
def test_weights_of_each_kind_are_read(open_small, kind, tmp_path, logged_warnings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    towers = open_small(kind)
    state = towers.visual.state_dict(prefix='visual.') | towers.text.state_dict(prefix='text.')
    state |= dict(logit_scale=torch.tensor([2.0]), logit_bias=torch.tensor([-10.0]))
    torch.save(dict(state_dict={f'module.{key}': value for key, value in state.items()}), 'c.pt')
    logged_warnings.clear()
    config = write_small_clip(tmp_path, kind)
    opened = open_towers(config, 'c.pt')
    for key, value in opened.visual.state_dict().items():
        assert torch.equal(value, state[f'visual.{key}'])
    for key, value in opened.text.state_dict().items():
        assert torch.equal(value, state[f'text.{key}'])
    assert opened.logit_scale == 2
    is_timm = hasattr(towers.visual, 'trunk')
    assert bool(logged_warnings) != is_timm  # of the activation, which a file does not tell
    other = 'clipa' if is_timm else 'siglip'
    with pytest.raises(UserError, match="is timm's" if is_timm else 'lacks'):
        open_towers(write_small_clip(tmp_path, other), 'c.pt')


def test_the_approximation_of_gelu_is_told(open_small):
    """Indexes of the same weights with the other are not to be compared."""
    blocks = [open_small(words=words).text.transformer.resblocks[0] for words in WORDS]
    activations = dict(zip(WORDS, (steps_of(block).activation for block in blocks)))
    assert activations == dict.fromkeys(WORDS, 'GELU') | dict(siglip='GELU tanh')


def test_rotary_positions_of_another_kind_are_refused(open_small):
    towers = open_small('pe_core')
    del towers.visual.trunk.rope.feat_shape  # as those whose table depends on the picture
    assert 'rotary' in TimmImageTower.why_not(towers.visual)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['pe_core', 'siglip'])
def test_compiled_it_is_the_same(open_small, kind):
    settings = dict(VISUAL['vop_fp'], temporal_layers=2, num_frames=4)
    encoder = make(VideoEncoder, open_small(kind), **settings)
    video = torch.randn(2, 4, 3, 32, 32)
    plain, compiled = encoder(video), torch.compile(encoder, backend='eager')(video)
    assert_same(compiled, plain, 1e-5)
    own = gradients(encoder, compiled)
    assert_same_gradients(own, gradients(encoder, plain), all_used=False)


@pytest.mark.parametrize('kind', VISION)
def test_without_prompts_it_is_the_image_tower(open_small, kind):
    towers = open_small(kind)
    video = torch.randn(2, 3, 3, 32, 32)
    encoder = VideoEncoder(towers, num_frames=3).train()
    with torch.no_grad():
        assert_same(encoder(video).flatten(0, 1), towers.visual.eval()(video.flatten(0, 1)), 1e-5)


@pytest.mark.parametrize('kind', WORDS)
def test_without_prompts_it_is_the_text_tower(open_small, kind):
    towers = open_small(words=kind)
    tokens = open_clip.SimpleTokenizer(context_length=20)(CAPTIONS)
    with torch.no_grad():
        assert_same(TextEncoder(towers)(tokens), towers.text(tokens), 1e-5)


def test_captions_without_their_padding_are_refused_where_it_is_read(open_small):
    towers = open_small(words='siglip')
    encoder = TextEncoder(towers, prompts=[learned(4)])
    tokens = open_clip.SimpleTokenizer(context_length=16)(CAPTIONS)
    assert len(encoder(tokens)) == len(CAPTIONS)
    with pytest.raises(UserError, match='all 20 tokens'):
        encoder(tokens[:, :15])
