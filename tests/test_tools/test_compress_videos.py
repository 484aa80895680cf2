"""Copies that are read faster show the same at the same time."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from projects.vop.engine import open_config
from projects.vop.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools/data/compress_videos.py'


def command(*arguments):
    return [sys.executable, SCRIPT, *map(str, arguments)]


def compress(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, **options)


def write(
    path,
    pictures,
    times=None,
    rate=25,
    codec='libx264',
    fmt=None,
    pix_fmt='yuv420p',
    options=None,
    color_range=1,
    colorspace=5,
):
    """Write RGB pictures that come on screen at these seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fmt = fmt or {'mkv': 'matroska', 'webm': 'matroska'}.get(path.suffix[1:], path.suffix[1:])
    with av.open(str(path), 'w', format=fmt) as container:
        stream = container.add_stream(codec, rate=rate, options=options or dict(qp='4'))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.color_range = color_range
        stream.codec_context.colorspace = colorspace
        base = Fraction(1, rate)
        if times is not None:
            base = stream.time_base = Fraction(1, 1000)
            stream.codec_context.time_base = base
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame = frame.reformat(
                format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range
            )
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def grey(level, width=96, height=80):
    return np.full((height, width, 3), level, np.uint8)


def level(seconds):
    """The grey that says when a frame comes on screen."""
    return 20 + 20 * seconds


def seconds_shown(path):
    """What the frames of a video say of their time, as decord reads it."""
    reader = decord.VideoReader(str(path), num_threads=1)
    frames = reader.get_batch(range(len(reader))).asnumpy()
    return (frames.mean((1, 2, 3)) - 20) / 20, reader.get_avg_fps()


def key_frames(path):
    with av.open(str(path)) as container:
        return [frame.key_frame for frame in container.decode(video=0)]


def temporaries(folder):
    return list(folder.rglob('*.tmp'))


# Frames a second: ten, then one frame for four seconds, then twenty.
UNEVEN = [i / 10 for i in range(20)] + [2.0] + [6 + i / 20 for i in range(40)]
EVEN = [i / 25 for i in range(200)]
CLOCKS = {
    'even.mp4': EVEN,
    'even.mov': EVEN,
    'even.mkv': EVEN,
    'deep/er/even.webm': EVEN,
    'even.avi': EVEN,
    'even.flv': EVEN,
    'uneven.mp4': UNEVEN,
    'uneven.mkv': UNEVEN,
    'late.mp4': [3 + t for t in UNEVEN],
    'late.mkv': [3 + t for t in UNEVEN],
    'slow.mp4': [i / 2 for i in range(16)],
    'short.mp4': [i / 25 for i in range(50)],
    'shorter.mp4': [i / 8 for i in range(9)],
    'one.mp4': [0],
}
DURATIONS = {'slow.mp4': 8, 'short.mp4': 2, 'shorter.mp4': 9 / 8}
FRAMES = {'slow.mp4': 16, 'short.mp4': 24, 'shorter.mp4': 9, 'one.mp4': 1}


@pytest.fixture(scope='module')
def clocks(tmp_path_factory):
    """Videos whose frames say when they come on screen."""
    root = tmp_path_factory.mktemp('clocks')
    for name, times in CLOCKS.items():
        pictures = [grey(round(level(t - times[0]))) for t in times]
        if name.startswith('even'):
            write(
                root / name,
                pictures,
                rate=25,
                codec='mpeg4' if name.endswith('avi') else 'libx264',
                options=dict(qmin='1', qmax='1', qp='4'),
            )
        else:
            write(
                root / name, pictures, times, rate={'slow.mp4': 2, 'shorter.mp4': 8}.get(name, 25)
            )
    # Without timestamps, as an elementary stream is.
    write(root / 'raw.mpg', [grey(round(level(t))) for t in EVEN], fmt='h264')
    return root


@pytest.fixture(scope='module', params=['mjpeg', 'h264'])
def copied_clocks(clocks, tmp_path_factory, request):
    folder = tmp_path_factory.mktemp('copies') / request.param
    done = compress(clocks, folder, '--codec', request.param)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{len(CLOCKS) + 1} videos copied' in done.stdout
    return folder


@pytest.mark.parametrize('name', [*CLOCKS, 'raw.mpg'])
def test_time_is_kept(copied_clocks, name):
    path = copied_clocks / name
    times = np.array(CLOCKS.get(name, EVEN))
    times -= times[0]
    shown, fps = seconds_shown(path)
    duration = DURATIONS.get(name, 8)
    if name != 'one.mp4':
        assert len(shown) / fps == pytest.approx(duration, abs=0.06)
    assert len(shown) == FRAMES.get(name, 24)
    middles = (np.arange(len(shown)) + 0.5) / fps
    on_screen = times[np.searchsorted(times, middles + 0.001, 'right') - 1]
    # At the edge between two frames, either is right.
    before = times[np.searchsorted(times, middles - 0.06, 'right') - 1]
    error = np.minimum(abs(shown - on_screen), abs(shown - before))
    assert error.max() < 0.08  # 1.6 of 255 levels; half a frame is .17 s
    keys = key_frames(path)
    assert len(keys) == len(shown) and all(keys)


def test_what_short_videos_show_is_all_kept(copied_clocks):
    shown, fps = seconds_shown(copied_clocks / 'shorter.mp4')
    assert fps == pytest.approx(8)
    assert shown == pytest.approx(CLOCKS['shorter.mp4'], abs=0.08)


def test_fewer_frames_if_asked(clocks, tmp_path):
    (tmp_path / 'in').mkdir()
    shutil.copy(clocks / 'short.mp4', tmp_path / 'in')
    done = compress(tmp_path / 'in', tmp_path / 'out', '--min-frames', '1', '--fps', '2.5')
    assert done.returncode == 0, done.stderr
    shown, fps = seconds_shown(tmp_path / 'out/short.mp4')
    assert shown == pytest.approx([0.2, 0.6, 1, 1.4, 1.8], abs=0.05)
    assert fps == 2.5


@pytest.mark.parametrize(
    'name, suffix, content',
    [
        ('even.mp4', 'mp4', 'mp4'),
        ('even.avi', 'avi', 'avi'),
        ('deep/er/even.webm', 'webm', 'matroska'),
    ],
)
def test_container_follows_the_suffix(copied_clocks, name, suffix, content):
    with av.open(str(copied_clocks / name)) as container:
        assert content in container.format.name
        assert not container.streams.audio


# What a frame looks like


def gradient(width, height):
    """A smooth coloured picture without symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([230 * x, 230 * y, 40 + 180 * (1 - x) * y], -1).astype(np.uint8)


def turn(path, degrees):
    """Write a rotation into an mp4, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value << 16 for value in matrix)
    start = data.index(b'tkhd') + 44
    data[start : start + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


LOOKS = dict(
    large=((448, 300), (334, 224)),
    high=((300, 448), (224, 334)),
    small=((128, 96), (128, 96)),
    odd=((129, 97), (128, 96)),
)


@pytest.fixture(scope='module')
def looks(tmp_path_factory):
    """Originals and copies that hold a still picture."""
    root = tmp_path_factory.mktemp('looks')
    still = root / 'in'
    for name, (size, _) in LOOKS.items():
        # H.264 in 4:2:0 has no odd sizes.
        odd = dict(codec='ffv1', pix_fmt='yuv444p', options={})
        write(still / f'{name}.mkv', [gradient(*size)] * 8, **(odd if name == 'odd' else {}))
    for color_range in (1, 2):
        for colorspace in (1, 5):
            write(
                still / f'range{color_range}_space{colorspace}.mp4',
                [gradient(320, 240)] * 8,
                color_range=color_range,
                colorspace=colorspace,
                pix_fmt='yuvj420p' if color_range == 2 else 'yuv420p',
            )
    for degrees in (90, 180, 270):
        path = still / f'turned{degrees}.mp4'
        write(path, [gradient(320, 240)] * 8)
        tagged = still / f'tagged{degrees}.mkv'
        with av.open(str(path)) as old, av.open(str(tagged), 'w', format='matroska') as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            stream.metadata['rotate'] = str(degrees)
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
        turn(path, degrees)
    for codec in ('mjpeg', 'h264'):
        done = compress(still, root / codec, '--codec', codec)
        assert done.returncode == 0, done.stdout
    return root


def first_frame(path):
    return decord.VideoReader(str(path), num_threads=1)[0].asnumpy()


@pytest.mark.parametrize('name', LOOKS)
def test_size_is_even_and_never_larger(looks, name):
    width, height = LOOKS[name][1]
    for codec in ('mjpeg', 'h264'):
        frame = first_frame(looks / codec / f'{name}.mkv')
        assert frame.shape == (height, width, 3)


@pytest.mark.parametrize(
    'name',
    [
        *(f'range{r}_space{c}.mp4' for r in (1, 2) for c in (1, 5)),
        *(
            f'{word}{degrees}.{suffix}'
            for degrees in (90, 180, 270)
            for word, suffix in (('turned', 'mp4'), ('tagged', 'mkv'))
        ),
    ],
)
@pytest.mark.parametrize('codec', ['mjpeg', 'h264'])
def test_decord_sees_the_same(looks, name, codec):
    original = first_frame(looks / 'in' / name)
    copy = first_frame(looks / codec / name)
    height, width = copy.shape[:2]
    assert min(height, width) == 224
    assert (height > width) == (original.shape[0] > original.shape[1])
    # Squares, so that the sizes need not be the same: means of 16 x 16.
    means = [
        np.stack(
            [
                np.stack([block.mean((0, 1)) for block in np.array_split(row, 16, 1)])
                for row in np.array_split(frame.astype(float), 16, 0)
            ]
        )
        for frame in (original, copy)
    ]
    error = np.square(means[0] - means[1]).mean()
    assert 10 * np.log10(255**2 / error) > 38


# Folders


@pytest.fixture
def source(tmp_path):
    """A data root with three videos."""
    root = tmp_path / 'data'
    for name in ('a.mp4', 'b.avi', 'more/c.mkv'):
        write(
            root / 'videos' / name, [grey(90)] * 30, codec='mpeg4' if name == 'b.avi' else 'libx264'
        )
    (root / 'train.json').write_text('{"a.mp4": ["a caption"]}')
    (root / 'notes.txt').write_text('not for the copy')
    return root


def stamps(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob('*')
        if path.suffix in ('.mp4', '.avi', '.mkv')
    }


def test_a_data_root_becomes_one(source, tmp_path):
    out = tmp_path / 'out'
    done = compress(source, out)
    assert done.returncode == 0, done.stderr
    assert sorted(str(path.relative_to(out)) for path in out.rglob('*') if path.is_file()) == [
        'compress_videos.json',
        'train.json',
        'videos/a.mp4',
        'videos/b.avi',
        'videos/more/c.mkv',
    ]
    assert (out / 'train.json').read_bytes() == (source / 'train.json').read_bytes()
    # Of before it is read, so that a change in the meantime is noticed, up to
    # ten milliseconds.
    for path in stamps(out):
        age = path.stat().st_mtime_ns - (source / path.relative_to(out)).stat().st_mtime_ns
        assert 0 <= age < 10**7
        assert path.stat().st_mtime_ns % 10**7 == 0
    assert (
        '3 videos copied, 0 done before, 0 unreadable; 1 .json files; 1 other files left alone.'
    ) in done.stdout
    assert f'{source}: ' in done.stdout and '%)' in done.stdout


def test_what_is_done_is_skipped_and_what_is_newer_is_not(source, tmp_path):
    out = tmp_path / 'out'
    compress(source, out)
    before = stamps(out)
    again = compress(source, out)
    assert '0 videos copied, 3 done before' in again.stdout
    assert stamps(out) == before

    write(source / 'videos/a.mp4', [grey(200)] * 40)
    later = time.time() + 10
    os.utime(source / 'videos/a.mp4', (later, later))
    (source / 'train.json').write_text('{}')
    os.utime(source / 'train.json', (later, later))
    again = compress(source, out)
    assert '1 videos copied, 2 done before' in again.stdout
    changed = {path.name for path, stamp in stamps(out).items() if stamp != before[path]}
    assert changed == {'a.mp4'}
    assert len(decord.VideoReader(str(out / 'videos/a.mp4'))) == 24
    assert first_frame(out / 'videos/a.mp4').mean() > 190
    assert (out / 'train.json').read_text() == '{}'


def test_links_are_followed_and_loops_end(source, tmp_path):
    shutil.move(source / 'videos', tmp_path / 'elsewhere')
    (source / 'videos').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere/more/back').symlink_to(tmp_path / 'elsewhere')
    done = compress(source, tmp_path / 'out')
    assert '3 videos copied' in done.stdout
    assert not (tmp_path / 'out/videos').is_symlink()

    (source / 'again').symlink_to(tmp_path / 'elsewhere')
    done = compress(source, tmp_path / 'out')
    assert '3 videos copied, 3 done before' in done.stdout
    assert (tmp_path / 'out/again/a.mp4').is_file()


@pytest.mark.parametrize(
    'options, changed',
    [
        (['--fps', '4'], '--fps 4.0'),
        (['--codec', 'h264'], '--codec h264'),
        (['--short-side', '256'], '--short-side 256'),
        (['--quality', '5'], '--quality 5'),
        (['--min-frames', '12'], '--min-frames 12'),
    ],
)
def test_other_settings_are_refused(source, tmp_path, options, changed):
    out = tmp_path / 'out'
    out.mkdir()
    settings = dict(fps=3.0, short_side=224, codec='mjpeg', quality=4, min_frames=24)
    (out / 'compress_videos.json').write_text(json.dumps(settings))
    done = compress(source, out, *options)
    assert done.returncode == 1
    assert '--fps 3.0' in done.stderr and changed in done.stderr
    assert 'or delete' in done.stderr and 'Traceback' not in done.stderr
    assert not stamps(out)


def test_folders_that_cannot_be_meant_are_refused(source, tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    (empty / 'file.txt').touch()
    for src, dst, message in [
        (tmp_path / 'none', tmp_path / 'out', 'There is no folder'),
        (source / 'train.json', tmp_path / 'out', 'There is no folder'),
        (empty, tmp_path / 'out', 'There is no video (.mp4'),
        (source, source / '../data', 'are the same folder'),
        (source, source / 'small', 'put DST beside SRC'),
        (source / 'videos', source, 'put DST beside SRC'),
        (source, source / 'train.json', 'is not a folder'),
    ]:
        before = stamps(source)
        done = compress(src, dst)
        assert done.returncode == 1
        assert message in done.stderr and 'Traceback' not in done.stderr
        assert stamps(source) == before and not (tmp_path / 'out').exists()


def test_originals_are_never_written_over(source, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(source, other)
    before = stamps(other)
    done = compress(source, other)
    assert done.returncode == 1
    assert 'It may be an original' in done.stderr
    assert stamps(other) == before

    splits = tmp_path / 'splits'
    splits.mkdir()
    (splits / 'train.json').write_text('{"a.mp4": ["by hand"]}')
    done = compress(source, splits)
    assert done.returncode == 1 and 'holds train.json' in done.stderr
    assert 'by hand' in (splits / 'train.json').read_text()


def test_annotations_that_cannot_be_read_are_named(source, tmp_path):
    (source / 'test.json').symlink_to(tmp_path / 'nowhere')
    done = compress(source, tmp_path / 'out')
    assert done.returncode == 1
    assert f'{source / "test.json"} cannot be read' in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_jump_in_time_hides_no_frame(tmp_path):
    """Broken timestamps: an hour passes in the middle of a second."""
    times = [i / 25 + 3600 * (i >= 30) for i in range(60)]
    write(tmp_path / 'data/a.mp4', [grey(20 + 3 * i) for i in range(60)], times)
    done = compress(tmp_path / 'data', tmp_path / 'out', '--min-frames', '60')
    assert done.returncode == 0, done.stdout + done.stderr
    shown, _ = seconds_shown(tmp_path / 'out/a.mp4')
    assert len(shown) == 60 and np.all(np.diff(shown) > 0)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--fps', '0'], 'argument --fps'),
        (['--fps', 'nan'], 'argument --fps'),
        (['--quality', '1'], '--quality of mjpeg is 2 to 31, not 1'),
        (['--quality', '52', '--codec', 'h264'], 'of h264 is 0 to 51, not 52'),
        (['--short-side', '0'], 'argument --short-side'),
        (['--min-frames', '0'], 'argument --min-frames'),
        (['--jobs', '0'], 'argument --jobs'),
        (['--codec', 'vp9'], 'argument --codec'),
    ],
)
def test_bad_options_are_refused(source, tmp_path, options, message):
    done = compress(source, tmp_path / 'out', *options)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / 'out').exists()


# Videos that cannot be read


def test_what_cannot_be_read_is_listed(source, tmp_path):
    rng = np.random.default_rng(0)
    noise = list(rng.integers(0, 255, (60, 80, 96, 3), dtype=np.uint8))
    videos, out = source / 'videos', tmp_path / 'out'
    write(videos / 'torn.mp4', noise)
    whole = (videos / 'torn.mp4').read_bytes()
    middle = len(whole) // 2
    torn = bytearray(whole)
    torn[middle : middle + 9000] = rng.bytes(9000)
    write(videos / 'cut.mkv', noise)
    cut = (videos / 'cut.mkv').read_bytes()
    write(videos / 'short.avi', noise, codec='mpeg4')
    short = (videos / 'short.avi').read_bytes()
    bad = {
        'torn.mp4': (torn, 's of 2.4 s (Invalid data'),
        'cut.mkv': (cut[: len(cut) // 2], 'it is cut off'),
        'short.avi': (short[: len(short) // 2], 'it is cut off'),
        'empty.mp4': (b'', 'Invalid data'),
        'text.mov': (b'no video', 'Invalid data'),
    }
    for name, (data, _) in bad.items():
        (videos / name).write_bytes(data)
    with av.open(str(videos / 'sound.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format='fltp', layout='mono'
        )
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    bad['sound.mp4'] = (None, 'it has no video stream')
    (videos / 'gone.mp4').symlink_to('nowhere.mp4')
    bad['gone.mp4'] = (None, 'No such file')
    # decord 0.6 reads so narrow a picture with four channels.
    write(videos / 'narrow.mp4', [grey(90, 48, 80)] * 8)
    bad['narrow.mp4'] = (None, 'decord misreads its copy')

    done = compress(source, out)
    assert done.returncode == 1
    assert f'3 videos copied, 0 done before, {len(bad)} unrea' in done.stdout
    listed = (out / 'unreadable.txt').read_text()
    assert listed in done.stdout and listed.count('\n') == len(bad)
    for name, (_, reason) in bad.items():
        line = next(line for line in listed.splitlines() if line.startswith(f'{videos / name}: '))
        assert reason in line, line
        assert not (out / 'videos' / name).exists()
    assert 'Traceback' not in done.stderr

    for name in bad:
        (videos / name).unlink()
    done = compress(source, out)
    assert done.returncode == 0
    assert not (out / 'unreadable.txt').exists()


def test_real_videos(shared_data, tmp_path):
    done = compress(shared_data / 'videos', tmp_path)
    assert done.returncode == 1
    assert '5 videos copied, 0 done before, 1 unreadable' in done.stdout
    assert (
        'corrupted.mp4: decoding fails at 2.7 s of 5.0 s'
        in (tmp_path / 'unreadable.txt').read_text()
    )
    for name in ('unordered.mov', 'flipping_a_pancake.mkv'):
        readers = [
            decord.VideoReader(str(folder / name), num_threads=1)
            for folder in (shared_data / 'videos', tmp_path)
        ]
        durations = [len(each) / each.get_avg_fps() for each in readers]
        assert durations[1] == pytest.approx(durations[0], abs=0.002)


# Runs that are cut off


@pytest.fixture
def many(tmp_path):
    """A folder of 16 videos that take some seconds in all."""
    folder = tmp_path / 'many'
    write(folder / '00.mp4', [gradient(640, 480)] * 500, options=dict(qp='10', preset='ultrafast'))
    for number in range(1, 16):
        os.link(folder / '00.mp4', folder / f'{number:02}.mp4')
    return folder


def start(*arguments):
    """Start a run of its own process group; wait for the first copy."""
    run = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # These tests may run in the background of a shell, ignoring Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(arguments[1].glob('*.mp4')):
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    return run


def workers(run):
    """The process ids of a run's workers."""
    children = Path(f'/proc/{run.pid}/task/{run.pid}/children').read_text()
    return [
        int(child)
        for child in children.split()
        if b'spawn_main' in Path(f'/proc/{child}/cmdline').read_bytes()
    ]


def assert_complete(copies, number=None):
    assert number is None or len(copies) == number
    for path in copies:
        assert len(decord.VideoReader(str(path), num_threads=1)) == 60


def test_killed_and_started_again(many, tmp_path):
    out = tmp_path / 'out'
    run = start(many, out, '--jobs', '2')
    pids = workers(run)
    assert len(pids) == 2
    run.kill()
    run.wait()
    deadline = time.time() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in pids):
        assert time.time() < deadline, 'workers live on'
        time.sleep(0.02)
    before = stamps(out)
    assert_complete(before)
    assert len(before) < 16

    host = os.uname().nodename
    dead = out / f'.compress_videos.{host}.{run.pid}.tmp'
    live = out / f'.compress_videos.{host}.{os.getpid()}.tmp'
    elsewhere = out / '.compress_videos.another-host.1234567.tmp'
    for path in (dead, live, elsewhere):
        path.write_bytes(b'half')
    done = compress(many, out)
    assert done.returncode == 0, done.stderr
    assert f'{len(before)} done before' in done.stdout
    after = stamps(out)
    assert_complete(after, 16)
    assert before.items() <= after.items()
    assert sorted(temporaries(out)) == sorted([live, elsewhere])


def test_workers_end_with_their_parent(tmp_path):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    write(folder / 'a.mp4', [grey(90)] * 9)
    write(folder / 'b.mp4', [gradient(640, 480)] * 600, options=dict(qp='10', preset='ultrafast'))
    # The one that has made the first copy waits for more to do.
    run = start(folder, out, '--jobs', '2')
    pids = workers(run)
    run.kill()
    run.wait()
    deadline = time.time() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in pids):
        assert time.time() < deadline, 'workers live on'
        time.sleep(0.02)


def test_processes_do_not_share_a_temporary(tmp_path):
    code = (
        'import sys; from pathlib import Path; '
        'from compress_videos import write\n'
        'for i in range(100):\n'
        '    write(Path(sys.argv[1], f"{sys.argv[2]}{i}"), '
        'sys.argv[2].encode() * 500_000)'
    )
    runs = [
        subprocess.Popen([sys.executable, '-c', code, tmp_path, name], cwd=SCRIPT.parent)
        for name in 'ab'
    ]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 200
    for path in tmp_path.iterdir():
        assert path.read_bytes() == path.name[0].encode() * 500_000


def test_interrupted(many, tmp_path):
    out = tmp_path / 'out'
    run = start(many, out, '--jobs', '2')
    os.killpg(run.pid, signal.SIGINT)
    stdout, stderr = run.communicate(timeout=30)
    assert run.returncode == 130
    assert 'Give the same command again' in stdout
    assert 'Traceback' not in stderr
    assert len(stamps(out)) < 16 and not temporaries(out)
    assert_complete(stamps(out))


def test_a_worker_that_dies_costs_nothing(many, tmp_path):
    out = tmp_path / 'out'
    run = start(many, out, '--jobs', '2')
    os.kill(workers(run)[0], signal.SIGKILL)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 0, stdout + stderr
    assert_complete(stamps(out), 16)


def test_two_runs_at_once(many, tmp_path):
    out = tmp_path / 'out'
    runs = [start(many, out, '--jobs', '1') for _ in range(2)]
    for run in runs:
        stdout, stderr = run.communicate(timeout=60)
        assert run.returncode == 0, stdout + stderr
    assert_complete(stamps(out), 16)
    assert not temporaries(out)


def test_a_full_disk(source, tmp_path):
    # A limit on the size of a file fails in the middle of it, too.
    out = tmp_path / 'out'

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = compress(source, out, preexec_fn=limit)
    assert done.returncode == 1
    assert 'cannot be written: ' in done.stderr
    assert 'Give the same command again' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not stamps(out) and not temporaries(out)
    (source / 'train.json').write_text(json.dumps(['a caption'] * 1000))
    done = compress(source, out, preexec_fn=limit)
    assert f'{out / "train.json"} cannot be written: ' in done.stderr
    assert not temporaries(out)
    assert compress(source, out).returncode == 0


# As training reads it


def test_the_projects_pipeline_reads_a_copy(tmp_path, monkeypatch):
    root, out = tmp_path / 'data', tmp_path / 'out'
    write(root / 'videos/clock.mp4', [grey(round(level(t))) for t in EVEN])
    for split, window in dict(whole={}, part=dict(start=2.0, end=6.0)).items():
        (root / f'{split}.json').write_text(
            json.dumps({'clock.mp4': dict(captions=['a clock'], **window)})
        )
    assert compress(root, out).returncode == 0

    monkeypatch.setenv('DATA_ROOT', str(out))
    cfg = open_config(ROOT / 'configs/vop_didemo.py')
    for split, (start, end) in dict(whole=(0, 8), part=(2, 6)).items():
        cfg.test_dataloader.dataset.ann_file = f'{split}.json'
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        frames = dataset[0]['inputs']['imgs']
        assert frames.shape == (12, 3, 224, 224)
        seconds = (frames.float().mean((1, 2, 3)).numpy() - 20) / 20
        assert (np.diff(seconds) > 0).all() or split == 'part'
        assert start <= seconds.min() < start + 0.5
        assert end - 1.1 < seconds.max() < end
        # UniformSample's, of the frames of the window at 3 a second.
        total = (end - start) * 3
        step = (total - 1) / 12
        index = [round(step * i) + int(step / 2) for i in range(12)]
        expected = start + (np.array(index) + 0.5) / 3
        assert abs(seconds - expected).max() < 1 / 6
