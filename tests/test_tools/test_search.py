"""tools/search.py, run as users run it."""

import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from test_train_and_test import free_port, run

from projects.vop.registry import MODELS
from projects.vop.search import VideoIndex, update_index

ROOT = Path(__file__).resolve().parents[2]

# Ends its process at a video, and notes the others that are encoded.
KILLER = """
import os, signal
from mmcv.transforms import BaseTransform
from projects.vop.search import update
from projects.vop.registry import TRANSFORMS

update.SAVE_VIDEOS = 1

@TRANSFORMS.register_module()
class KillOn(BaseTransform):
    def transform(self, results):
        name = os.path.basename(results['filename'])
        if name == os.environ.get('KILL_ON'):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(os.environ['LOG'], 'a') as log:
            log.write(name + ' ')
        return results
"""


@pytest.fixture(scope='module')
def tool():
    """The tool as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'tools')
        yield importlib.import_module('search')


@pytest.fixture(scope='module')
def model(retrieval_config, tmp_path_factory):
    """Writes a config and a checkpoint; gives the arguments that name them."""
    folder = tmp_path_factory.mktemp('model')
    config = retrieval_config()
    config.dump(folder / 'config.py')

    def write(seed=0):
        torch.manual_seed(seed)
        path = folder / f'{seed}.pth'
        torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), path)
        return ['--config', str(folder / 'config.py'), '--checkpoint', str(path)]

    return write


@pytest.fixture(scope='module')
def index(tool, model, video_folder, tmp_path_factory):
    """An index of five videos."""
    path = tmp_path_factory.mktemp('tool') / 'index'
    tool.main(['index', str(video_folder), str(path), *model(), '--num-workers', '0'])
    return str(path)


def printed(tool, capsys, *arguments):
    capsys.readouterr()
    tool.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def answers(tool, capsys, *arguments):
    return json.loads(printed(tool, capsys, *arguments, '--json'))


def scores(hits):
    return [hit['score'] for hit in hits]


def test_a_text_finds_videos(tool, capsys, index, video_folder):
    out = printed(tool, capsys, 'query', index, 'a dog', '--topk', 2)
    title, *lines = out.splitlines()
    assert title == 'a dog' and len(lines) == 2
    (answer,) = answers(tool, capsys, 'query', index, 'a dog', '--topk', 2)
    opened = VideoIndex.open(index)
    inferencer = opened.load_inferencer('cpu', show_progress=False)
    expected = opened.search(inferencer.encode_texts(['a dog']), 2)[0]
    assert answer == dict(
        text='a dog',
        hits=[
            dict(video=hit.name, path=str(video_folder / hit.name), score=hit.score)
            for hit in expected
        ],
    )
    for place, (line, hit) in enumerate(zip(lines, expected), 1):
        assert line.split() == [str(place), f'{hit.score:.4f}', hit.name]


def test_what_is_given_says_what_is_found(tool, capsys, index, video_folder):
    clip = video_folder / '3.mp4'
    texts = ['a dog', 'a cat', 'a house']
    several = answers(tool, capsys, 'query', index, *texts)
    assert [answer['text'] for answer in several] == texts
    assert all(len(answer['hits']) == 5 for answer in several)
    (alike,) = answers(tool, capsys, 'query', index, '--video', clip)
    assert alike['video'] == str(clip)
    assert alike['hits'][0]['video'] == '3.mp4'
    assert alike['hits'][0]['score'] == pytest.approx(1, abs=1e-5)
    # Texts are ranked for the video, wherever they stand.
    (ranked,) = answers(tool, capsys, 'query', index, *texts[:1], '--video', clip, *texts[1:])
    assert {hit['text'] for hit in ranked['hits']} == set(texts)
    assert scores(ranked['hits']) == sorted(scores(ranked['hits']), reverse=True)
    of_clip = {
        answer['text']: hit['score']
        for answer in several
        for hit in answer['hits']
        if hit['video'] == '3.mp4'
    }
    for hit in ranked['hits']:
        assert hit['score'] == pytest.approx(of_clip[hit['text']], abs=1e-5)


def test_a_text_of_2000_words_is_cut(tool, capsys, index, logged_warnings, monkeypatch):
    for handler in MMLogger.get_current_instance().handlers:
        if type(handler) is logging.StreamHandler:
            monkeypatch.setattr(handler, 'stream', sys.stdout)
    # The warning is not among the JSON.
    (answer,) = answers(tool, capsys, 'query', index, 'dog ' * 2000)
    assert len(answer['hits']) == 5
    assert any('longer than the' in text for text in logged_warnings)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'say what to find'),
        (['  '], 'has no words'),
        (['a dog', '--topk', '0'], 'must be 1 or more'),
        (['a dog', '--topk', 'x'], 'must be 1 or more, not x'),
        (['a dog', '--nonsense'], 'unrecognized arguments: --nonsense'),
    ],
)
def test_bad_usage(tool, capsys, index, arguments, message):
    with pytest.raises(SystemExit) as stop:
        tool.main(['query', index, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_faults_are_said_in_a_sentence(tool, index, model, video_folder, tmp_path):
    broken = tmp_path / 'broken.mp4'
    broken.write_bytes(b'no video')
    damaged = Path(shutil.copytree(index, tmp_path / 'damaged'))
    next(damaged.glob('config-*.py')).write_text('model = (')
    for arguments, message in (
        (['query', damaged, 'a dog'], r'config-\w+.py is damaged'),
        (['index', video_folder, damaged], 'is damaged, or no config'),
        (['query', index, 'a dog', '--device', 'none'], "device 'none'"),
        (['query', tmp_path, 'a dog'], 'There is no index in'),
        (['query', index, '--video', broken], 'broken.mp4 cannot be read'),
        (['query', index, 'a dog', *model(seed=1)], 'another model'),
        (['index', video_folder, tmp_path / 'new'], 'There is no index'),
        (['index', tmp_path / 'none', index], 'There is no folder'),
        (['info', tmp_path / 'none'], 'There is no index in'),
    ):
        with pytest.raises(SystemExit, match=message):
            tool.main([str(argument) for argument in arguments])
    # The model of the index may be named, too.
    tool.main(['query', index, 'a dog', *model()])


def test_an_approximate_search_is_said(tool, capsys, index, video_folder, tmp_path):
    large = shutil.copytree(index, tmp_path / 'index')
    update_index(
        VideoIndex.open(index).load_inferencer('cpu', show_progress=False),
        video_folder,
        large,
        num_workers=0,
        exact_below=5,
    )
    # So that it can be told which of the two was searched.
    embeddings = np.load(VideoIndex.open(large).files['embeddings'], 'r+')
    embeddings *= -1
    hits = []
    for how in ((), ('--exact',)):
        capsys.readouterr()
        tool.main(['query', str(large), 'a dog', '--json', *how])
        out, err = capsys.readouterr()
        hits.append([hit['video'] for hit in json.loads(out)[0]['hits']])
        assert ('Search is approximate: IVF with' in err) == (not how)
    assert len(hits[0]) == 5 and hits[0] == hits[1][::-1]
    assert 'IVF with' in printed(tool, capsys, 'info', large)


def test_an_update_needs_no_model(tool, capsys, index, video_folder, tmp_path):
    """The config and the checkpoint may be gone by then."""
    moved = shutil.copytree(index, tmp_path / 'index')
    videos = shutil.copytree(video_folder, tmp_path / 'videos')
    (videos / '0.mp4').unlink()
    (videos / '1.mp4').write_bytes(b'no video')
    name = os.fsdecode(b'caf\xe9.mp4')
    shutil.copy(videos / '2.mp4', videos / name)
    out = printed(tool, capsys, 'index', videos, moved, '--num-workers', 0)
    assert '1 videos added, 0 encoded again, 1 removed, 3 kept, 1 unreadable' in out
    assert '  1.mp4: ' in out and f'{moved / "failed.json"} lists' in out
    out = printed(tool, capsys, 'info', moved)
    assert f'4 videos of {videos}. Search is exact.' in out
    assert '32 numbers' in out and '1 videos could not be read' in out
    out = printed(tool, capsys, 'query', moved, 'a dog')
    assert 'caf\\xe9.mp4' in out
    (answer,) = answers(tool, capsys, 'query', moved, 'a dog')
    assert name in [hit['video'] for hit in answer['hits']]


def test_two_processes_killed_and_started_again(tool, model, video_folder, tmp_path):
    """What was saved is not encoded again, and all is as from one process."""
    (tmp_path / 'killer.py').write_text(KILLER)
    config, checkpoint = model()[1::2]
    hooked, log = tmp_path / 'hooked.py', tmp_path / 'log'
    cfg = Config.fromfile(config)
    cfg.custom_imports = dict(imports=['projects.vop', 'killer'])
    cfg.test_dataloader.dataset.pipeline.insert(0, dict(type='vop.KillOn'))
    cfg.dump(hooked)
    videos, index = tmp_path / 'videos', tmp_path / 'index'
    videos.mkdir()
    for number in range(12):
        shutil.copy(video_folder / f'{number % 5}.mp4', videos / f'{number:02}.mp4')
    largest = sorted(sorted(videos.iterdir()), key=lambda path: -path.stat().st_size)
    command = [
        'tools/dist_search.sh',
        str(videos),
        str(index),
        '2',
        '--batch-size',
        '1',
        '--num-workers',
        '0',
    ]
    env = dict(PATHS=[str(tmp_path)], LOG=str(log), PORT=free_port())
    start = time.monotonic()
    output = run(
        *command,
        '--config',
        str(hooked),
        '--checkpoint',
        checkpoint,
        env=dict(env, KILL_ON=largest[7].name),
        ok=False,
    )
    assert time.monotonic() - start < 120
    assert 'SIGKILL' in output
    saved = {
        name
        for part in index.glob('parts/*/*.npz')
        for name in json.loads(np.load(part)['names'].tobytes())
    }
    assert len(saved) < 12
    # Also what the process had finished that was killed.
    assert {largest[place].name for place in (1, 3, 5)} <= saved
    with pytest.raises(FileNotFoundError, match=f'{len(saved)} of 12 videos are saved'):
        VideoIndex.open(index)

    log.unlink()
    output = run(*command, env=dict(env))
    assert '12 videos added, 0 encoded again' in output
    encoded = log.read_text().split()
    assert sorted(encoded) == sorted({path.name for path in videos.iterdir()} - saved)

    alone = tmp_path / 'alone'
    tool.main(['index', str(videos), str(alone), *model(), '--num-workers', '0'])
    one, two = VideoIndex.open(alone), VideoIndex.open(index)
    assert one.names == two.names
    assert np.allclose(one.embeddings, two.embeddings, atol=1e-6)


def test_slurm_script(tmp_path):
    """With a stand-in for ``srun`` that prints what it would start."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"')
    srun.chmod(0o755)
    done = subprocess.run(
        [ROOT / 'tools/slurm_search.sh', 'part', 'job', 'videos', 'index', '--batch-size', '4'],
        env=dict(os.environ, GPUS='4', PATH=f'{tmp_path}:{os.environ["PATH"]}'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for text in (
        '-p part --job-name=job --gres=gpu:4 --ntasks=4',
        'tools/search.py index videos index --launcher slurm --batch-size 4',
    ):
        assert text in done.stdout


@pytest.mark.parametrize('script', ['dist_search.sh', 'slurm_search.sh'])
def test_launchers_say_how_they_are_used(script):
    assert run(f'tools/{script}', ok=False).startswith('usage:')


def test_the_benchmark_compares_what_it_says(capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'analysis')
    benchmark = importlib.import_module('benchmark_search')
    monkeypatch.setattr(benchmark, 'alone', lambda function, *args: function(*args))
    monkeypatch.setattr(
        sys,
        'argv',
        ['benchmark_search.py', '--size', '3000', '--width', '16', '--queries', '20', '--hnsw'],
    )
    benchmark.main()
    out = capsys.readouterr().out
    assert '3,000 synthetic videos of 16 numbers' in out
    assert re.search(r'IVF with 219 lists, of which \d+ are read', out)
    rows = [
        line.strip('| ').split(' | ')
        for line in out.splitlines()
        if line.startswith(('| exact', '| IVF', '| HNSW'))
    ]
    assert [row[0] for row in rows] == ['exact', 'IVF', 'HNSW']
    for row in rows:
        assert float(row[1]) > 0 and float(row[2].rstrip('x')) > 0
        assert all(0.85 <= float(recall) <= 1 for recall in row[3:5])
    assert rows[0][2:5] == ['1x', '1.000', '1.000']
