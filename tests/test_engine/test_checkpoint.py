"""Checkpoints run no code, hold what was trained, and know their CLIP."""

import copy
import json
import pickle

import pytest
import torch
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict
from torch import nn

from projects.vop.engine import check_fit, load_safely
from projects.vop.errors import UserError
from projects.vop.models import VideoEncoder
from projects.vop.registry import MODELS

PROMPTS = {
    'visual': dict(
        num_frames=4,
        temporal_layers=1,
        prompts=[
            dict(type='vop.LearnedPrompt', length=2),
            dict(type='vop.PositionPrompt', length=1),
            dict(type='vop.ContextPrompt', length=1),
        ],
    ),
    'text': dict(prompts=[dict(type='vop.LearnedPrompt', length=2)]),
}


# Opening files


class Code:
    """Its pickle calls ``open`` when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


@pytest.fixture
def code_file(tmp_path):
    """A checkpoint with code, and the file that the code would make."""
    path, marker = tmp_path / 'code.pth', tmp_path / 'code-ran'
    torch.save(dict(state_dict={}, meta=Code(marker)), path)
    yield path, marker
    marker.unlink(missing_ok=True)
    torch.load(path, weights_only=False)
    assert marker.exists(), 'the file was harmless'


def test_refuses_code(code_file):
    path, marker = code_file
    with pytest.raises(ValueError, match=r'code\.pth .* call \w+\.open,'):
        load_safely(str(path))
    assert not marker.exists()


def test_mmengine_refuses_code(code_file):
    path, marker = code_file
    with pytest.raises(ValueError, match=r'code\.pth .* opened safely'):
        load_checkpoint(nn.Linear(2, 2), str(path))
    assert not marker.exists()


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('share', [0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5, 0.9, 0.99])
def test_refuses_a_truncated_file(tmp_path, legacy, share):
    path = tmp_path / 'cut.pth'
    torch.save(
        dict(state_dict=nn.Linear(50, 50).state_dict()),
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'cut\.pth is not a checkpoint'):
        load_checkpoint(nn.Linear(50, 50), str(path))


@pytest.mark.parametrize(
    'content',
    [
        b'<!DOCTYPE html><title>404</title>',
        b'version https://git-lfs',
        b'hello',
        b'\x80\x02}q\x00.',
        pickle.dumps(dict(state_dict={})),
    ],
)
def test_refuses_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / 'odd.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'odd\.pth is not a checkpoint'):
        load_safely(str(path))


def test_missing_file(tmp_path):
    for load in (load_safely, lambda f: load_checkpoint(nn.Linear(2, 2), f)):
        with pytest.raises(UserError, match=r'gone\.pth'):
            load(str(tmp_path / 'gone.pth'))


def test_opens_a_plain_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    layer = nn.Linear(2, 2)
    torch.save(
        dict(state_dict=layer.state_dict(), meta=dict(epoch=1, cfg='x')), tmp_path / 'good.pth'
    )
    checkpoint = load_safely('~/good.pth', map_location='cpu')
    assert checkpoint['meta'] == dict(epoch=1, cfg='x')
    assert checkpoint['state_dict']['weight'].equal(layer.weight)


# What a state holds


def build(clip, weights_seed=0, prompts_seed=0, prompts=PROMPTS):
    """A model whose frozen weights depend on the first seed only."""
    torch.manual_seed(weights_seed)
    model = MODELS.build(dict(type='vop.RetrievalRecognizer', clip=dict(name=clip), **prompts))
    generator = torch.Generator().manual_seed(prompts_seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator, std=0.02)
    return model


def outputs(model):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 1000, (2, 77), generator=generator)
    tokens[:, 9] = 49407
    with torch.no_grad():
        return model.eval()(
            dict(imgs=torch.randn(2, 4, 3, 32, 32, generator=generator), text=tokens)
        )


def trained_keys(model):
    keys = {n for n, p in model.named_parameters() if p.requires_grad}
    return keys | {'visual._extra_state', 'text._extra_state'}


@pytest.mark.parametrize('prompts', [PROMPTS, {}])
def test_state_holds_what_was_trained(tiny_clip, prompts):
    """And, where nothing was, the fingerprints alone."""
    model = build(tiny_clip, prompts=prompts)
    state = model.state_dict()
    assert state.keys() == trained_keys(model)
    assert not any('backbone' in key for key in state)
    assert get_state_dict(model).keys() == state.keys()  # MMEngine's own


@pytest.mark.parametrize('prompts', [PROMPTS, {}])
def test_state_round_trips(tiny_clip, tmp_path, prompts):
    path = str(tmp_path / 'vop.pth')
    model = build(tiny_clip, prompts_seed=1, prompts=prompts)
    save_checkpoint(dict(state_dict=get_state_dict(model)), path)

    state = torch.load(path, weights_only=True)['state_dict']
    by_torch = build(tiny_clip, prompts_seed=2, prompts=prompts)
    assert str(by_torch.load_state_dict(state)) == '<All keys matched successfully>'
    by_mmengine = build(tiny_clip, prompts_seed=3, prompts=prompts)
    if prompts:
        assert not outputs(by_mmengine)[0].equal(outputs(model)[0])
    load_checkpoint(by_mmengine, path, strict=True)
    for other in (by_torch, by_mmengine):
        for mine, theirs in zip(outputs(model), outputs(other)):
            assert mine.equal(theirs)


def test_checkpoint_is_small(tiny_clip, tmp_path):
    model = build(tiny_clip)
    torch.save(model.state_dict(), tmp_path / 'vop.pth')
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert (tmp_path / 'vop.pth').stat().st_size < trained + 12_000


@pytest.mark.parametrize(
    'load',
    [
        lambda model, path: load_checkpoint(model, path),
        lambda model, path: model.load_state_dict(torch.load(path)['state_dict'], strict=False),
    ],
)
def test_other_frozen_weights_are_refused_with_both_names(tiny_clip, tmp_path, load):
    path = str(tmp_path / 'vop.pth')
    save_checkpoint(dict(state_dict=build(tiny_clip, 0).state_dict()), path)
    other_name = tmp_path / 'other-clip.json'
    with open(tiny_clip) as file:
        other_name.write_text(file.read())
    other = build(str(other_name), weights_seed=1)
    with pytest.raises(ValueError) as error:
        load(other, path)
    assert tiny_clip in str(error.value)
    assert str(other_name) in str(error.value)


@pytest.mark.parametrize('tower', ['visual', 'text'])
def test_one_changed_frozen_tensor_is_noticed(tiny_clip, tower):
    model, other = build(tiny_clip), build(tiny_clip)
    block = getattr(other, tower).backbone.transformer.resblocks[1]
    with torch.no_grad():
        block.mlp.c_fc.weight[100:] += 1e-3
    with pytest.raises(ValueError, match='trained on the CLIP'):
        other.load_state_dict(model.state_dict())


def test_same_weights_under_another_name_are_accepted(tiny_clip, tmp_path):
    name = tmp_path / 'renamed.json'
    with open(tiny_clip) as file:
        name.write_text(file.read())
    build(str(name)).load_state_dict(build(tiny_clip).state_dict())


def test_a_missing_prompt_is_not_passed_over(tiny_clip):
    model = build(tiny_clip)
    state = model.state_dict()
    del state['visual.prompts.0.tokens']
    with pytest.raises(RuntimeError, match='visual.prompts.0.tokens'):
        model.load_state_dict(state)


def test_an_unfrozen_weight_is_in_the_state(tiny_clip, tmp_path):
    model, other = build(tiny_clip), build(tiny_clip)
    before = set(model.state_dict())
    for one in (model, other):
        one.visual.backbone.ln_post.weight.requires_grad_(True)
    with torch.no_grad():
        model.visual.backbone.ln_post.weight.fill_(3.0)
    state = model.state_dict()
    assert set(state) - before == {'visual.backbone.ln_post.weight'}
    path = str(tmp_path / 'partial.pth')
    save_checkpoint(dict(state_dict=state), path)
    load_checkpoint(other, path, strict=True)
    assert other.visual.backbone.ln_post.weight.eq(3).all()


def test_holds_inside_another_module(tiny_clip):
    torch.manual_seed(0)
    encoder = VideoEncoder(clip=dict(name=tiny_clip), prompts=PROMPTS['visual']['prompts'][:1])
    outer = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict(dict(v=encoder)))
    state = outer.state_dict()
    assert state.keys() == {'0.weight', '0.bias', '1.v.prompts.0.tokens', '1.v._extra_state'}
    again = copy.deepcopy(outer)
    with torch.no_grad():
        again[1]['v'].prompts[0].tokens.zero_()
    again.load_state_dict(state)
    assert again[1]['v'].prompts[0].tokens.equal(encoder.prompts[0].tokens)
    assert again.state_dict().keys() == state.keys()


def test_state_names_its_clip(tiny_clip):
    state = build(tiny_clip).state_dict()['visual._extra_state']
    assert tiny_clip in json.loads(bytes(state.tolist()))['clip']


def test_a_file_without_a_state_dict_is_named(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='list.pth holds no state dict'):
        check_fit(nn.Linear(1, 1), str(tmp_path / 'list.pth'))
