"""An index that somebody else made: it is data, and opening it runs nothing of it."""

import copy
import json
import os
import pickle
import shutil

import faiss
import numpy as np
import pytest
import torch
from helpers import Code
from mmengine.config import Config

from projects.vop.apis import VoPInferencer
from projects.vop.engine import open_config, plain_config
from projects.vop.errors import UserError
from projects.vop.registry import MODELS
from projects.vop.search import VideoIndex, model_files, update_index

MODULE = 'module_of_a_stranger'
OPENED = dict(type='mmaction.DecordInit', io_backend='memcached', server_list_cfg='', client_cfg='')


@pytest.fixture(scope='module')
def made(retrieval_config, video_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp('made') / 'index'
    inferencer = VoPInferencer(retrieval_config(), None, 'cpu', show_progress=False)
    update_index(inferencer, video_folder, path, num_workers=1, exact_below=1)
    return path


@pytest.fixture
def index(made, tmp_path, monkeypatch):
    """A copy, among files with code that Python would find by name."""
    path = shutil.copytree(made, tmp_path / 'index')
    for folder in (path, tmp_path):
        for name in (MODULE, 'mc', 'stranger/__init__', 'stranger/registry', 'vop/registry'):
            file = folder / f'{name}.py'
            file.parent.mkdir(exist_ok=True)
            file.write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    torch.save(dict(state_dict=Code(tmp_path / 'ran')), tmp_path / 'code.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend('')  # as in a notebook
    return path


def use(path):
    """Open an index and its model by each way that there is."""
    index = VideoIndex.open(path)
    index.load_inferencer('cpu', show_progress=False).encode_videos(
        [index.path(name) for name in index.names[:1]], num_workers=0
    )


def edit(path, place, value):
    data = json.loads(path.read_text())
    *parents, last = place
    part = data
    for key in parents:
        part = part[key]
    part[last] = value
    path.write_text(json.dumps(data))


CODE_IN_A_CONFIG = [
    (['custom_imports'], dict(imports=[MODULE])),
    (['_base_'], f'{MODULE}.py'),
    (['default_scope'], 'stranger'),
    (['model', 'type'], 'subprocess.run'),
    (['model', 'type'], f'{MODULE}.Model'),
    (['model', 'type'], 'stranger.Model'),
    (['model', 'type'], ['vop.RetrievalRecognizer']),
    (['model', '_scope_'], 'stranger'),
    (['model', 'loss'], dict(type='os.system', command='touch ran')),
    (['model', 'data_preprocessor'], dict(type='builtins.exec', object=f'import {MODULE}')),
    (['model', 'visual', 'prompts', 0, 'type'], MODULE),
    (['pipeline', 0], dict(type=f'{MODULE}.Transform')),
    (['pipeline', 0], dict(type='mmengine.RandomApply', transforms=[dict(type='os.getcwd')])),
    (['pipeline', 0], dict(OPENED, sys_path=os.curdir)),
    (['model', 'clip', 'pretrained'], 'index/mc.py'),
    (['model', 'clip', 'name'], 'local-dir:index'),
    (['pipeline', 0], dict(type='mmengine.LoadImageFromFile', backend_args=dict(backend='x'))),
    (['model', 'loss'], dict(type='mmaction.OmniResNet', pretrain_2d='code.pth')),
    (['model', 'clip', 'cache_dir'], 'index'),
]


def test_of_other_packages_only_what_is_harmless_is_made(index):
    """OmniResNet opens a checkpoint in its constructor."""
    path = next(index.glob('config-*.json'))
    edit(path, ['model', 'loss'], dict(type='mmaction.OmniResNet'))
    with pytest.raises(UserError, match=r"model\.loss\.type: 'mmaction.OmniResNet' is not among"):
        open_config(path)
    edit(path, ['model', 'loss'], dict(type='mmaction.SimpleMeanAdapter'))
    edit(path, ['pipeline', 0, 'backend_args'], dict(backend='local'))
    open_config(path)


def test_lists_in_another_file_are_not_opened(index, tmp_path):
    """FAISS would map whichever file the index names."""
    path, opened = next(index.glob('ivf-*')), VideoIndex.open(index)
    held = faiss.read_index(str(path))
    lists = faiss.OnDiskInvertedLists(held.nlist, held.code_size, str(tmp_path / 'another'))
    held.reset()
    held.replace_invlists(lists)
    held.add_with_ids(np.array(opened.embeddings), opened.ids)
    flat = faiss.IndexIDMap2(faiss.IndexFlatIP(held.d))
    for each, reason in ((held, 'another file'), (flat, 'IndexIDMap2')):
        faiss.write_index(each, str(path))
        edit(index / 'index.json', ['files', 'ivf'], path.stat().st_size)
        with pytest.raises(UserError, match=f'{path.name} .*{reason}'):
            VideoIndex.open(index)


@pytest.mark.parametrize('place, value', CODE_IN_A_CONFIG, ids=lambda value: str(value)[-30:])
def test_code_in_a_config_does_not_run(index, tmp_path, run_tool, video_folder, place, value):
    path = next(index.glob('config-*.json'))
    edit(path, place, value)
    arguments = ['query', index, 'a dog'], ['index', video_folder, index]
    for way in (
        lambda: use(index),
        lambda: VoPInferencer(path, device='cpu'),
        *(lambda each=each: run_tool('tools/search.py', *each) for each in arguments),
    ):
        with pytest.raises(UserError, match=path.name) as refused:
            way()
        assert len(str(refused.value)) < 600 and '\n' not in str(refused.value)
    assert not (tmp_path / 'ran').exists()


def test_a_config_is_what_it_was(retrieval_config, index):
    """Whatever its text looks like, and with classes in place of names."""
    text = '{{$HOME}} {{ fileDirname }} ${HOME} $HOME'
    config = retrieval_config(
        text=dict(retrieval_config().model.text, adapters=[], odd=(1, [text]))
    )
    held = plain_config(config)
    assert held['model']['text']['odd'] == dict(tuple=[1, [text]])
    path = index / 'config-1.json'
    path.write_text(json.dumps(held))
    opened = open_config(path)
    assert opened.model.text.odd == (1, [text])
    assert opened.model.type is MODELS.get('vop.RetrievalRecognizer')
    assert plain_config(opened) == plain_config(Config(opened.to_dict())) == held


PARTS = ['videos', 'embeddings', 'ivf']
NO_INDEX = [
    *([key] for key in ('generation', 'videos', 'moments', 'width', 'model_fingerprint')),
    *([key] for key in ('video_dir', 'files', 'window', 'measured', 'ivf')),
    *(['files', part] for part in PARTS),
    *(['ivf', key] for key in ('nprobe', 'trained_for', 'candidates')),
    *(['measured', key] for key in ('moments', 'next_id', 'threshold', 'recall')),
    ['measured', 'recall', 'texts'],
    ['files', 'more'],
]
# Of the right type, nothing follows from these but what is printed, or found.
SAYS_NOTHING = ('video_dir', 'recall', 'texts', 'threshold', 'window')
VALUES = [None, [], {}, True, -1, 10**30, 0.5, '../../x', ['../../x', 1], {'a': [{}]}, 'x' * 10**6]


@pytest.mark.parametrize('place', NO_INDEX, ids='.'.join)
def test_values_that_cannot_be_are_refused(index, place):
    path = index / 'index.json'
    before, whole = path.read_bytes(), json.loads(path.read_bytes())
    held = copy.deepcopy(whole)
    for key in place:
        held = held.get(key) if isinstance(held, dict) else None
    for value in VALUES:
        if type(value) is type(held) and place[-1] in SAYS_NOTHING:
            continue
        edit(path, place, value)
        with pytest.raises(UserError, match=str(index)) as refused:
            VideoIndex.open(index)
        assert len(str(refused.value)) < 600 and '\n' not in str(refused.value)
    path.write_bytes(before)
    VideoIndex.open(index)


def encode(names):
    return np.frombuffer(json.dumps(names).encode(), np.uint8)


def rewrite(index, save=np.savez, **arrays):
    """Change what the file of the videos holds."""
    path = next(index.glob('videos-*.npz'))
    with np.load(path) as file:
        arrays = dict(file) | arrays
    save(path, **arrays)
    edit(index / 'index.json', ['files', 'videos'], path.stat().st_size)
    return path


ARRAYS = [
    dict(names=encode(['a'] * 4)),
    dict(names=encode(dict.fromkeys('abcde'))),
    dict(stamps=np.zeros((5, 3), np.int64)),
    dict(stamps=np.zeros((5, 2))),
    dict(counts=np.array([1, 1, 1, 2, 0])),
    dict(counts=np.array([1, 1, 1, 2**62, 2 - 2**62])),
    dict(counts=np.array([1, 1, 2, 1, 1])),
    dict(counts=np.full((5, 1), 1)),
    dict(spans=np.zeros((5, 2), np.float32)),
    dict(spans=np.zeros((6, 2))),
    dict(spans=np.full((5, 2), np.nan)),
    dict(spans=np.full((5, 2), [1, 0.0])),
    dict(spans=np.full((5, 2), [0, np.inf])),
    dict(spans=np.full((5, 2), [-1, 1.0])),
    dict(more=np.array([0, 1, 2, 3, 2**62])),
    dict(more=np.array([0, 1, 2, 4, 3])),
    dict(more=np.array([-1, 1, 2, 3, 4])),
    dict(more=np.arange(6)),
    dict(more=np.arange(5.0)),
    dict(save=np.savez_compressed),
]


@pytest.mark.parametrize('arrays', ARRAYS, ids=lambda arrays: '-'.join(arrays))
def test_arrays_that_cannot_be_are_refused(index, arrays):
    path = rewrite(index, **arrays)
    with pytest.raises(UserError, match=path.name) as refused:
        VideoIndex.open(index)
    assert len(str(refused.value)) < 600 and '\n' not in str(refused.value)


def deep(kind):
    return '[' * 10**5 if kind == 'list' else '{"a":' * 10**5


JSON = [
    '',
    '[]',
    '{}',
    'null',
    '1',
    '"x"',
    '[1]',
    '[["a"]]',
    '9' * 5000,
    deep('list'),
    deep('dict'),
]


@pytest.mark.parametrize('name', ['index.json', 'config-*.json', 'videos-*.npz', 'failed.json'])
def test_json_of_another_kind_is_refused(index, name, run_tool):
    path = next(index.glob(name))
    for text in JSON:
        if (name, text) == ('failed.json', '{}'):
            continue
        if name.startswith('videos'):
            rewrite(index, names=np.frombuffer(text.encode(), np.uint8))
        else:
            path.write_text(text)
        with pytest.raises(UserError, match=str(path)) as refused:
            run_tool(
                'tools/search.py',
                *(['info', index] if name != 'config-*.json' else ['query', index, 'a']),
            )
        assert len(str(refused.value)) < 600 and '\n' not in str(refused.value)


@pytest.mark.parametrize('name', ['../3.mp4', '/3.mp4', 'a/../../3.mp4', '..', 'a\0b.mp4'])
def test_names_stay_in_the_folder_of_the_videos(index, name):
    names = ['a.mp4', '..b.mp4', 'c../d.mp4', 'e/..f.mp4']
    rewrite(index, names=encode([*names, 'g.mp4']))
    VideoIndex.open(index)
    path = rewrite(index, names=encode([*names, name]))
    with pytest.raises(UserError, match=path.name):
        VideoIndex.open(index)


def save_zip(path, code):
    torch.save(dict(state_dict=dict(a=code)), path)


def save_npz(path, code):
    with open(path, 'wb') as file:
        np.savez(file, np.array([code], dtype=object))


def save_npy(path, code):
    with open(path, 'wb') as file:
        np.save(file, np.array([code], dtype=object))


def save_pickle(path, code):
    path.write_bytes(pickle.dumps(code))


@pytest.mark.parametrize('save', [save_zip, save_npz, save_npy, save_pickle])
def test_a_pickle_in_any_file_does_not_run(index, tmp_path, save):
    for path in sorted(index.glob('*-*')):
        whole, manifest = path.read_bytes(), (index / 'index.json').read_bytes()
        save(path, Code(tmp_path / 'ran'))
        what = path.name.split('-')[0]
        if what in PARTS:
            edit(index / 'index.json', ['files', what], path.stat().st_size)
        with pytest.raises(UserError, match=path.name):
            use(index)
        path.write_bytes(whole)
        (index / 'index.json').write_bytes(manifest)
    assert not (tmp_path / 'ran').exists()
    use(index)


def test_a_clip_that_came_along_is_not_opened(index):
    """TorchScript, which OpenAI's weights are, is code."""
    path = next(index.glob('config-*.json'))
    edit(path, ['model', 'clip', 'pretrained'], str(path))
    with pytest.raises(UserError, match='a file of the index'):
        use(index)


def test_what_is_no_file_is_refused(index):
    """A pipe would let it wait for ever."""
    path = next(index.glob('config-*.json'))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=path.name):
        VideoIndex.open(index)


ABSURD = [
    (['model', 'visual', 'prompts', 0, 'length'], 1 << 60),
    (['model', 'visual', 'prompts', 0, 'length'], 'x'),
    (['model', 'visual', 'prompts'], 5),
    (['model', 'clip'], None),
    (['model', 'type'], 'mmengine.bilinear'),
    (['pipeline', 0], 5),
    (['pipeline', 1], dict(type='mmaction.UniformSample', nothing=1)),
    (['model', 'visual', 'prompts'], json.loads('[' * 600 + ']' * 600)),
]


@pytest.mark.parametrize('place, value', ABSURD, ids=lambda value: str(value)[-30:])
def test_a_model_that_cannot_be_made_is_refused(index, run_tool, video_folder, place, value):
    path = next(index.glob('config-*.json'))
    edit(path, place, value)
    with pytest.raises(UserError, match=str(index)):
        use(index)
    with pytest.raises(UserError, match=path.name) as refused:
        run_tool('tools/search.py', 'index', video_folder, index)
    assert len(str(refused.value)) < 600


def test_an_index_of_the_old_format_stays_and_says_how_to_be_made_anew(index, video_folder):
    edit(index / 'index.json', ['format'], 2)
    next(index.glob('config-*.json')).rename(index / 'config-0.py')
    before = {path.name: path.read_bytes() for path in index.glob('*-*')}
    for way in (use, model_files):
        with pytest.raises(UserError, match=f'search.py index {video_folder} ANOTHER_FOLDER'):
            way(index)
    assert {path.name: path.read_bytes() for path in index.glob('*-*')} == before
