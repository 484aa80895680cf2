"""Decode one video, and encode a small copy of it."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import decord
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mp4', '.avi': 'avi'}


class Codec(NamedTuple):
    """A codec of ``--codec``, as FFmpeg encodes it."""

    encoder: str
    pixels: str
    color_range: ColorRange
    qualities: range  # the lower, the better
    quality: int  # default
    quality_options: tuple[str, ...]
    options: dict[str, str]


# fastdecode leaves out CABAC and the loop filter: two thirds of the time.
FAST = dict(g='1', bf='0', tune='fastdecode', threads='1')
CODECS = dict(
    mjpeg=Codec('mjpeg', 'yuvj420p', ColorRange.JPEG, range(2, 32), 4, ('qmin', 'qmax'), {}),
    h264=Codec('libx264', 'yuv420p', ColorRange.MPEG, range(0, 52), 23, ('crf',), FAST),
)


class CopySettings(NamedTuple):
    """What the copies in a folder have in common."""

    fps: float = 3.0
    short_side: int = 224
    codec: str = 'mjpeg'
    quality: int = CODECS['mjpeg'].quality
    min_frames: int = 24

    def __str__(self) -> str:
        items = self._asdict().items()
        return ' '.join(f'--{name.replace("_", "-")} {value}' for name, value in items)


class TranscodeError(Exception):
    """A video cannot be copied; the message says why."""


class Timeline(NamedTuple):
    """When the frames of a video are on screen, in seconds."""

    start: Fraction
    duration: Fraction
    num_frames: int
    step: Fraction | None  # between frames, where the file's timestamps are of no use


@contextmanager
def open_video(path: Path) -> Iterator[tuple]:
    """Open a file, and the stream in it that decord reads, too."""
    try:
        # A title that is not UTF-8 is no reason to refuse a video; and what is no whole path may
        # begin as an address does, such as take:1.mp4.
        with av.open(os.path.abspath(path), metadata_errors='replace') as container:
            stream = container.streams.best('video')
            if stream is None:
                raise TranscodeError('it has no video stream')
            stream.codec_context.thread_count = 1  # there is one process per core
            yield container, stream
    except av.FFmpegError as error:
        raise TranscodeError(error.strerror) from error


def read_timeline(path: Path) -> Timeline:
    """Read the timestamps, without decoding; a file that is cut off is refused."""
    with open_video(path) as (container, stream):
        packets, end = [], 0
        for packet in container.demux():
            if not packet.size:
                continue  # marks the end
            if packet.pts is not None:
                end = max(end, (packet.pts + packet.duration) * packet.time_base)
            if packet.stream.index != stream.index:
                continue
            if packet.is_corrupt:
                raise TranscodeError(f'it is cut off at {float(end):.1f} s, in a frame')
            if not packet.is_discard:  # by an edit list
                packets.append((packet.pts, packet.dts, packet.duration))
        promised = Fraction(container.duration or 0, av.time_base)
        if end and end < 0.95 * promised and end < promised - 0.5:  # headers are not exact
            times = f'{float(end):.1f} s, of {float(promised):.1f} s in its header'
            raise TranscodeError(f'it is cut off: it ends at {times}')
        rate = stream.average_rate or stream.guessed_rate
        unit = stream.time_base
    if not packets:
        raise TranscodeError('its video stream is empty')
    n = len(packets)
    shown = sorted((pts, duration) for pts, _, duration in packets if pts is not None)
    decoded = [dts for _, dts, _ in packets if dts is not None]
    # Timestamps may be missing, start over or jump: most of the time lies between two frames.
    gaps = [(b - a) * unit for (a, _), (b, _) in zip(shown, shown[1:])]
    jump = len(gaps) > 1 and max(gaps) > max(10, sum(gaps) / 2)
    if len(shown) == n and decoded == sorted(decoded) and not jump:
        total, last = sum(gaps), shown[-1][1] * unit  # not every format has the last one's
        duration = total + (last or (total / (n - 1) if n > 1 else 1 / Fraction(rate or 1)))
        return Timeline(shown[0][0] * unit, duration, n, None)
    if not rate:  # which decord goes by then
        raise TranscodeError('it has neither timestamps nor a frame rate')
    return Timeline(Fraction(0), n / Fraction(rate), n, 1 / Fraction(rate))


def upright(frame: av.VideoFrame, container, stream) -> av.VideoFrame:
    """Turn a frame as decord does."""
    degrees = frame.rotation
    if 'mov' not in container.format.name:
        tags = {key.lower(): tag for key, tag in stream.metadata.items()}
        degrees = -float(tags.get('rotate', 0))
    turns = round(degrees / 90) % 4  # counterclockwise
    if not turns:
        return frame
    picture = np.rot90(frame.to_ndarray(format='rgb24'), turns)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')


def decode(path: Path, timeline: Timeline) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Decode all frames, each after the second at which it comes on screen."""
    with open_video(path) as (container, stream):
        number, time = 0, timeline.start
        try:
            for frame in container.decode(stream):
                if timeline.step is not None:
                    time = number * timeline.step
                elif frame.pts is not None:
                    time = frame.pts * frame.time_base
                yield time, upright(frame, container, stream)
                number += 1
        except av.FFmpegError as error:
            seconds = f'{float(time - timeline.start):.1f} s of {float(timeline.duration):.1f} s'
            raise TranscodeError(f'decoding fails at {seconds} ({error.strerror})') from error
    if not number:
        raise TranscodeError('no frame of it can be decoded')


def pick(
    frames: Iterable[tuple[Fraction, av.VideoFrame]], seconds: list[Fraction]
) -> Iterator[av.VideoFrame]:
    """Pick the frames that are on screen at these seconds, which ascend.

    All ``frames`` are read, so that an error after the last second is found.
    """
    seconds, shown = deque(seconds), None
    for time, frame in frames:
        while seconds and seconds[0] < time:
            seconds.popleft()
            yield shown or frame  # a picture that no frame precedes
        shown = frame
    yield from [shown] * len(seconds)


def picture_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height of the copies' frames, even and never larger."""
    scale = min(1, short_side / min(width, height))
    if scale == 1:
        width, height = width - width % 2, height - height % 2
    return tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))


def encode(path: Path, settings: CopySettings) -> bytes:
    """Make a copy of a video, and read it with decord, as training will."""
    codec = CODECS[settings.codec]
    options = codec.options | dict.fromkeys(codec.quality_options, str(settings.quality))
    timeline = read_timeline(path)
    # The whole duration in equal parts, no more than there are frames.
    n = max(settings.min_frames, round(timeline.duration * settings.fps))
    n = min(n, timeline.num_frames)
    rate = (n / timeline.duration).limit_denominator(1_000_000)
    seconds = [timeline.start + (i + Fraction(1, 2)) * timeline.duration / n for i in range(n)]
    output = io.BytesIO()
    container_format = CONTAINERS.get(path.suffix.lower(), 'matroska')
    with av.open(output, 'w', format=container_format) as container:
        stream = container.add_stream(codec.encoder, rate=rate, options=options)
        stream.pix_fmt = codec.pixels
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(pick(decode(path, timeline), seconds)):
            if number == 0:
                size = picture_size(frame.width, frame.height, settings.short_side)
                stream.width, stream.height = size
            # The matrix and range that decord assumes; the frame knows its own.
            look = dict(dst_colorspace=Colorspace.ITU601, dst_color_range=codec.color_range)
            frame = frame.reformat(*size, codec.pixels, interpolation='BICUBIC', **look)
            frame.pts, frame.time_base = number, 1 / rate
            frame.pict_type = 0  # not the original's
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    output.seek(0)
    try:
        reader = decord.VideoReader(output, num_threads=1)
        found, wanted = (len(reader), *reader[len(reader) - 1].shape), (n, size[1], size[0], 3)
    except Exception as error:
        line = str(error).strip().splitlines()[-1]
        raise TranscodeError(f'decord fails on its copy ({line})') from error
    if found != wanted:
        sizes = f'frames x height x width x channels are {found}, not {wanted}'
        raise TranscodeError(f'decord misreads its copy: {sizes}')
    return output.getvalue()
