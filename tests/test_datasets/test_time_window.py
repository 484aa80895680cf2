"""Windows of time: which frames of a video are used."""

import json
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose

from projects.vop.datasets import TimeWindow
from projects.vop.errors import UserError, VideoReadError
from projects.vop.registry import DATASETS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FRAMES, RATE = 80, 2  # of the video in grey: 40 seconds
STEP = 3  # between the grey values of neighbouring frames


@pytest.fixture(scope='module')
def grey(tmp_path_factory) -> Path:
    """Folder with ``grey.mp4``, each frame of which is lighter than the one before."""
    folder = tmp_path_factory.mktemp('grey')
    with av.open(str(folder / 'grey.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=RATE, options=dict(qp='4'))
        stream.height = stream.width = 32
        stream.pix_fmt = 'yuv420p'
        for number in range(FRAMES):
            picture = np.full((32, 32, 3), STEP * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode())
    return folder


DIDEMO = '_base_/datasets/didemo.py'
WITHOUT_WINDOWS = 'moving_shapes/_data_.py'
load_config = cache(lambda config: Config.fromfile(CONFIGS / config))


def build(folder, value, test_mode=True, config=DIDEMO):
    """The data set of a config, with one video."""
    (folder / 'ann.json').write_text(json.dumps({'grey.mp4': value}))
    loader = load_config(config)['test_dataloader' if test_mode else 'train_dataloader']
    paths = dict(ann_file='ann.json', data_root=str(folder), data_prefix=dict(video=''))
    return DATASETS.build(dict(loader.dataset, **paths))


def frames_of(item):
    """Which frames of the video in grey an item holds."""
    grey = item['inputs']['imgs'].float().mean((1, 2, 3)) / STEP
    assert (grey - grey.round()).abs().max() < 0.4
    return grey.round().int().tolist()


def on_screen(start, end, total=FRAMES, rate=RATE):
    """The frames to be seen between two times, one by one."""
    start, end, rate = start or 0, total if end is None else end, Fraction(rate)
    return [n for n in range(total) if (n + 1) / rate > start and n / rate < end]


WINDOWS = [
    *((0, 30.0), (None, 30), (12.5, 20), (12.25, 20.25), (3, None), (39.5, None)),
    *((7, 7.1), (7.4, 7.6), (0, 40), (10, 400), (31, 40)),
]


@pytest.mark.parametrize('start, end', WINDOWS)
def test_testing_takes_the_middles_of_the_windows_segments(grey, start, end):
    window = {key: value for key, value in dict(start=start, end=end).items() if value is not None}
    frames = on_screen(start, end)
    length = (len(frames) - 1) / 12
    wanted = [frames[int(np.round(length * i)) + int(length / 2)] for i in range(12)]
    dataset = build(grey, dict(captions=['x'], **window))
    assert frames_of(dataset[0]) == wanted


def test_training_takes_frames_of_the_whole_window_alone(grey):
    dataset = build(grey, dict(captions=['x'], start=20, end=26), test_mode=False)
    seen = set()
    for epoch in range(40):
        dataset.set_epoch(epoch, 0)
        seen.update(frames_of(dataset[0]))
    assert seen == set(on_screen(20, 26)) == set(range(40, 52))


@pytest.mark.parametrize('test_mode', [True, False])
def test_a_window_of_all_is_as_none(grey, test_mode):
    items = []
    for value in (['x'], dict(captions=['x']), dict(captions=['x'], end=40)):
        dataset = build(grey, value, test_mode)
        dataset.set_epoch(0, 0)
        items.append(frames_of(dataset[0]))
    assert items[0] == items[1] == items[2]
    assert max(items[0]) > 70


def test_a_window_after_the_end_is_refused(grey):
    with pytest.raises(VideoReadError, match=r'grey.mp4 lasts 40.00 s.* from 40 s to 50 s'):
        build(grey, dict(captions=['x'], start=40, end=50))[0]
    with pytest.raises(VideoReadError, match='from 41 s to the end'):
        build(grey, dict(captions=['x'], start=41))[0]


def test_a_pipeline_that_would_ignore_windows_is_refused(grey):
    for window in (dict(start=0), dict(end=3)):
        with pytest.raises(UserError, match='ann.json gives "grey.mp4" a window.*vop.TimeWindow'):
            build(grey, dict(captions=['x'], **window), config=WITHOUT_WINDOWS)
    dataset = build(grey, dict(captions=['x']), config=WITHOUT_WINDOWS)
    assert len(dataset[0]['inputs']['imgs']) == 8


def test_an_item_has_only_what_is_given(grey):
    for window in ({}, dict(start=1), dict(end=2), dict(start=1, end=2)):
        item = build(grey, dict(captions=['x'], **window)).get_data_info(0)
        assert {k: item[k] for k in ('start', 'end') if k in item} == window


@pytest.mark.parametrize('rate', ['24000/1001', '25', '30000/1001', '100'])
def test_decimals_are_meant_as_they_are_written(rate):
    """0.29 s at 100 frames per second are 29 frames, whatever a float says."""
    time_window = TimeWindow()
    rate, total = Fraction(rate), 350
    for i in range(300):
        start, end = Fraction(i, 100), Fraction(i + 1 + i % 70, 100)
        frames = on_screen(start, end, total, rate)
        video = dict(filename='v.mp4', avg_fps=float(rate), total_frames=total, start_index=5)
        results = time_window(dict(video, start=float(start), end=float(end)))
        assert results['start_index'] == 5 + frames[0]
        assert results['total_frames'] == len(frames)


def test_it_must_come_before_the_sampling():
    with pytest.raises(UserError, match='right after DecordInit'):
        TimeWindow()(dict(avg_fps=1, total_frames=5, frame_inds=[1], start=1))


def test_frames_of_a_real_video_are_of_the_window(shared_data):
    """Held against the times that the file gives its frames."""
    path = str(shared_data / 'videos' / 'pool_cleaning.mp4')
    decode = Compose(load_config(DIDEMO).test_pipeline[:4])
    results = decode(dict(filename=path, start_index=0, start=2, end=4))
    reader = decord.VideoReader(path)
    times = reader.get_frame_timestamp(range(len(reader)))
    appears, goes = times[results['frame_inds']].T
    assert (goes > 2 - 1e-3).all() and (appears < 4 + 1e-3).all()
    assert appears.min() < 2.2 and goes.max() > 3.8
    frames = reader.get_batch(results['frame_inds']).asnumpy()
    assert np.array_equal(frames, np.stack(results['imgs']))
