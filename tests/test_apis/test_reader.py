"""Reading videos in processes that crash and hang."""

import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger

from projects.vop.apis.reader import read_videos

ERRORS = {
    'killed': 'signal 9',
    'ended': 'exit code 3',
    'hanging': 'longer than 2 s',
    'damaged': 'ValueError: no video',
    'missing': 'no such file',
}


def decode(results):
    """Acts by the name of the file, and leaves a mark that it has begun."""
    path = Path(results['filename'])
    path.with_suffix('.begun').touch()
    if path.stem == 'killed':
        os.kill(os.getpid(), signal.SIGKILL)
    elif path.stem == 'ended':
        os._exit(3)
    elif path.stem == 'hanging':
        time.sleep(60)
    elif path.stem == 'damaged':
        raise ValueError('no video')
    return dict(inputs=dict(imgs=torch.full((2, 3, 4, 4), int(path.stem), dtype=torch.uint8)))


@pytest.fixture
def make(tmp_path):
    def make(names):
        for name in names:
            (tmp_path / f'{name}.mp4').touch()
        return [str(tmp_path / f'{name}.mp4') for name in names]

    return make


@pytest.mark.slow
@pytest.mark.parametrize('with_cuda', [False, True], ids=['fork', 'forkserver'])
def test_a_video_that_ends_its_worker_fails_alone(make, monkeypatch, with_cuda):
    monkeypatch.setattr('torch.cuda.is_initialized', lambda: with_cuda)
    names = ['0', 'killed', '1', 'damaged', '2', 'hanging', 'ended', '3', 'missing', '4', '5']
    paths = make(names)
    os.remove(paths[8])
    videos = list(read_videos(paths, decode, num_workers=2, timeout=2, ahead=4))
    assert [video.path for video in videos] == paths
    for name, video in zip(names, videos):
        if name in ERRORS:
            assert video.frames is None and ERRORS[name] in video.error
        else:
            assert video.error is None and (video.frames == int(name)).all()


@pytest.mark.slow
def test_it_reads_few_videos_ahead_and_ends_its_workers(make):
    paths = make(range(20))
    videos = read_videos(paths, decode, num_workers=2, ahead=3)
    assert not multiprocessing.active_children()
    next(videos)
    assert len(multiprocessing.active_children()) == 2
    time.sleep(0.5)
    assert 1 <= len(list(Path(paths[0]).parent.glob('*.begun'))) <= 4
    videos.close()
    assert not multiprocessing.active_children()


def read_here(paths):
    """What is read and what is warned of, in a process of a pool."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    return [video.frames.max() for video in read_videos(paths, decode, 2)], messages


@pytest.mark.slow
def test_a_daemonic_process_reads_itself(make):
    with multiprocessing.get_context('fork').Pool(1) as pool:
        values, messages = pool.apply(read_here, [make(range(3))])
    assert values == [0, 1, 2]
    assert len(messages) == 1 and 'daemonic' in messages[0]
