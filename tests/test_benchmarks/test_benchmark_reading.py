"""The benchmark of reading compares what it says."""

import importlib
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from projects.vop.engine import open_config

ROOT = Path(__file__).resolve().parents[2]


def run(tool, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def rows(text):
    return [
        [cell.strip() for cell in line[1:-1].split(' | ')]
        for line in text.splitlines()
        if line.startswith('| ') and '---' not in line
    ]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/analysis'))
    monkeypatch.chdir(ROOT)
    return importlib.import_module('benchmark_reading')


@pytest.fixture
def run_main(benchmark, monkeypatch, capsys):
    """Runs the tool in this process; gives what it said, and its error."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['', *map(str, arguments)])
        error = ''
        try:
            benchmark.main()
        except SystemExit as stop:
            error = str(stop)
        return capsys.readouterr().out, error

    return run


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Three videos of a moving edge, one of them below a folder, and one
    that is broken."""
    folder = tmp_path_factory.mktemp('videos')
    for name in ('a.mp4', 'b.mkv', 'more/c.mp4'):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), 'w') as container:
            stream = container.add_stream('libx264', rate=25)
            stream.height, stream.width, stream.pix_fmt = 240, 320, 'yuv420p'
            for i in range(200):
                picture = np.full((240, 320, 3), 60, np.uint8)
                picture[:, :i] = 180
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
            container.mux(stream.encode())
    (folder / 'broken.mp4').write_bytes(b'no video')
    return folder


TRANSFORMS = [
    'DecordInit',
    'TimeWindow',
    'UniformSample',
    'DecordDecode',
    'RandomResizedCrop',
    'Resize',
    'Flip',
    'FormatShape',
    'CLIPTokenize',
    'PackActionInputs',
]


def check(out, names):
    table = rows(out)
    header = table[0]
    assert header == [
        'videos',
        'size',
        'clips a second',
        'against the originals',
        'by CPU time',
        'mean PSNR',
        'worst PSNR',
    ]
    speeds = table[1 : 1 + len(names)]
    assert [row[0] for row in speeds] == names
    assert speeds[0][1] == '100%' and speeds[0][3:5] == ['1.0x', '1.0x']
    for row in speeds:
        assert float(row[2]) > 0
        assert re.fullmatch(r'\d+\.\dx', row[3])
        assert re.fullmatch(r'\d+\.\dx', row[4])
    for row in speeds[1:]:
        mean, worst = (float(cell.removesuffix(' dB')) for cell in row[5:])
        assert mean >= worst > 25
    shares = table[1 + len(names) :]
    assert shares[0] == ['transform', *names]
    assert [row[0] for row in shares[1:]] == [*TRANSFORMS, 'all']
    for column in range(1, len(names) + 1):
        parts = [float(row[column].removesuffix('%')) for row in shares[1:-1]]
        assert sum(parts) == pytest.approx(100, abs=1)
        assert shares[-1][column].endswith(' ms')


def test_it_makes_copies_if_none_is_named(videos):
    done = run('analysis/benchmark_reading.py', videos, '--repeats', '1')
    assert done.returncode == 0, done.stderr
    assert '3 videos, train pipeline of vop_msrvtt.py' in done.stdout
    assert '1 left out, of which there is no copy: broken.mp4.' in done.stdout
    check(done.stdout, ['originals', 'mjpeg', 'h264'])


def test_it_takes_the_copies_that_are_named(videos, tmp_path, run_main):
    for fps in (3, 6):
        run('data/compress_videos.py', videos, tmp_path / f'at{fps}', '--fps', fps)
    out, error = run_main(
        videos, tmp_path / 'at3', tmp_path / 'at6', '--repeats', '1', '--videos', '2'
    )
    assert not error
    assert '2 videos, train pipeline of vop_msrvtt.py' in out
    check(out, ['originals', 'at3', 'at6'])


def test_what_the_train_pipeline_reads_is_timed(benchmark, videos, monkeypatch):
    cfg = open_config('configs/vop_msrvtt.py')
    folders = dict(originals=videos)
    names = ['a.mp4', 'more/c.mp4']
    opened = []

    class Reader(decord.VideoReader):
        def __init__(self, file, **options):
            super().__init__(file, **options)
            opened.append(self)

    monkeypatch.setattr(decord, 'VideoReader', Reader)
    datasets = benchmark.open_datasets(cfg, 'train', folders, names)
    seconds = benchmark.measure(datasets, 3)['originals']
    assert seconds.shape == (3, 2, len(TRANSFORMS) + 1)
    assert len(opened) == 8  # and a round to warm up
    assert (seconds > 0).all()
    # What decodes 12 frames takes longer than what sets two numbers.
    decode, window = (TRANSFORMS.index(name) for name in ('DecordDecode', 'TimeWindow'))
    assert seconds[:, :, decode].min() > seconds[:, :, window].max()


def test_psnr_is_of_the_same_moments(benchmark, videos, tmp_path):
    run('data/compress_videos.py', videos, tmp_path / 'small')
    cfg = open_config('configs/vop_msrvtt.py')
    names = ['a.mp4', 'b.mkv', 'more/c.mp4']

    def decibels(**folders):
        data = benchmark.open_datasets(cfg, 'test', folders, names)
        return [
            value
            for index in range(len(names))
            for value in benchmark.psnr(data['old'], data['new'], index)
        ]

    right = decibels(old=videos, new=tmp_path / 'small')
    assert len(right) == 36 and min(right) > 30
    assert decibels(old=videos, new=videos) == [pytest.approx(68.13, abs=0.01)] * 36

    # Copies that lag by a second are another thing to see.
    for name in names:
        path = tmp_path / 'late' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(tmp_path / 'small' / name)) as old, av.open(str(path), 'w') as new:
            stream = new.add_stream('mjpeg', rate=3, options=dict(qmin='2', qmax='2'))
            frames = list(old.decode(video=0))
            stream.width, stream.height = frames[0].width, frames[0].height
            stream.pix_fmt = 'yuvj420p'
            for number in range(len(frames)):
                frame = frames[max(0, number - 3)].reformat(format='yuvj420p')
                frame.pts, frame.time_base = number, Fraction(1, 3)
                frame.pict_type = 0
                new.mux(stream.encode(frame))
            new.mux(stream.encode())
    late = decibels(old=videos, new=tmp_path / 'late')
    assert max(late[3:12]) < 25


def test_bad_folders_are_refused(videos, tmp_path, run_main):
    (tmp_path / 'copies').mkdir()
    (tmp_path / 'copies/notes.json').write_text(json.dumps({}))
    for arguments, message in [
        ([tmp_path / 'none'], 'There is no folder'),
        ([tmp_path / 'copies'], 'There is no video in'),
        ([videos, tmp_path / 'none'], 'There is no folder'),
        ([videos, tmp_path / 'copies'], 'No video of'),
        ([videos, '--config', 'configs/none.py'], 'There is no config'),
    ]:
        assert message in run_main(*arguments)[1]
