"""The benchmark of reading compares what it says."""

import av
import numpy as np
import pytest
from helpers import ROOT

from benchmarks import reading
from projects.vop.engine import open_config
from projects.vop.errors import UserError

NAMES = ['a.mp4', 'b.mkv', 'more/c.mp4']


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Three videos of a moving edge, one of them in a subfolder, and a broken one."""
    folder = tmp_path_factory.mktemp('videos')
    (folder / 'more').mkdir()
    for name in NAMES:
        with av.open(str(folder / name), 'w') as container:
            stream = container.add_stream('libx264', rate=25)
            stream.height, stream.width, stream.pix_fmt = 120, 160, 'yuv420p'
            for i in range(150):
                picture = np.full((120, 160, 3), 60, np.uint8)
                picture[:, :i] = 180
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
            container.mux(stream.encode())
    (folder / 'broken.mp4').write_bytes(b'no video')
    return folder


@pytest.mark.slow
def test_tables(videos, benchmark_rows):
    rows, printed = benchmark_rows('reading', videos, '--repeats', 1)
    assert '3 videos' in printed and '1 left out' in printed and 'broken.mp4' in printed
    assert [row[0] for row in rows[2:5]] == ['originals', 'mjpeg', 'h264']
    assert rows[2][1] == '100%' and rows[2][3:5] == ['1.0x', '1.0x']
    for row in rows[3:5]:
        assert float(row[2]) > 0 and float(row[3].removesuffix('x')) > 0
        mean, worst = (float(cell.removesuffix(' dB')) for cell in row[5:])
        assert mean >= worst > 25
    for column in (1, 2, 3):
        shares = [float(row[column].removesuffix('%')) for row in rows[8:-5]]
        assert sum(shares) == pytest.approx(100, abs=1)
    assert [row[0] for row in rows[-3:]] == ['originals', 'mjpeg', 'h264']
    for row in rows[-3:]:  # whatever the machine is busy with
        assert all(0.3 < float(cell.removesuffix('x')) < 30 for cell in row[2:])


@pytest.mark.slow
def test_psnr_is_of_the_same_moments(videos, tmp_path):
    copies = reading.make_copies(videos, NAMES, tmp_path)
    # A copy whose frames come half a second late.
    with (
        av.open(str(copies['h264'] / 'a.mp4')) as old,
        av.open(str(tmp_path / 'a.mp4'), 'w') as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for packet, other in zip(packets, [*packets[4:], *[packets[-1]] * 4]):
            late = av.Packet(bytes(other))
            late.pts, late.dts, late.time_base = packet.pts, packet.dts, packet.time_base
            late.stream = stream
            new.mux(late)
    folders = dict(originals=videos, copies=copies['mjpeg'], late=tmp_path)
    config = open_config(ROOT / 'configs/vop_msrvtt.py')
    data = reading.open_datasets(config, 'test', folders, ['a.mp4'])
    same, right, late = (reading.psnr(data['originals'], data[name], 0) for name in folders)
    assert same == [pytest.approx(68.13, abs=0.01)] * 12
    assert min(right) > 30 and max(late[:10]) < 25


def test_bad_folders_are_refused(videos, tmp_path, benchmark_rows):
    (tmp_path / 'empty').mkdir()
    for arguments in ([tmp_path / 'none'], [tmp_path / 'empty'], [videos, tmp_path / 'empty']):
        with pytest.raises(UserError, match=str(arguments[-1])):
            benchmark_rows('reading', *arguments)
