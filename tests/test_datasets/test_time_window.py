"""Windows of time: which frames of a video are used."""

import json
import shutil
import sys
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from helpers import ROOT, numbered, numbers_shown, write_pictures
from mmengine.config import Config
from mmengine.dataset import Compose

from projects.vop.datasets import TimeWindow
from projects.vop.errors import UserError, VideoReadError
from projects.vop.registry import DATASETS

sys.path.append(str(ROOT / 'tools/data'))
from transcode import CopySettings, encode  # noqa: E402

pytestmark = pytest.mark.slow

CONFIGS = ROOT / 'configs'
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
    rate = Fraction(rate)
    first, last = (Fraction(t) * rate for t in (start or 0, total if end is None else end))
    return [n for n in range(total) if n + 1 > first and n < last]


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


# When the frames of a few videos come on screen: some of them stay for seconds.
UNEVEN = [*(i / 8 for i in range(20)), 7.03, 8.16, 9.26, 11.5]
EVEN = [i / 25 for i in range(250)]
VP8 = dict(codec='libvpx', options=dict(deadline='realtime'))
MPEG4 = dict(codec='mpeg4', options=dict(qmin='1', qmax='1'))
# Their times, with a rate of 8 frames per second in the header, and how they are made.
TIMED = {
    'uneven.mkv': (UNEVEN, {}),
    'uneven.mp4': (UNEVEN, {}),  # with B-frames
    'uneven.mov': (UNEVEN, MPEG4),
    'uneven.webm': (UNEVEN, VP8),
    'uneven.avi': (UNEVEN, MPEG4),
    'uneven.flv': (UNEVEN, dict(codec='flv', options=dict(qmin='1', qmax='1'))),
    'late.mp4': ([3 + t for t in UNEVEN], {}),
    'late.mkv': ([1.4 + t for t in UNEVEN], {}),
    'even.mp4': (EVEN, {}),
    'even.mkv': (EVEN, {}),
    'ntsc.mkv': ([i * 1001 / 30000 for i in range(250)], {}),
}
SECONDS = [(0, 3), (3, 6), (2.3, 2.4), (None, 7.03), (7.03, 8.16), (7.1, 9), (6, None), (8, 60)]


def frames_in(path, start, end):
    """Where in a video the frames of a window are."""
    results = dict(filename=str(path), start=start, end=end, start_index=0)
    results = Compose([dict(type='DecordInit'), dict(type='vop.TimeWindow')])(results)
    return slice(results['start_index'], results['start_index'] + results['total_frames'])


@pytest.mark.parametrize('name', TIMED)
def test_a_window_is_of_the_frames_own_times_in_original_and_copy(tmp_path, name):
    times, look = TIMED[name]
    path, small = tmp_path / name, tmp_path / f'copy{Path(name).suffix}'
    write_pictures(path, numbered(len(times)), times, rate=8, **look)
    small.write_bytes(encode(path, CopySettings()))
    original, copied = (numbers_shown(video) for video in (path, small))
    times = np.round(np.array(times) - times[0], 3)  # Matroska keeps milliseconds
    for start, end in SECONDS:
        first = np.searchsorted(times, start or 0, 'right') - 1
        wanted = np.arange(first, np.searchsorted(times, end or 60))
        assert np.array_equal(original[frames_in(path, start, end)], wanted)
        found = copied[frames_in(small, start, end)]
        if name.startswith(('uneven', 'late')):  # the copy has all frames
            assert np.array_equal(found, wanted)
        else:  # it has three per second, which stand for those up to 1/6 s away
            near = (times > (start or 0) - 0.21) & (times < (end or 60) + 0.17)
            assert near[found].all() and len(found) >= max(1, len(wanted) // 11)


def test_whatever_hides_frames_the_window_counts_from_the_first_one_seen(tmp_path):
    write_pictures(tmp_path / 'a.mp4', numbered(100), [i / 25 for i in range(100)])
    data = bytearray((tmp_path / 'a.mp4').read_bytes())
    entry = data.index(b'elst') + 12  # duration in milliseconds, start in 1/16,000 seconds
    start = int.from_bytes(data[entry + 4 : entry + 8], 'big')
    data[entry : entry + 8] = (3000).to_bytes(4, 'big') + (start + 16000).to_bytes(4, 'big')
    (tmp_path / 'a.mp4').write_bytes(data)
    assert frames_in(tmp_path / 'a.mp4', 0, 1) == slice(25, 50)
    assert frames_in(tmp_path / 'a.mp4', 1, 2) == slice(50, 75)
    (tmp_path / 'copy.mp4').write_bytes(encode(tmp_path / 'a.mp4', CopySettings(fps=25)))
    assert frames_in(tmp_path / 'copy.mp4', 1, 2) == slice(25, 50)
    assert np.array_equal(numbers_shown(tmp_path / 'copy.mp4'), np.arange(25, 100))


def test_without_times_in_the_file_the_rate_counts(tmp_path):
    """As of B-frames in an AVI, which decord gives absurd times."""
    write_pictures(tmp_path / 'a.avi', numbered(100), codec='libx264')
    reader = decord.VideoReader(str(tmp_path / 'a.avi'))
    assert abs(reader.get_frame_timestamp([5])).max() > 1e9
    assert frames_in(tmp_path / 'a.avi', 1, 2) == slice(25, 50)


def test_where_times_start_over_the_rate_counts_as_in_a_copy(tmp_path):
    look = dict(fmt='mpegts', options=dict(qp='4', bf='0'))
    joined, counters = bytearray(), Counter()
    for part in np.split(np.array(numbered(100)), 2):
        write_pictures(tmp_path / 'part.ts', part, **look)
        joined += (tmp_path / 'part.ts').read_bytes()
    for at in range(0, len(joined), 188):  # no packet is to seem lost
        stream = joined[at + 1] % 32, joined[at + 2]
        joined[at + 3] = joined[at + 3] // 16 * 16 + counters[stream] % 16
        counters[stream] += joined[at + 3] // 16 % 2
    path, small = tmp_path / 'joined.ts', tmp_path / 'copy.ts'
    path.write_bytes(joined)
    small.write_bytes(encode(path, CopySettings(fps=25)))
    for video in (path, small):
        assert np.array_equal(numbers_shown(video), np.arange(100))
        for second in range(4):
            frames = slice(25 * second, 25 * second + 25)
            assert frames_in(video, second, second + 1) == frames
        with pytest.raises(VideoReadError, match='lasts 4.00 s'):
            frames_in(video, 4, 5)


def test_a_time_that_two_frames_share_does_not_hide_those_of_others(grey):
    reader = decord.VideoReader(str(grey / 'grey.mp4'))
    times = reader.get_frame_timestamp(range(FRAMES))
    times[7] = times[6]
    reader.get_frame_timestamp = lambda numbers: times[list(numbers)]
    video = dict(filename='grey.mp4', video_reader=reader, total_frames=FRAMES, avg_fps=1000)
    assert TimeWindow()(dict(video, start=10, end=20))['total_frames'] == 20


def test_other_readers_are_refused(tmp_path, grey):
    shutil.copy(grey / 'grey.mp4', tmp_path)
    video = dict(filename=str(tmp_path / 'grey.mp4'))
    pipeline = Compose([dict(type='PyAVInit'), dict(type='vop.TimeWindow')])
    with pytest.raises(UserError, match='right after DecordInit.*PyAVInit'):
        pipeline(dict(video, start=1))
    assert pipeline(video)['total_frames'] == FRAMES


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
