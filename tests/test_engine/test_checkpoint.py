"""Checkpoints run no code, hold what was trained, and know their CLIP."""

import copy
import json
import pickle
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import safetensors.torch
import torch
from helpers import Code, make_batch
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict
from torch import nn

from projects.vop.engine import check_state, load_safely, to_safetensors
from projects.vop.errors import UserError
from projects.vop.models import VideoEncoder, open_towers
from projects.vop.registry import MODELS

LEARNED, POSITION, CONTEXT = (
    dict(type=f'vop.{kind}Prompt', length=1) for kind in ('Learned', 'Position', 'Context')
)
PROMPTS = dict(
    visual=dict(num_frames=4, temporal_layers=1, prompts=[LEARNED, POSITION, CONTEXT]),
    text=dict(prompts=[LEARNED]),
)


# Opening files


def load_by_mmengine(path):
    return load_checkpoint(nn.Linear(2, 2), path)


@pytest.mark.parametrize('load', [load_safely, load_by_mmengine])
def test_refuses_code(tmp_path, load):
    path, marker = tmp_path / 'code.pth', tmp_path / 'code-ran'
    torch.save(dict(state_dict={}, meta=Code(marker)), path)
    with pytest.raises(UserError, match=r'code\.pth .* call \w+\.open,'):
        load(str(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), 'the file was harmless'


def test_safetensors_have_a_checksum(tmp_path):
    state = dict(a=torch.randn(4, 3).T, b=torch.tensor(2), c=torch.zeros(0, 2), d=torch.ones(3))
    state['d'] = state['d'].bfloat16()
    path = tmp_path / 'prompts.safetensors'
    path.write_bytes(to_safetensors(state))
    loaded = load_safely(str(path))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for damaged in (flipped, whole[:-9], whole + b'x', whole[:99], b''):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r'prompts\.safetensors .* it is damaged'):
            load_safely(str(path))
    linear = nn.Linear(2, 2)
    safetensors.torch.save_file(linear.state_dict(), path)  # by another program
    assert torch.equal(load_by_mmengine(str(path))['bias'], linear.bias)


def test_refuses_code_of_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'downloads'))
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / 'good.pth')
    torch.save(dict(state_dict=state, meta=Code(tmp_path / 'ran')), tmp_path / 'code.pth')
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            address = f'http://127.0.0.1:{server.server_port}'
            load_by_mmengine(f'{address}/good.pth')
            with pytest.raises(UserError, match=r'code\.pth is not a checkpoint'):
                load_by_mmengine(f'{address}/code.pth')
        finally:
            server.shutdown()
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('share', [0, 0.01, 0.02, 0.05, 0.5, 0.99])
def test_refuses_a_truncated_file(tmp_path, legacy, share):
    path = tmp_path / 'cut.pth'
    state = dict(state_dict=nn.Linear(50, 50).state_dict())
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r'cut\.pth is not a checkpoint'):
        load_by_mmengine(str(path))


@pytest.mark.parametrize(
    'content',
    [
        b'<!DOCTYPE html><title>404</title>',
        b'version https://git-lfs',
        b'hello',
        b'\x80\x02}q\x00.',
        pickle.dumps(dict(state_dict={})),
        None,
    ],
)
def test_refuses_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / 'odd.pth'
    if content is not None:
        path.write_bytes(content)
    for load in (load_safely, load_by_mmengine):
        with pytest.raises(UserError, match=r'odd\.pth'):
            load(str(path))


def test_refuses_a_file_that_lost_bytes_of_a_tensor(tmp_path):
    """torch loads it."""
    path = tmp_path / 'lost.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(2000))), path)
    data = path.read_bytes()
    path.write_bytes(data[:4000] + bytes(512) + data[4512:])
    assert not torch.load(path)['state_dict']['weight'].all()
    for load in (load_safely, load_by_mmengine):
        with pytest.raises(UserError, match=r'lost\.pth .* it is damaged'):
            load(str(path))


def test_opens_a_file_without_checksums(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('torch < 2.6 always writes them')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(weight=torch.ones(9)), tmp_path / 'plain.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_safely(str(tmp_path / 'plain.pth'))['weight'].all()


@pytest.mark.parametrize('content', [[1, 2], dict(epoch=3, model=dict(weight=0)), {1: 2}, {}])
def test_refuses_what_is_no_state_dict(content):
    with pytest.raises(UserError, match=r'odd\.pth holds no state dict'):
        check_state(nn.Linear(1, 1), content, 'odd.pth')
    with pytest.raises(UserError, match=r'odd\.pth holds no state dict'):
        check_state(nn.Linear(1, 1), dict(state_dict=content), 'odd.pth')


def test_opens_a_plain_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    checkpoint = dict(state_dict=nn.Linear(2, 2).state_dict(), meta=dict(epoch=1, cfg='x'))
    torch.save(checkpoint, tmp_path / 'good.pth')
    loaded = load_safely('~/good.pth', map_location='cpu')
    assert loaded['meta'] == checkpoint['meta']
    assert loaded['state_dict']['weight'].equal(checkpoint['state_dict']['weight'])


# What a state holds


def build(clip, weights_seed=0, prompts_seed=0, prompts=PROMPTS):
    """A model whose frozen weights depend on the first seed only."""
    torch.manual_seed(weights_seed)
    model = MODELS.build(dict(type='vop.RetrievalRecognizer', clip=dict(name=clip), **prompts))
    generator = torch.Generator().manual_seed(prompts_seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=generator, std=0.02)
    return model


def outputs(model):
    with torch.no_grad():
        return model.eval()(model.data_preprocessor(make_batch())['inputs'])


def test_state_holds_what_was_trained(tiny_clip, tmp_path):
    """And, where nothing was, the fingerprints alone."""
    fingerprints = {'visual._extra_state', 'text._extra_state'}
    assert build(tiny_clip, prompts={}).state_dict().keys() == fingerprints
    model = build(tiny_clip)
    state = model.state_dict()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert state.keys() == trained.keys() | fingerprints
    assert not any('backbone' in key for key in state)
    assert get_state_dict(model).keys() == state.keys()  # MMEngine's own
    assert tiny_clip in json.loads(bytes(state['visual._extra_state'].tolist()))['clip']
    torch.save(state, tmp_path / 'vop.pth')
    size = sum(4 * p.numel() for p in trained.values())
    assert (tmp_path / 'vop.pth').stat().st_size < size + 12_000


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


def load_by_torch(model, path):
    model.load_state_dict(torch.load(path)['state_dict'], strict=False)


@pytest.mark.parametrize('load', [load_checkpoint, load_by_torch])
def test_other_frozen_weights_are_refused_with_both_names(tiny_clip, tmp_path, load):
    path, other_name = str(tmp_path / 'vop.pth'), tmp_path / 'other-clip.json'
    save_checkpoint(dict(state_dict=build(tiny_clip).state_dict()), path)
    shutil.copy(tiny_clip, other_name)
    load(build(str(other_name)), path)  # the same weights under another name
    with pytest.raises(UserError) as error:
        load(build(str(other_name), weights_seed=1), path)
    assert tiny_clip in str(error.value) and str(other_name) in str(error.value)


@pytest.mark.parametrize('tower', ['visual', 'text'])
def test_one_changed_frozen_tensor_is_noticed(tiny_clip, tower):
    model, other = build(tiny_clip), build(tiny_clip)
    block = getattr(other, tower).backbone.transformer.resblocks[1]
    block.mlp.c_fc.weight.data[100:] += 1e-3
    with pytest.raises(UserError, match='trained on the CLIP'):
        other.load_state_dict(model.state_dict())


def test_the_names_of_a_wrapper_fit(tiny_clip):
    """As MMEngine's DDPStrategy saves them."""
    model = build(tiny_clip)
    checkpoint = dict(state_dict=model.state_dict(prefix='module.'))
    check_state(model, checkpoint, 'wrapped.pth')
    with pytest.raises(UserError, match='prompts'):
        check_state(build(tiny_clip, prompts={}), checkpoint, 'wrapped.pth')


def test_a_missing_prompt_is_not_passed_over(tiny_clip):
    model = build(tiny_clip)
    state = model.state_dict()
    del state['visual.prompts.0.tokens']
    with pytest.raises(RuntimeError, match='visual.prompts.0.tokens'):
        model.load_state_dict(state)


TUNINGS = ['frozen', 'full', 'bias', 'proj', 'partial']


@pytest.mark.parametrize('tuning', TUNINGS)
@pytest.mark.parametrize('trains', [False, True])
def test_requires_grad_changes_no_state(tiny_clip, tuning, trains, logged_warnings):
    """``tuning`` decides what is frozen, once."""
    parts = {k: dict(part, tuning=tuning) for k, part in PROMPTS.items()}
    model = build(tiny_clip, prompts=parts)
    state = copy.deepcopy(model.state_dict())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name in state if not name.endswith('_extra_state')}
    logged_warnings.clear()  # of random weights
    model.requires_grad_(trains)
    again = model.state_dict()
    assert again.keys() == state.keys()
    assert all(again[name].equal(value) for name, value in state.items())
    assert str(model.load_state_dict(state)) == '<All keys matched successfully>'
    # A weight that someone lets train by hand would be lost.
    assert bool(logged_warnings) == (trains and tuning != 'full')


def test_a_model_on_the_same_towers_changes_no_state(tiny_clip):
    towers = open_towers(tiny_clip)
    bias = VideoEncoder(towers, tuning='bias')
    before = bias.state_dict().keys()
    VideoEncoder(towers)  # which freezes them
    assert bias.state_dict().keys() == before


def test_holds_inside_another_module(tiny_clip):
    torch.manual_seed(0)
    encoder = VideoEncoder(clip=dict(name=tiny_clip), prompts=[LEARNED])
    outer = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict(dict(v=encoder)))
    state = outer.state_dict()
    assert state.keys() == {'0.weight', '0.bias', '1.v.prompts.0.tokens', '1.v._extra_state'}
    again = copy.deepcopy(outer)
    again[1]['v'].prompts[0].tokens.data.zero_()
    again.load_state_dict(state)
    assert again[1]['v'].prompts[0].tokens.equal(encoder.prompts[0].tokens)
    assert again.state_dict().keys() == state.keys()
