"""The benchmark of reading compares what it says."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest

from projects.vop.engine import open_config
from projects.vop.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ['a.mp4', 'b.mkv', 'more/c.mp4']


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('reading', ROOT / 'benchmarks/reading.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Three videos of a moving edge, one of them in a subfolder, and a broken one."""
    folder = tmp_path_factory.mktemp('videos')
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), 'w') as container:
            stream = container.add_stream('libx264', rate=25)
            stream.height, stream.width, stream.pix_fmt = 120, 160, 'yuv420p'
            for i in range(150):
                picture = np.full((120, 160, 3), 60, np.uint8)
                picture[:, :i] = 180
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
            container.mux(stream.encode())
    (folder / 'broken.mp4').write_bytes(b'no video')
    return folder


@pytest.fixture(scope='module')
def copies(benchmark, videos, tmp_path_factory):
    """Folders of copies with both codecs."""
    return benchmark.make_copies(videos, [*NAMES, 'broken.mp4'], tmp_path_factory.mktemp('copies'))


@pytest.mark.slow
@pytest.mark.parametrize('named', [False, True])
def test_tables(videos, copies, run_tool, capsys, named):
    given = copies if named else []
    run_tool('benchmarks/reading.py', videos, *given, '--repeats', 1)
    out = capsys.readouterr().out
    assert '3 videos' in out and '1 left out' in out and 'broken.mp4' in out
    lines = [line[2:-2].split(' | ') for line in out.splitlines() if line.startswith('| ')]
    assert [line[0] for line in lines[2:5]] == ['originals', 'mjpeg', 'h264']
    assert lines[2][1] == '100%' and lines[2][3:5] == ['1.0x', '1.0x']
    for line in lines[3:5]:
        assert float(line[2]) > 0 and float(line[3].removesuffix('x')) > 0
        mean, worst = (float(cell.removesuffix(' dB')) for cell in line[5:])
        assert mean >= worst > 25
    for column in (1, 2, 3):
        shares = [float(line[column].removesuffix('%')) for line in lines[7:-1]]
        assert sum(shares) == pytest.approx(100, abs=1)


def test_what_the_train_pipeline_reads_is_timed(benchmark, videos):
    config = open_config(str(ROOT / 'configs/vop_msrvtt.py'))
    data = benchmark.open_datasets(config, 'train', dict(originals=videos), NAMES[:2])
    seconds = benchmark.measure(data, 2)['originals']
    names = [type(step).__name__ for step in data['originals'].pipeline.transforms]
    assert seconds.shape == (2, 2, len(names) + 1) and (seconds > 0).all()
    # Decoding 12 frames takes longer than setting two numbers.
    decode, window = names.index('DecordDecode'), names.index('TimeWindow')
    assert seconds[:, :, decode].min() > seconds[:, :, window].max()


def test_psnr_is_of_the_same_moments(benchmark, videos, copies, tmp_path):
    config = open_config(str(ROOT / 'configs/vop_msrvtt.py'))
    # The same copy without its first second.
    (tmp_path / 'late').mkdir()
    with (
        av.open(str(copies[0] / 'a.mp4')) as old,
        av.open(str(tmp_path / 'late/a.mp4'), 'w') as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            data = packets[min(number + 4, len(packets) - 1)]
            late = av.Packet(bytes(data))
            late.pts, late.dts, late.time_base = packet.pts, packet.dts, packet.time_base
            late.stream = stream
            new.mux(late)
    folders = dict(originals=videos, copies=copies[0], late=tmp_path / 'late')
    data = benchmark.open_datasets(config, 'test', folders, ['a.mp4'])
    same, right, late = (benchmark.psnr(data['originals'], data[name], 0) for name in folders)
    assert same == [pytest.approx(68.13, abs=0.01)] * 12
    assert min(right) > 30
    assert max(late[:10]) < 25


def test_bad_folders_are_refused(videos, tmp_path, run_tool):
    (tmp_path / 'empty').mkdir()
    for arguments in ([tmp_path / 'none'], [tmp_path / 'empty'], [videos, tmp_path / 'empty']):
        with pytest.raises(UserError, match=str(arguments[-1])):
            run_tool('benchmarks/reading.py', *arguments)
