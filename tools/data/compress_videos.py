"""Copy a data set's videos in a form that trains far faster.

A copy has few frames a second (--fps), a small picture (--short-side), no
sound, and key frames alone: none needs its neighbours, so a reader decodes
the frames it wants and no others. It lasts as long as the original, and each
frame shows what the original shows in the middle of its interval, so windows
of time stay right. Names and folders stay too:

    python tools/data/compress_videos.py data/msrvtt data/msrvtt_small
    DATA_ROOT=data/msrvtt_small python tools/train.py configs/vop_msrvtt.py

SRC is a data root (.json files beside videos/), so that DST is one too, or
any folder of videos. Give the same command again to go on after a stop: what
is done is skipped, and what is newer in SRC is done again. Each process holds
one copy in memory until it is complete.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import decord
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from tqdm import tqdm

from projects.vop.fileio import VIDEO_SUFFIXES as SUFFIXES

SETTINGS = 'compress_videos.json'
UNREADABLE = 'unreadable.txt'
CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mp4', '.avi': 'avi'}
TEMPORARY = re.compile(r'\.compress_videos\.(.+)\.(\d+)\.tmp')


class Codec(NamedTuple):
    """How a codec of --codec is set up."""

    encoder: str
    pixels: str
    color_range: ColorRange
    qualities: range  # the lower, the better
    quality: int  # default

    def options(self, quality: int) -> dict:
        if self.encoder == 'mjpeg':
            return dict(qmin=str(quality), qmax=str(quality))
        # Without CABAC and the loop filter, which is what fastdecode leaves
        # out, it decodes in two thirds of the time.
        return dict(crf=str(quality), g='1', bf='0', tune='fastdecode', threads='1')


CODECS = dict(
    mjpeg=Codec('mjpeg', 'yuvj420p', ColorRange.JPEG, range(2, 32), 4),
    h264=Codec('libx264', 'yuv420p', ColorRange.MPEG, range(0, 52), 23),
)


class Settings(NamedTuple):
    """What the copies in a folder have in common."""

    fps: float
    short_side: int
    codec: str
    quality: int
    min_frames: int

    def __str__(self) -> str:
        return ' '.join(
            f'--{name.replace("_", "-")} {value}' for name, value in self._asdict().items()
        )


class Unreadable(Exception):
    """A video cannot be copied; the message says why."""


class WriteError(Exception):
    """A file cannot be written; the message says which and why."""


# Reading


class Timeline(NamedTuple):
    """When the frames of a video are on screen, in seconds."""

    start: Fraction
    duration: Fraction
    num_frames: int
    # Between frames, where a file has no timestamps to go by.
    step: Fraction | None


def video_stream(container):
    """The stream that decord reads too."""
    stream = container.streams.best('video')
    if stream is None:
        raise Unreadable('it has no video stream')
    stream.codec_context.thread_count = 1  # there is a process for each core
    return stream


def read_timeline(path: Path) -> Timeline:
    """Read the timestamps, without decoding.

    Raises:
        Unreadable: If there is no frame, or the file is cut off.
    """
    with av.open(str(path)) as container:
        stream = video_stream(container)
        packets, end = [], 0
        for packet in container.demux():
            if not packet.size:
                continue  # marks the end
            if packet.pts is not None:
                end = max(end, (packet.pts + packet.duration) * packet.time_base)
            if packet.stream.index != stream.index:
                continue
            if packet.is_corrupt:
                raise Unreadable(f'it is cut off at {float(end):.1f} s, in a frame')
            if not packet.is_discard:  # by an edit list
                packets.append((packet.pts, packet.dts, packet.duration))
        if container.duration:
            promised = container.duration / av.time_base
            # Headers are not exact.
            if end and end < 0.95 * promised and end < promised - 0.5:
                raise Unreadable(
                    f'it is cut off: it ends at {float(end):.1f}'
                    f' s, of {promised:.1f} s in its header'
                )
        rate = stream.average_rate or stream.guessed_rate
        unit = stream.time_base
    if not packets:
        raise Unreadable('its video stream is empty')
    n = len(packets)
    shown = sorted((pts, duration) for pts, _, duration in packets if pts is not None)
    decoded = [dts for _, dts, _ in packets if dts is not None]
    if (
        len(shown) == n
        and decoded == sorted(decoded)
        and not jumps([pts * unit for pts, _ in shown])
    ):
        first, last = shown[0][0], shown[-1][0]
        final = shown[-1][1] * unit
        if not final:  # not every format has it
            final = (last - first) * unit / (n - 1) if n > 1 else 0
        duration = (last - first) * unit + (final or 1 / Fraction(rate or 1))
        return Timeline(first * unit, duration, n, None)
    # Timestamps are missing, start over or jump: all that is left is the
    # rate, and decord goes by that.
    if not rate:
        raise Unreadable('it has neither timestamps nor a frame rate')
    return Timeline(Fraction(0), n / Fraction(rate), n, 1 / Fraction(rate))


def jumps(seconds: list[Fraction]) -> bool:
    """Whether most of a video's time lies between two frames of it."""
    gaps = [b - a for a, b in zip(seconds, seconds[1:])]
    return len(gaps) > 1 and max(gaps) > max(10, sum(gaps) / 2)


def rotation(container, stream, frame: av.VideoFrame) -> int:
    """Quarters of a turn, counterclockwise, by which decord turns a frame."""
    if 'mov' in container.format.name:
        degrees = frame.rotation
    else:
        tags = {key.lower(): tag for key, tag in stream.metadata.items()}
        degrees = -float(tags.get('rotate', 0))
    return round(degrees / 90) % 4


def decode(path: Path, timeline: Timeline) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Frames with the second when they come on screen, upright.

    Raises:
        Unreadable: If decoding fails, be it in the last frame.
    """
    with av.open(str(path)) as container:
        stream = video_stream(container)
        number, time = 0, timeline.start
        try:
            for frame in container.decode(stream):
                if timeline.step is not None:
                    time = number * timeline.step
                elif frame.pts is not None:
                    time = frame.pts * frame.time_base
                turns = rotation(container, stream, frame)
                if turns:
                    picture = np.rot90(frame.to_ndarray(format='rgb24'), turns)
                    frame = av.VideoFrame.from_ndarray(
                        np.ascontiguousarray(picture), format='rgb24'
                    )
                yield time, frame
                number += 1
        except av.FFmpegError as error:
            raise Unreadable(
                f'decoding fails at {float(time - timeline.start):.1f} s of '
                f'{float(timeline.duration):.1f} s ({error.strerror})'
            ) from error
    if not number:
        raise Unreadable('no frame of it can be decoded')


def pick(
    frames: Iterable[tuple[Fraction, av.VideoFrame]], seconds: list[Fraction]
) -> Iterator[av.VideoFrame]:
    """The frames that are on screen at these seconds, which ascend.

    All ``frames`` are drawn, so that an error behind the last second shows.
    """
    seconds, shown = iter(seconds), None
    second = next(seconds)
    for time, frame in frames:
        while second is not None and second < time:
            yield shown or frame  # a picture that no frame precedes
            second = next(seconds, None)
        shown = frame
    while second is not None:
        yield shown
        second = next(seconds, None)


# Writing


def picture_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height of the copies' frames, even and never larger."""
    scale = min(1, short_side / min(width, height))
    if scale == 1:
        width, height = width - width % 2, height - height % 2
    return tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))


def encode(path: Path, settings: Settings) -> bytes:
    """A copy of a video.

    Raises:
        Unreadable: If the video cannot be read to its end.
    """
    codec = CODECS[settings.codec]
    timeline = read_timeline(path)
    # The whole duration in equal parts, no more than there are frames.
    n = max(settings.min_frames, round(timeline.duration * settings.fps))
    n = min(n, timeline.num_frames)
    rate = (n / timeline.duration).limit_denominator(1_000_000)
    seconds = [timeline.start + (i + Fraction(1, 2)) * timeline.duration / n for i in range(n)]
    output = io.BytesIO()
    container_format = CONTAINERS.get(path.suffix.lower(), 'matroska')
    with av.open(output, 'w', format=container_format) as container:
        stream = None
        for number, frame in enumerate(pick(decode(path, timeline), seconds)):
            if stream is None:
                stream = container.add_stream(
                    codec.encoder, rate=rate, options=codec.options(settings.quality)
                )
                stream.width, stream.height = picture_size(
                    frame.width, frame.height, settings.short_side
                )
                stream.pix_fmt = codec.pixels
                stream.codec_context.thread_count = 1
            # The matrix and range that decord takes for granted; the frame
            # itself knows those of the original.
            frame = frame.reformat(
                stream.width,
                stream.height,
                codec.pixels,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=codec.color_range,
                interpolation='BICUBIC',
            )
            frame.pts, frame.time_base = number, 1 / rate
            frame.pict_type = 0  # not the original's
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        shape = stream.height, stream.width, 3
    check(output, n, shape)
    return output.getvalue()


def check(copy: io.BytesIO, num_frames: int, shape: tuple) -> None:
    """Read a copy as training will."""
    copy.seek(0)
    try:
        reader = decord.VideoReader(copy, num_threads=1)
        found = len(reader), *reader[len(reader) - 1].shape
    except Exception as error:
        line = str(error).strip().splitlines()[-1]
        raise Unreadable(f'decord fails on its copy ({line})') from error
    if found != (num_frames, *shape):
        raise Unreadable(
            'decord misreads its copy: frames x height x width x channels are'
            f' {found}, not {(num_frames, *shape)}'
        )


def write(path: Path, data: bytes, mtime_ns: int | None = None) -> None:
    """Write a file that is complete or not there.

    Args:
        path (Path): Where to.
        data (bytes): What it holds.
        mtime_ns (int, optional): When the file it is made from was modified.
            Taken before that is read, so that a change in the meantime shows.
    """
    temporary = path.with_name(f'.compress_videos.{socket.gethostname()}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            if mtime_ns is not None:
                # Rounded up to 10 ms, as not every file system keeps more,
                # and a copy must not seem older than its source.
                mtime_ns = -(-mtime_ns // 10**7) * 10**7
                os.utime(temporary, ns=(mtime_ns, mtime_ns))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f'{path} cannot be written: {error.strerror}.') from error


def remove_temporaries(folder: Path) -> None:
    """Remove what killed runs on this machine left."""
    for path in folder.rglob('.compress_videos.*.tmp'):
        match = TEMPORARY.fullmatch(path.name)
        if match is None or match[1] != socket.gethostname():
            continue
        try:
            os.kill(int(match[2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:
            pass  # it lives, and is another user's


# Over a folder


def is_done(source: Path, copy: Path) -> bool:
    """Whether there is a copy that is no older than its source."""
    try:
        return source.stat().st_mtime_ns <= copy.stat().st_mtime_ns
    except OSError:
        return False


def find_files(folder: Path) -> list[Path]:
    """All files, relative to the folder; links to folders are followed."""

    def fail(error: OSError) -> None:
        raise SystemExit(f'{error.filename} cannot be read: {error.strerror}.')

    files = []
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        above = Path(root).parents[: len(Path(root).relative_to(folder).parts)]
        if os.path.realpath(root) in map(os.path.realpath, above):
            folders.clear()  # it is a link to a folder above it
            continue
        folders.sort()
        files += [Path(root, name).relative_to(folder) for name in sorted(names)]
    return files


class Task(NamedTuple):
    """A video to copy."""

    source: Path
    copy: Path
    settings: Settings


def perform(task: Task) -> str | None:
    """Copy a video.

    Returns:
        str | None: Why it cannot be read, if so.

    Raises:
        WriteError: If the copy cannot be written.
    """
    try:
        mtime_ns = task.source.stat().st_mtime_ns
        data = encode(task.source, task.settings)
    except Unreadable as error:
        return str(error)
    except (OSError, av.FFmpegError) as error:
        return error.strerror or str(error)
    except Exception as error:  # one video does not stop the others
        return f'{type(error).__name__}: {error}'
    write(task.copy, data, mtime_ns)
    return None


def end_with_parent() -> None:
    """End a worker as soon as the process that started it is gone."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def perform_in_pool(tasks: list[Task], jobs: int) -> Iterator[tuple[Task, str | None]]:
    """What ``perform`` says of each task, as they are done."""
    with ProcessPoolExecutor(
        min(jobs, len(tasks)), multiprocessing.get_context('spawn'), initializer=end_with_parent
    ) as pool:
        try:
            # Workers start here and inherit that Ctrl-C does not reach them;
            # it reaches this process, which ends them.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = {pool.submit(perform, task): task for task in tasks}
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def perform_all(tasks: list[Task], jobs: int) -> Iterator[tuple[Task, str | None]]:
    """The same, where a task that crashes its process does not stop it."""
    while tasks:
        done = set()
        try:
            for task, reason in perform_in_pool(tasks, jobs):
                done.add(task)
                yield task, reason
            return
        except BrokenProcessPool:
            # It was one of those that ran: try these on their own.
            left = [task for task in tasks if task not in done]
            suspects, tasks = left[:jobs], left[jobs:]
        for task in suspects:
            try:
                yield from perform_in_pool([task], 1)
            except BrokenProcessPool:
                yield task, ('its process crashed or was killed, perhaps for want of memory')


def check_folders(src: Path, dst: Path) -> None:
    """Refuse folders that would be read and written at once."""
    if not src.is_dir():
        raise SystemExit(f'There is no folder {src}.')
    if dst.exists() and not dst.is_dir():
        raise SystemExit(f'{dst} is not a folder.')
    inside = src.resolve(), dst.resolve()
    if inside[0] == inside[1]:
        raise SystemExit(f'SRC and DST are the same folder, {inside[0]}.')
    for inner, outer in (inside, inside[::-1]):
        if outer in inner.parents:
            raise SystemExit(f'{inner} lies in {outer}: put DST beside SRC.')


def check_settings(dst: Path, settings: Settings) -> None:
    """Hold against what DST was made with, or note it there.

    Only a folder that says what it is made with is written to: any other
    that holds videos or annotations may be someone's originals.
    """
    path = dst / SETTINGS
    if path.is_file():
        try:
            made = Settings(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise SystemExit(
                f'{path} is not what this tool writes ({error}). Give '
                'another DST, or delete this one.'
            ) from error
        if made != settings:
            raise SystemExit(
                f'{dst} holds copies made with\n  {made}\nnot with\n  '
                f'{settings}\nGive those options again, or another DST, or '
                f'delete {dst}.'
            )
        return
    there = [
        file
        for file in (find_files(dst) if dst.is_dir() else [])
        if file.suffix.lower() in (*SUFFIXES, '.json')
    ]
    if there:
        raise SystemExit(
            f'{dst} holds {there[0]}, but no {SETTINGS} that says how it was '
            'made. It may be an original, so nothing is written there: give '
            'another DST.'
        )
    write(path, json.dumps(settings._asdict()).encode())


def in_megabytes(size: int) -> str:
    return f'{size / 1e6:,.1f} MB'


def copy_texts(files: list[Path], src: Path, dst: Path) -> None:
    """Copy annotation files as they are."""
    for file in files:
        try:
            data = (src / file).read_bytes()
        except OSError as error:
            raise SystemExit(f'{src / file} cannot be read: {error.strerror}.') from error
        copy = dst / file
        if not (copy.is_file() and copy.read_bytes() == data):
            write(copy, data)


def compress(src: Path, dst: Path, settings: Settings, jobs: int) -> int:
    """Copy a folder.

    Returns:
        int: How many videos could not be read.
    """
    check_folders(src, dst)
    files = find_files(src)
    videos = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not videos:
        raise SystemExit(f'There is no video ({", ".join(SUFFIXES)}) in {src}.')
    check_settings(dst, settings)
    remove_temporaries(dst)
    # The notes of a run are no part of a data set.
    texts = [file for file in files if file.suffix.lower() == '.json' and file != Path(SETTINGS)]
    copy_texts(texts, src, dst)

    tasks = [
        Task(src / file, dst / file, settings)
        for file in videos
        if not is_done(src / file, dst / file)
    ]
    unreadable = {}
    for task, reason in tqdm(
        perform_all(tasks, jobs),
        total=len(videos),
        initial=len(videos) - len(tasks),
        unit='video',
        disable=None,
    ):  # where there is no terminal
        if reason is not None:
            unreadable[task.source] = reason
            task.copy.unlink(missing_ok=True)  # of what was there before

    copied = [file for file in videos if src / file not in unreadable]
    sizes = [sum((root / file).stat().st_size for file in copied) for root in (src, dst)]
    print(
        f'{len(tasks) - len(unreadable):,} videos copied, '
        f'{len(videos) - len(tasks):,} done before, '
        f'{len(unreadable):,} unreadable; {len(texts):,} .json files; '
        f'{len(files) - len(videos) - len(texts):,} other files left alone.'
    )
    if copied:
        print(
            f'{src}: {in_megabytes(sizes[0])} of videos, {dst}: '
            f'{in_megabytes(sizes[1])} ({sizes[1] / sizes[0]:.0%}).'
        )
    report = dst / UNREADABLE
    if unreadable:
        lines = [f'{path}: {unreadable[path]}\n' for path in sorted(unreadable)]
        write(report, ''.join(lines).encode())
        print(f'Unreadable (also in {report}):')
        print(''.join(lines), end='')
        print(
            f'Training on {dst} needs them there, readable, or '
            'train_dataloader.dataset.skip_bad_videos=True.'
        )
    else:
        report.unlink(missing_ok=True)
    return len(unreadable)


def number(kind: type, least: float):
    """A type for argparse: a finite number, of at least so much."""

    def parse(text: str):
        value = kind(text)
        if not math.isfinite(value) or value < least:
            raise ValueError
        return value

    parse.__name__ = f'number of at least {least}:'
    return parse


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', type=Path, metavar='SRC')
    parser.add_argument('dst', type=Path, metavar='DST')
    parser.add_argument(
        '--fps',
        type=number(float, 0.01),
        default=3.0,
        help='frames a second, never more than the original has (default: %(default)g)',
    )
    parser.add_argument(
        '--short-side',
        type=number(int, 16),
        default=224,
        help='pixels of the shorter side, never more than the original has (default: %(default)s)',
    )
    parser.add_argument(
        '--codec',
        choices=list(CODECS),
        default='mjpeg',
        help='mjpeg is read faster, h264 is smaller (default: %(default)s)',
    )
    parser.add_argument(
        '--quality',
        type=int,
        help='lower is better and larger: the quantiser of mjpeg, 2 to 31 '
        f'(default: {CODECS["mjpeg"].quality}), or the constant rate factor '
        f'of h264, 0 to 51 (default: {CODECS["h264"].quality})',
    )
    parser.add_argument(
        '--min-frames',
        type=number(int, 1),
        default=24,
        help='a video so short that it would have fewer frames gets a higher '
        'rate, up to its own (default: %(default)s)',
    )
    parser.add_argument(
        '--jobs',
        type=number(int, 1),
        default=len(os.sched_getaffinity(0)),
        help='processes (default: one for each core, here %(default)s)',
    )
    args = parser.parse_args(argv)
    codec = CODECS[args.codec]
    if args.quality is None:
        args.quality = codec.quality
    if args.quality not in codec.qualities:
        parser.error(
            f'--quality of {args.codec} is {codec.qualities[0]} to '
            f'{codec.qualities[-1]}, not {args.quality}'
        )
    settings = Settings(*(getattr(args, name) for name in Settings._fields))
    again = 'Give the same command again to go on.'
    try:
        unreadable = compress(args.src, args.dst, settings, args.jobs)
    except KeyboardInterrupt:
        remove_temporaries(args.dst)
        print(f'\nStopped; the copies so far are complete. {again}')
        raise SystemExit(130) from None
    except WriteError as error:
        remove_temporaries(args.dst)
        raise SystemExit(
            f'{error} The copies so far are complete, and nothing is half written. {again}'
        ) from error
    raise SystemExit(1 if unreadable else 0)


if __name__ == '__main__':
    main()
