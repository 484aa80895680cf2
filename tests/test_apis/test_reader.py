"""Reading videos in processes that crash and hang."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from projects.vop.apis.reader import read_videos

ACTS = dict(
    killed=lambda: os.kill(os.getpid(), signal.SIGKILL),
    ended=lambda: os.kill(os.getpid(), signal.SIGALRM),
    hanging=lambda: time.sleep(60),
)


def decode(results):
    """Acts by the name of the file, and leaves a mark that it has begun."""
    path = Path(results['filename'])
    path.with_suffix(f'.{os.getpid()}').touch()
    ACTS.get(path.stem, int)()
    return dict(inputs=dict(imgs=torch.full((2, 3, 4, 4), int(path.stem), dtype=torch.uint8)))


def make(folder, names):
    for name in names:
        (folder / f'{name}.mp4').touch()
    return [str(folder / f'{name}.mp4') for name in names]


@pytest.mark.slow
def test_a_video_that_ends_its_worker_fails_alone(tmp_path):
    paths = make(tmp_path, ['0', 'killed', '1', 'damaged', 'hanging', 'ended', '2', '3'])
    paths.insert(6, str(tmp_path / 'missing.mp4'))
    videos = list(read_videos(paths, decode, num_workers=2, timeout=5, ahead=4))
    assert [video.path for video in videos] == paths
    assert [int(v.frames.max()) for v in videos if not v.error] == [0, 1, 2, 3]
    reasons = ['signal 9', 'ValueError', 'longer than 5 s', 'signal 14', 'no such file']
    errors = [video.error for video in videos if video.frames is None]
    assert all(reason in error for reason, error in zip(reasons, errors, strict=True))


def test_names_that_begin_as_addresses_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('take:1.mp4').touch()

    def decode(results):
        assert Path(results['filename']).is_absolute()
        return dict(inputs=dict(imgs=torch.zeros(1)))

    (video,) = read_videos(['take:1.mp4'], decode, num_workers=0)
    assert video.path == 'take:1.mp4' and video.error is None


@pytest.mark.slow
def test_it_reads_few_videos_ahead_and_ends_its_workers(tmp_path):
    videos = read_videos(make(tmp_path, range(20)), decode, num_workers=2, ahead=3)
    next(videos)
    time.sleep(0.5)
    assert len(multiprocessing.active_children()) == 2
    assert len(list(tmp_path.glob('*'))) <= 20 + 4
    videos.close()
    assert not multiprocessing.active_children()


def read_here(paths):
    videos = list(read_videos(paths, decode, 2, timeout=5))
    return [video.error or int(video.frames.max()) for video in videos]


@pytest.mark.slow
def test_a_daemonic_process_is_protected_too(tmp_path):
    with multiprocessing.get_context('fork').Pool(1) as pool:
        values = pool.apply(read_here, [make(tmp_path, ['0', 'killed', 'hanging', '1'])])
    assert values[::3] == [0, 1] and 'signal 9' in values[1] and 'longer than 5 s' in values[2]
