"""Shared by all tests: a small CLIP, and real videos."""

import gc
import importlib.util
import json
import logging
import re
import signal
import sys
import threading
from collections import Counter
from functools import cache
from multiprocessing import active_children
from pathlib import Path

import av
import numpy as np
import open_clip
import pytest
import torch
from helpers import ROOT, TINY_CLIP, forking_python, save_clip
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn
from tqdm import tqdm

from projects.vop.compat import fresh_instances
from projects.vop.isolation import FORKS

torch.set_num_threads(1)  # the models are tiny, and threads would wait
# tqdm's own lock is shared with forked processes, and stays locked by one that is killed.
tqdm.set_lock(threading.RLock())
# A shell that starts the tests in the background has Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Real videos and annotations, where the machine has them beside the checkout.
SHARED = ROOT.parent / 'shared' / 'data'


# Of the package, these execute nothing that others do not, and to measure coverage would take
# half as long again.
UNMEASURED = re.compile(
    r'test_(docs|benchmark_\w+|mix|quickstart|reproduce|compress_videos|profile_training)\.py'
    '|test_(a_clip_of_open_clip_by_name|the_real_size_converted|a_compiled_model|two_processes_train'
    '|the_page_of_clips|the_paper_column|compiled_it_is)'
)


def pytest_collection_modifyitems(items):
    """Files with slow tests first: none is left for one process alone at the end."""
    for item in items:
        if UNMEASURED.search(item.nodeid):
            item.add_marker('no_cover')  # of pytest-cov
    slow = Counter(item.path for item in items if item.get_closest_marker('slow'))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope='module', autouse=True)
def _collected():
    """The processes in which data sets read end when these are collected.

    What is left stays, such as what is imported, and need not be looked at by each collection.
    """
    gc.freeze()
    gc.enable()
    yield
    gc.collect()


@pytest.fixture(scope='module', autouse=True)
def _mmaction_scope():
    """In which MMEngine has no logger left by another file, whose log may be closed."""
    with fresh_instances():
        init_default_scope('mmaction')
        yield


@pytest.fixture(scope='session', autouse=True)
def _default_surroundings():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('DATA_ROOT', raising=False)  # whatever the user works with
        # To lay out a config takes longer than to train a few steps.
        lay_out = 'mmengine.config.config.FormatCode'  # of which onedl-mmengine has none
        patch.setattr(lay_out, lambda text, **kwargs: (text, None), raising=False)
        patch.setattr('open_clip.get_tokenizer', cache(open_clip.get_tokenizer))
        yield


@pytest.fixture(scope='module')
def read_here():
    """Data sets read in this process: one of their own for each takes longer than few videos do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('projects.vop.datasets.video_text.FORKS', False)
        yield


@pytest.fixture(scope='session')
def tiny_clip(tmp_path_factory) -> str:
    """Path of an open_clip JSON config of a CLIP that runs in milliseconds."""
    path = tmp_path_factory.mktemp('clip') / 'tiny-clip.json'
    path.write_text(json.dumps(TINY_CLIP))
    return str(path)


@pytest.fixture(scope='session')
def write_archive():
    """Writes a CLIP as OpenAI did: a TorchScript archive with weights in half
    precision, the names of ``open_clip.CLIP``, and three integers."""

    def write(clip, path) -> None:
        root = nn.Module()
        for name, value in clip.state_dict().items():
            *parents, leaf = name.split('.')
            module = root
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.register_parameter(leaf, nn.Parameter(value.half()))
        root.register_buffer('input_resolution', torch.tensor(32))
        root.register_buffer('context_length', torch.tensor(77))
        root.register_buffer('vocab_size', torch.tensor(49408))
        torch.jit.save(torch.jit.script(root), str(path))

    return write


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder with real videos and annotations."""
    if not SHARED.is_dir():
        pytest.skip('no real videos beside this checkout')
    return SHARED


@pytest.fixture(scope='session')
def write_video():
    """Writes an H.264 video of noise, the same each time."""

    def write(path, num_frames, height=50, width=50, **options) -> None:
        noise = np.random.default_rng(0).integers(
            0, 255, (num_frames, height, width, 3), dtype=np.uint8
        )
        with av.open(str(path), 'w', options=options) as container:
            stream = container.add_stream('libx264', rate=8)
            stream.height, stream.width = height, width
            stream.pix_fmt = 'yuv420p'
            for frame in noise:
                frame = av.VideoFrame.from_ndarray(frame, format='rgb24')
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    return write


@pytest.fixture(scope='session')
def video_folder(tmp_path_factory, write_video) -> Path:
    """Folder with five videos of 20 frames, ``0.mp4`` to ``4.mp4``, and
    ``train.json`` and ``test.json`` with two and three captions each."""
    folder = tmp_path_factory.mktemp('videos')
    for number in range(5):
        # Of several sizes, so that the videos differ.
        write_video(folder / f'{number}.mp4', 20, 48, 64 + 16 * number)
    for split, captions in dict(train=2, test=3).items():
        (folder / f'{split}.json').write_text(
            json.dumps(
                {
                    f'{number}.mp4': [f'caption {i} of {number}' for i in range(captions)]
                    for number in range(5)
                }
            )
        )
    return folder


@pytest.fixture(scope='session')
def retrieval_config(tiny_clip, video_folder):
    """Makes a config of a method on MSR-VTT that reads ``video_folder``."""
    weights = save_clip(tiny_clip, video_folder / 'tiny-clip.pt')

    def make(method='vop', **model):
        config = Config.fromfile(ROOT / f'configs/{method}_msrvtt.py')
        config.model.clip = dict(name=tiny_clip, pretrained=weights)
        config.model.visual.num_frames = 4
        for key, value in model.items():
            config.model[key] = value
        config.test_dataloader.dataset.update(
            ann_file='test.json', data_root=str(video_folder), data_prefix=dict(video='')
        )
        for step in config.test_dataloader.dataset.pipeline:
            if step.type == 'UniformSample':
                step.clip_len = 4
            elif step.type == 'Resize':
                step.scale = (-1, 32)
            elif step.type == 'CenterCrop':
                step.crop_size = 32
        config.test_dataloader.update(num_workers=0, persistent_workers=False)
        return config

    return make


@pytest.fixture
def with_classes(tmp_path, monkeypatch):
    """Writes a config in MMEngine's pure Python style, of subclasses that no registry knows."""
    rooms = ('datasets', 'engine', 'evaluation', 'models')

    def write(config) -> Path:
        ours = r"'vop\.(\w+)'"
        names = sorted(set(re.findall(ours, config.pretty_text)))
        code = [f'from projects.vop.{room} import *' for room in rooms]
        code += [f'class My{name}({name}): pass' for name in names]
        (tmp_path / 'mine.py').write_text('\n'.join(code))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, 'mine', raising=False)
        path = tmp_path / 'pure_python.py'
        imports = ', '.join(f'My{name}' for name in names)
        text = re.sub(ours, r'My\1', config.pretty_text)
        path.write_text(f'from mine import {imports}\n{text}')
        return path

    return write


@pytest.fixture
def run_tool(monkeypatch):
    """Runs a tool in this process: a new one takes seconds to start."""
    monkeypatch.setenv('LOCAL_RANK', '0')  # which some tools set

    def run(path, *arguments) -> None:
        spec = importlib.util.spec_from_file_location(f'{Path(path).stem}_tool', ROOT / path)
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        try:
            with fresh_instances():
                tool.main()
        finally:
            if active_children():
                gc.collect()  # data sets, whose processes would stay

    return run


@pytest.fixture
def forked_python():
    """Path of what does as Python does, without the seconds of its imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('projects.vop.datasets.video_text.FORKS', FORKS)  # whatever is done here
        with forking_python() as python:
            yield python


@pytest.fixture
def logged_warnings():
    """Messages of the warnings that MMEngine's logger gets."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
