"""Copies that are read faster show the same at the same time."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from helpers import ROOT, grey, numbered, numbers_shown
from helpers import write_pictures as write

from projects.vop.damage import missing_end
from projects.vop.errors import UserError, shown

sys.path.append(str(ROOT / 'tools/data'))
from transcode import CODECS, CopySettings, TranscodeError, encode  # noqa: E402

pytestmark = pytest.mark.slow

SCRIPT = 'tools/data/compress_videos.py'


def copy(path, codec='mjpeg', **settings):
    """Copy a video in this process; give the path of the copy."""
    settings = CopySettings(codec=codec, quality=CODECS[codec].quality, **settings)
    small = path.with_name(f'copy{path.suffix}')
    small.write_bytes(encode(path, settings))
    return small


@pytest.fixture
def compress(run_tool, capsys):
    """Runs the tool; gives its exit code and what it printed."""

    def run(src, dst, *options):
        code = 0
        try:
            run_tool(SCRIPT, src, dst, '--jobs', 1, *options)
        except SystemExit as stop:
            code = stop.code
        return code, ''.join(capsys.readouterr())

    return run


def clock(times):
    """Frames whose grey says at which second they come on screen."""
    return [grey(round(20 + 20 * (t - times[0]))) for t in times]


def seconds_shown(path):
    """What the frames of a video say of their time, as decord reads it."""
    reader = decord.VideoReader(str(path), num_threads=1)
    frames = reader.get_batch(range(len(reader))).asnumpy()
    return (frames.mean((1, 2, 3)) - 20) / 20, reader.get_avg_fps()


def first_frame(path):
    return decord.VideoReader(str(path), num_threads=1)[0].asnumpy()


# Ten frames per second, then one frame for four seconds, then twenty.
UNEVEN = [i / 10 for i in range(20)] + [2.0] + [6 + i / 20 for i in range(40)]
# Fewer than a copy may have, some of them closer to each other than its frames are on average.
SPARSE = [*(i / 8 for i in range(20)), 7.03, 8.16, 9.26, 11.5]
EVEN = [i / 25 for i in range(200)]
# Of each video: times, rate, number of frames and seconds of its copy, container.
CLOCKS = {
    'even.mp4': (EVEN, 25, 24, 8, 'mp4'),
    'even.mov': (EVEN, 25, 24, 8, 'mp4'),
    'even.webm': (EVEN, 25, 24, 8, 'matroska'),
    'even.avi': (EVEN, 25, 24, 8, 'matroska'),
    'even.flv': (EVEN, 25, 24, 8, 'matroska'),
    'raw.mpg': (EVEN, 25, 24, 8, 'matroska'),  # without timestamps
    'uneven.mp4': (UNEVEN, 25, 25, 8, 'mp4'),
    'late.mp4': ([3 + t for t in UNEVEN], 25, 25, 8, 'mp4'),
    'late.mkv': ([3 + t for t in UNEVEN], 25, 25, 8, 'matroska'),
    'sparse.mp4': (SPARSE, 8, 24, 11.625, 'mp4'),
    'sparse.mkv': (SPARSE, 8, 24, 11.625, 'matroska'),
    'slow.mp4': ([i / 2 for i in range(16)], 2, 16, 8, 'mp4'),
    'short.mp4': ([i / 25 for i in range(50)], 25, 24, 2, 'mp4'),
    'shorter.mp4': ([i / 8 for i in range(9)], 8, 9, 9 / 8, 'mp4'),
    'one.mp4': ([0], 25, 1, 1 / 25, 'mp4'),
}


@pytest.mark.parametrize('codec', ['mjpeg', 'h264'])
@pytest.mark.parametrize('name', CLOCKS)
def test_time_is_kept(tmp_path, name, codec):
    times, rate, number, duration, container_format = CLOCKS[name]
    options = dict(times=times, rate=rate)
    if name.startswith(('even', 'raw')):
        codecs = dict(codec='mpeg4', options=dict(qmin='1', qmax='1'))
        options = {'even.avi': codecs, 'raw.mpg': dict(fmt='h264')}.get(name, {})
    write(tmp_path / name, numbered(len(times)), **options)
    small = copy(tmp_path / name, codec)

    kept, reader = numbers_shown(small), decord.VideoReader(str(small), num_threads=1)
    assert len(kept) == number and np.all(np.diff(kept) > 0)
    assert number / reader.get_avg_fps() == pytest.approx(duration, abs=0.06)
    starts, ends = reader.get_frame_timestamp(range(number)).T
    assert starts[0] == 0 and ends[-1] == pytest.approx(duration, abs=0.06)
    times = np.array(times) - times[0]
    # A frame is on screen while it is there in the original, and else near that.
    now = np.arange(0, duration, 0.01) + 0.002
    original = np.searchsorted(times, now, 'right') - 1
    copied = kept[np.searchsorted(starts, now, 'right') - 1]
    there = np.isin(original, kept)
    assert np.array_equal(original[there], copied[there])
    assert abs(times[copied] - now)[~there].max(initial=0) < 0.22
    with av.open(str(small)) as container:
        assert container_format in container.format.name
        assert not container.streams.audio
        assert all(frame.key_frame for frame in container.decode(video=0))


def test_a_rate_can_be_asked_for_and_a_jump_in_time_hides_no_frame(tmp_path):
    write(tmp_path / 'a.mp4', clock(EVEN[:50]))
    shown, fps = seconds_shown(copy(tmp_path / 'a.mp4', min_frames=1, fps=2.5))
    assert shown == pytest.approx([0.2, 0.6, 1, 1.4, 1.8], abs=0.05) and fps == 2.5
    # Broken timestamps: an hour passes in the middle of a second.
    times = [i / 25 + 3600 * (i >= 30) for i in range(60)]
    write(tmp_path / 'a.mp4', [grey(20 + 3 * i) for i in range(60)], times)
    shown, _ = seconds_shown(copy(tmp_path / 'a.mp4', min_frames=60))
    assert len(shown) == 60 and np.all(np.diff(shown) > 0)


def test_names_that_begin_as_addresses_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'take:1.mp4', clock(EVEN[:5]))
    assert encode(Path('take:1.mp4'), CopySettings())


def test_real_videos(shared_data, tmp_path):
    videos = shutil.copytree(shared_data / 'videos', tmp_path / 'videos')
    for name in ('unordered.mov', 'flipping_a_pancake.mkv'):
        old = videos / name
        readers = [decord.VideoReader(str(path), num_threads=1) for path in (old, copy(old))]
        durations = [len(each) / each.get_avg_fps() for each in readers]
        assert durations[1] == pytest.approx(durations[0], abs=0.002)
    with pytest.raises(TranscodeError, match='2.7 s of 5.0 s'):
        copy(videos / 'corrupted.mp4')


@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'avi', 'flv', 'mov', 'webm'])
def test_no_text_in_a_file_has_to_be_utf8(tmp_path, suffix):
    path = tmp_path / f'a.{suffix}'
    with av.open(str(path), 'w') as container:
        codec = {'webm': 'libvpx', 'flv': 'flv'}.get(suffix, 'mpeg4')
        stream = container.add_stream(codec, rate=25, width=96, height=80, pix_fmt='yuv420p')
        container.metadata['title'] = stream.metadata['title'] = 'cafe'
        chapter = dict(id=1, start=0, end=1, time_base=Fraction(1), metadata=dict(title='cafe'))
        container.set_chapters([chapter])
        for picture in numbered(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b'cafe', b'caf\xe9'))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert len(seconds_shown(copy(path))[0]) == 8
    assert missing_end(path) is None


@pytest.mark.parametrize('codec', ['mjpeg', 'h264'])
def test_size_is_even_and_never_larger(tmp_path, codec):
    video = tmp_path / 'a.mkv'
    for old, new in {(300, 448): (224, 334), (129, 97): (128, 96)}.items():
        # H.264 in 4:2:0 has no odd sizes.
        odd = dict(codec='ffv1', pix_fmt='yuv444p', options={}) if old[0] % 2 else {}
        write(video, [gradient(*old)] * 8, tags=dict(title='cafe'), **odd)
        # A title need not be UTF-8.
        video.write_bytes(video.read_bytes().replace(b'cafe', b'caf\xe9'))
        assert first_frame(copy(video, codec)).shape == (*new[::-1], 3)


def gradient(width, height):
    """A smooth coloured picture without symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([230 * x, 230 * y, 40 + 180 * (1 - x) * y], -1).astype(np.uint8)


def turn_mp4(path, degrees):
    """Write a rotation into an mp4, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value << 16 for value in matrix)
    start = data.index(b'tkhd') + 44
    data[start : start + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def remux(old_path, new_path, times=1, **tags):
    """Write the packets of a video again, and these tags of its stream."""
    with av.open(str(old_path)) as old, av.open(str(new_path), 'w', format='matroska') as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.metadata.update(tags)
        packets = [packet for packet in old.demux(video=0) if packet.size]
        for _ in range(times):
            for packet in packets:
                packet.stream = stream
                new.mux(packet)  # which sets the new time base
                length = round(len(packets) / 25 / packet.time_base)
                packet.pts, packet.dts = packet.pts + length, packet.dts + length


def block_means(frame):
    """Means of 16 x 16 blocks, to compare pictures of several sizes."""
    rows = (np.array_split(row, 16, 1) for row in np.array_split(frame.astype(float), 16, 0))
    return [[block.mean((0, 1)) for block in row] for row in rows]


FULL = dict(color_range=2, pix_fmt='yuvj420p')
LOOKS = [dict(colorspace=1), FULL, dict(FULL, colorspace=1)]
TURNS = [(kind, degrees) for kind in ('mp4', 'mkv') for degrees in (90, 180, 270)]


@pytest.mark.parametrize('codec', ['mjpeg', 'h264'])
@pytest.mark.parametrize('kind, value', [*(('look', look) for look in LOOKS), *TURNS])
def test_decord_sees_the_same(tmp_path, kind, value, codec):
    video = tmp_path / 'a.mp4'
    write(video, [gradient(320, 240)] * 8, **(value if kind == 'look' else {}))
    if kind == 'mp4':
        turn_mp4(video, value)
    elif kind == 'mkv':
        remux(video, tmp_path / 'a.mkv', rotate=str(value))
        video = tmp_path / 'a.mkv'
    old, new = (first_frame(path) for path in (video, copy(video, codec)))
    size = (298, 224) if value in (90, 270) else (224, 298)
    assert new.shape[:2] == size and (old.shape[0] > old.shape[1]) == (size[0] > size[1])
    error = np.square(np.subtract(block_means(old), block_means(new))).mean()
    assert 10 * np.log10(255**2 / error) > 38


@pytest.fixture
def source(tmp_path):
    """A data root with three videos, and what is no part of a copy."""
    root = tmp_path / 'data'
    for name in ('a.mp4', 'b.avi', 'more/c.mkv'):
        codec = 'mpeg4' if name == 'b.avi' else 'libx264'
        write(root / 'videos' / name, [grey(90)] * 30, codec=codec)
    (root / 'train.json').write_text('{"a.mp4": ["a caption"]}')
    (root / 'notes.txt').write_text('not for the copy')
    os.mkfifo(root / 'videos/pipe.mp4')
    return root


def stamps(folder):
    """Time and inode of each video, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob('*')
        if path.suffix in ('.mp4', '.avi', '.mkv') and path.is_file()
    }


def test_a_data_root_becomes_one_and_is_kept_up_to_date(source, tmp_path, compress, monkeypatch):
    out = tmp_path / 'out'
    # A limit on the size of a file fails in the middle of it, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=str(out / 'videos')):
            compress(source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not stamps(out) and not list(out.rglob('*.part'))

    code, printed = compress(source, out)
    assert code == 0 and '3 videos copied, 0 done before' in printed
    assert f'{source / "videos/pipe.mp4"} is left out: it is not a regular file.' in printed
    before = stamps(out)
    files = {path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file()}
    assert files - {'.lock', 'compress_videos.json'} == {'train.json', *before}
    assert before.keys() == {'videos/a.mp4', 'videos/b.avi', 'videos/more/c.mkv'}
    for name, (mtime_ns, _) in before.items():  # as old as the source, up to ten milliseconds
        assert mtime_ns % 10**7 == 0
        assert 0 <= mtime_ns - (source / name).stat().st_mtime_ns < 10**7

    # Done again: what is newer, not what is done. A killed run's file goes.
    write(source / 'videos/a.mp4', [grey(200)] * 40)
    later = time.time() + 10
    os.utime(source / 'videos/a.mp4', (later, later))
    (source / 'train.json').write_text('{}')
    (source / 'again').symlink_to(source / 'videos/more')
    (source / 'videos/loop').symlink_to(source / 'videos')
    (out / 'videos/a.mp4.part').write_bytes(b'half')
    code, printed = compress(source, out)
    assert code == 0 and '2 videos copied, 2 done before' in printed
    changed = {name for name, stamp in stamps(out).items() if stamp != before.get(name)}
    assert changed == {'videos/a.mp4', 'again/c.mkv'}
    assert first_frame(out / 'videos/a.mp4').mean() > 190
    assert (out / 'train.json').read_text() == '{}'
    assert not list(out.rglob('*.part'))


def test_folders_that_cannot_be_meant_are_refused(source, tmp_path, compress):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'splits').mkdir()
    (tmp_path / 'splits/train.json').write_text('by hand')
    shutil.copytree(source / 'videos/more', tmp_path / 'other')  # may be originals
    before, out = stamps(tmp_path), tmp_path / 'out'
    for src, dst, at_fault in [
        (tmp_path / 'none', out, 'none'),
        (source / 'train.json', out, 'train.json'),
        (tmp_path / 'empty', out, 'empty'),
        (source, source / '../data', 'DST'),
        (source, source / 'small', 'small'),
        (source / 'videos', source, 'videos'),
        (source, source / 'train.json', 'train.json'),
        (source, tmp_path / 'other', 'c.mkv'),
        (source, tmp_path / 'splits', 'train.json'),
    ]:
        with pytest.raises(UserError, match=at_fault):
            compress(src, dst)
        assert stamps(tmp_path) == before and not out.exists()
    assert (tmp_path / 'splits/train.json').read_text() == 'by hand'
    out.mkdir()  # with copies of other settings
    (out / 'compress_videos.json').write_text(json.dumps(CopySettings()._asdict()))
    for option in ('--fps 4.0', '--codec h264', '--short-side 256', '--min-frames 12'):
        with pytest.raises(UserError, match=f'(?s){out}.*--fps 3.0.*{option}'):
            compress(source, out, *option.split())
    (out / 'compress_videos.json').write_text('{')
    with pytest.raises(UserError, match=str(out / 'compress_videos.json')):
        compress(source, out)
    shutil.rmtree(out)
    (source / 'test.json').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(UserError, match=str(source / 'test.json')):
        compress(source, out)


BAD = ['--fps nan', '--quality 1', '--quality 52 --codec h264', '--short-side 0', '--timeout inf']


@pytest.mark.parametrize('option', [*BAD, '--min-frames 0', '--jobs 0', '--codec vp9'])
def test_bad_options_are_refused(tmp_path, compress, option):
    code, printed = compress(tmp_path, tmp_path / 'out', *option.split())
    assert code == 2 and option.split()[0] in printed.splitlines()[-1]


def test_a_limit_that_no_wait_can_have_is_refused(tmp_path, compress):
    with pytest.raises(UserError, match='timeout=10000000.0 must be'):
        compress(tmp_path, tmp_path / 'out', '--timeout', '1e7')


def test_what_cannot_be_read_is_listed(source, tmp_path, compress):
    rng = np.random.default_rng(0)
    noise = list(rng.integers(0, 255, (60, 80, 96, 3), dtype=np.uint8))
    videos, out = source / 'videos', tmp_path / 'out'
    bad = {
        'torn.mp4': 's of 2.4 s (Invalid data',
        'cut.mkv': 'cut off',
        'short.avi': 'cut off',
        'empty.mp4': 'Invalid data',
        'sound.mp4': 'no video stream',
        'strange.mkv': 'nothing here decodes',
        'gone.mp4': 'No such file',
        'narrow.mp4': 'misreads',  # decord 0.6 reads it with four channels
        'caf\udce9.mp4': 'Invalid data',
    }
    for name in ('torn.mp4', 'cut.mkv', 'short.avi'):
        write(videos / name, noise, codec='mpeg4' if name == 'short.avi' else 'libx264')
        data = (videos / name).read_bytes()
        middle = len(data) // 2
        rest = rng.bytes(9000) + data[middle + 9000 :] if name == 'torn.mp4' else b''
        (videos / name).write_bytes(data[:middle] + rest)
    write(videos / 'strange.mkv', [grey(90)] * 8)
    data = (videos / 'strange.mkv').read_bytes()
    (videos / 'strange.mkv').write_bytes(data.replace(b'V_MPEG4/ISO/AVC', b'V_MPEG9/ISO/AVC'))
    (videos / 'empty.mp4').touch()
    (videos / 'caf\udce9.mp4').write_text('no video')
    with av.open(str(videos / 'sound.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=8000)
        silence = np.zeros((1, 8000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format='fltp', layout='mono')
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    (videos / 'gone.mp4').symlink_to('nowhere.mp4')
    write(videos / 'narrow.mp4', [grey(90, 48, 80)] * 8)

    code, printed = compress(source, out)
    assert code == 1 and f'3 videos copied, 0 done before, {len(bad)} unreadable' in printed
    listed = (out / 'unreadable.txt').read_text().splitlines()
    assert len(listed) == len(bad) and listed[-1] in printed
    for name, reason in bad.items():
        line = next(line for line in listed if line.startswith(f'{shown(str(videos / name))}: '))
        assert reason in line and not (out / 'videos' / name).exists()
        (videos / name).unlink()
    assert compress(source, out)[0] == 0 and not (out / 'unreadable.txt').exists()


def wait_for(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def test_what_hangs_or_crashes_or_is_stopped(tmp_path, compress):
    """Decoding the second of three videos takes about ten seconds."""
    many, out = tmp_path / 'many', tmp_path / 'out'
    write(many / 'a.mkv', [grey(90)] * 9)
    shutil.copy(many / 'a.mkv', many / 'z.mkv')
    write(tmp_path / 'still.mp4', [gradient(1920, 1080)] * 50, options=dict(preset='ultrafast'))
    remux(tmp_path / 'still.mp4', many / 'b.mkv', times=100)

    run = subprocess.Popen([sys.executable, SCRIPT, many, out, '--jobs', '1'], cwd=ROOT)
    wait_for((out / 'a.mkv').exists)
    children = Path(f'/proc/{run.pid}/task/{run.pid}/children').read_text().split()
    before = stamps(out)
    with pytest.raises(UserError, match=f'{out} .process {run.pid} '):  # two runs at once
        compress(many, out)
    run.kill()
    run.wait()
    for child in children:
        wait_for(lambda path=Path('/proc', child): not path.exists())
    assert stamps(out) == before and not list(out.rglob('*.part'))

    code, printed = compress(many, out, '--timeout', 2)
    assert code == 1 and '1 videos copied, 1 done before, 1 unreadable' in printed
    assert f'{many / "b.mkv"}: it took longer than 2 s' in printed
    assert before.items() <= stamps(out).items()

    def while_decoding(end):
        """Run it again, and do this as it decodes b.mkv."""
        (out / 'a.mkv').unlink()
        thread = threading.Thread(target=lambda: (wait_for((out / 'a.mkv').exists), end()))
        thread.start()
        result = compress(many, out)
        thread.join()
        return result

    code, printed = while_decoding(lambda: multiprocessing.active_children()[0].kill())
    assert code == 1 and '1 videos copied, 1 done before, 1 unreadable' in printed
    assert f'{many / "b.mkv"}: its decoder ended the process (signal 9, ' in printed
    code, printed = while_decoding(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert code == 130 and 'Stopped' in printed and not list(out.rglob('*.part'))
    assert stamps(out).keys() == {'a.mkv', 'z.mkv'}
