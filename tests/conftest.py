"""Shared by all tests: a small CLIP, and real videos."""
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import projects.vop  # noqa: F401
from mmengine.registry import init_default_scope

torch.set_num_threads(2)

# Real videos and annotations, where the machine has them beside the checkout.
SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data'

TINY_CLIP = dict(
    embed_dim=32,
    quick_gelu=True,
    vision_cfg=dict(
        image_size=32, patch_size=16, layers=3, width=64, head_width=16),
    text_cfg=dict(
        context_length=77, vocab_size=49408, width=48, heads=4, layers=3))


@pytest.fixture(scope='session', autouse=True)
def _mmaction_scope():
    init_default_scope('mmaction')


@pytest.fixture(scope='session')
def tiny_clip(tmp_path_factory) -> str:
    """Path of an open_clip JSON config of a CLIP that runs in milliseconds."""
    path = tmp_path_factory.mktemp('clip') / 'tiny-clip.json'
    path.write_text(json.dumps(TINY_CLIP))
    return str(path)


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder with real videos and annotations."""
    if not SHARED.is_dir():
        pytest.skip('no real videos beside this checkout')
    return SHARED


def write_video(path: Path, frames: np.ndarray, fps: int = 8) -> None:
    """Write uint8 RGB frames [f x h x w x 3] as an H.264 mp4."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        for frame in frames:
            frame = av.VideoFrame.from_ndarray(frame, format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope='session')
def video_folder(tmp_path_factory) -> Path:
    """Folder with five noise videos of 20 frames, ``0.mp4`` to ``4.mp4``,
    and ``train.json`` and ``test.json`` with two and three captions each."""
    folder = tmp_path_factory.mktemp('videos')
    rng = np.random.default_rng(0)
    for number in range(5):
        write_video(folder / f'{number}.mp4',
                    rng.integers(0, 255, (20, 48, 64, 3), dtype=np.uint8))
    for split, captions in dict(train=2, test=3).items():
        (folder / f'{split}.json').write_text(
            json.dumps({
                f'{number}.mp4':
                [f'caption {i} of {number}' for i in range(captions)]
                for number in range(5)
            }))
    return folder
