"""Videos that are cut off are named once, and whole ones never."""

import json

import av
import numpy as np
import pytest
from helpers import ROOT
from mmengine.config import Config
from mmengine.dataset import Compose

from projects.vop.apis.reader import read_videos
from projects.vop.damage import missing_end
from projects.vop.registry import DATASETS

pytestmark = pytest.mark.slow

NOISE = list(np.random.default_rng(0).integers(0, 255, (75, 80, 96, 3), dtype=np.uint8))
# The sound of a video in numbered seconds, and the format and options of its container.
FAST = dict(movflags='faststart')
MADE = {
    'a.mp4': dict(container=FAST),
    'a.mov': dict(container=FAST, sound=3),
    'a.m4v': dict(fmt='mp4', container=FAST, sound=5),
    'a.3gp': dict(codec='mpeg4', container=FAST),
    'fragments.mp4': dict(container=dict(movflags='frag_keyframe+empty_moov'), g='10', sound=3),
    'a.mkv': dict(fmt='matroska', sound=3),
    'long.mkv': dict(fmt='matroska', sound=6),
    'late.mkv': dict(fmt='matroska', start=2),
    'late.mp4': dict(container=FAST, start=2, sound=7),
    'a.webm': dict(codec='libvpx', deadline='realtime'),
    'still.webm': dict(codec='libvpx', deadline='realtime', last=5),
    'still.flv': dict(codec='flv', last=5),
    'a.avi': dict(codec='mpeg4'),
    'long.avi': dict(fmt='avi', codec='mpeg4', sound=6),
    'still.avi': dict(codec='mpeg4', last=5),
    'b-frames.avi': dict(codec='libx264'),
    'a.flv': dict(codec='libx264', sound=3),
}
# Their containers promise nothing.
SILENT = {
    'a.ts': dict(fmt='mpegts', sound=3),
    'a.mpg': dict(fmt='mpeg', codec='mpeg1video'),
    'stream.mpg': dict(fmt='mpeg1video', codec='mpeg1video'),
    'a.ogv': dict(fmt='ogg', codec='libvpx', deadline='realtime'),
    'a.wmv': dict(fmt='asf', codec='wmv2'),
    'live.mkv': dict(fmt='matroska', container=dict(live='1')),
    'live.webm': dict(codec='libvpx', deadline='realtime', container=dict(live='1')),
}


def make(path, codec='libx264', fmt=None, container={}, sound=0, start=0, last=0, **options):
    """Write 3 s of noise, and so many seconds of sound."""
    with av.open(str(path), 'w', format=fmt or path.suffix[1:], options=container) as output:
        video = output.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = 96, 80, 'yuv420p'
        items = []
        for number, picture in enumerate(NOISE):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts = number + 25 * start
            items.append((frame.pts / 25, video, frame))
        if sound:
            audio = output.add_stream('aac' if codec == 'libx264' else 'libmp3lame', rate=44100)
            for pts in range(0, sound * 44100, 1024):
                samples = np.random.default_rng(pts).normal(0, 0.1, (2, 1024)).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples, format='fltp', layout='stereo')
                frame.pts, frame.sample_rate = pts, 44100
                items.append((pts / 44100, audio, frame))
        packets = []
        for _, stream, frame in sorted(items, key=lambda item: item[0]):
            packets += stream.encode(frame)
        packets += [packet for stream in output.streams for packet in stream.encode()]
        if last:  # how long the last frame stays
            packets[-1].duration = round(last / packets[-1].time_base)
        output.mux(packets)
    return path


def read(path):
    """How many frames of a video are there; None if it cannot be read."""
    try:
        with av.open(str(path)) as container:
            return sum(bool(packet.size) for packet in container.demux(video=0)) or None
    except av.FFmpegError:
        return None


@pytest.mark.parametrize('name', [*MADE, *SILENT])
def test_it_is_told_where_the_container_promises_more_and_only_there(tmp_path, name):
    path = make(tmp_path / name, **(MADE | SILENT)[name])
    data, whole = path.read_bytes(), read(path)
    assert whole == len(NOISE) and missing_end(path) is None
    for part in (0.07, 0.2, 0.33, 0.47, 0.6, 0.75, 0.9):
        path.write_bytes(data[: int(part * len(data))])
        left = read(path)
        if left is None or name in SILENT:
            assert left is None or missing_end(path) is None
        elif left < whole - 4 or not name.startswith(('long', 'late')):  # their sound comes last
            assert 'it ends at ' in missing_end(path), part


def test_real_videos_are_whole(shared_data):
    for path in (shared_data / 'videos').iterdir():
        assert missing_end(path) is None


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Folder with a whole video, one that is cut off, and their captions."""
    folder = tmp_path_factory.mktemp('cut')
    make(folder / 'whole.mkv', fmt='matroska')
    data = (folder / 'whole.mkv').read_bytes()
    (folder / 'cut.mkv').write_bytes(data[: len(data) // 2])
    (folder / 'ann.json').write_text(json.dumps({'whole.mkv': ['a', 'b'], 'cut.mkv': ['c', 'd']}))
    return folder


@pytest.mark.parametrize('loader', ['train_dataloader', 'test_dataloader'])
def test_training_and_testing_name_it_once(folder, logged_warnings, loader):
    config = Config.fromfile(ROOT / 'configs/_base_/datasets/didemo.py')
    paths = dict(ann_file='ann.json', data_root=str(folder), data_prefix=dict(video=''))
    dataset = DATASETS.build(dict(config[loader].dataset, **paths))
    for _ in range(2):
        for index in range(len(dataset)):
            assert dataset[index]['inputs']['imgs'].shape[0] == 12
    (message,) = logged_warnings
    assert f'{folder / "cut.mkv"} is cut off: it ends at 1.' in message and 'of 3.0 s' in message


def test_inference_names_it(folder, logged_warnings):
    pipeline = Config.fromfile(ROOT / 'configs/_base_/datasets/didemo.py').test_pipeline
    pipeline = Compose([step for step in pipeline if step.type != 'vop.CLIPTokenize'])
    paths = [str(folder / name) for name in ('whole.mkv', 'cut.mkv')]
    assert [video.error for video in read_videos(paths, pipeline, 0)] == [None, None]
    (message,) = logged_warnings
    assert message.startswith(f'{paths[1]} is cut off')
