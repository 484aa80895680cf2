"""Decode one video, and encode a small copy of it."""

import io
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, pairwise
from math import ceil
from pathlib import Path
from typing import NamedTuple

import av
import av.logging
import decord
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from projects.vop.damage import missing_end
from projects.vop.errors import VideoReadError, shown

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mp4'}  # AVI has one rate for all frames


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


class TranscodeError(VideoReadError):
    """A video cannot be copied; the message says why."""


class Timeline(NamedTuple):
    """When the frames of a video come on screen, in order: ``ticks`` times ``tick`` seconds."""

    ticks: Sequence[int]
    tick: Fraction
    duration: Fraction  # of all, in seconds
    counted: bool  # a tick is a frame, as the file's timestamps are of no use

    @property
    def start(self) -> Fraction:
        """When the first frame comes on screen, in seconds."""
        return self.ticks[0] * self.tick

    def parts(self, settings: CopySettings) -> tuple[int, int]:
        """In how many equal parts to look at it, and how many frames are then seen."""
        n = max(settings.min_frames, round(self.duration * settings.fps))
        if n >= len(self.ticks):
            return n, len(self.ticks)
        # Where many frames come in a short time, a part for each needs short parts.
        while (seen := self._seen(n)) < settings.min_frames and n < 1_000_000:
            n *= 2
        return n, seen

    def _seen(self, n: int) -> int:
        """How many frames are on screen in the middles of ``n`` equal parts."""
        half = self.duration / self.tick / (2 * n)
        middles = (self.ticks[0] + half * odd // 1 for odd in range(1, 2 * n, 2))
        return len({bisect_right(self.ticks, middle) for middle in middles})


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
            if stream.codec_context is None:
                raise TranscodeError('nothing here decodes its video stream')
            stream.codec_context.thread_count = 1  # there is one process per core
            yield container, stream
    except av.FFmpegError as error:
        raise TranscodeError(error.strerror) from error


def read_timeline(path: Path) -> Timeline:
    """Read the timestamps, without decoding; a file that is cut off in a frame is refused."""
    with open_video(path) as (container, stream):
        packets = []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise TranscodeError(f'it is cut off in frame {len(packets) + 1}')
            if packet.size and not packet.is_discard:  # by an edit list; the end has no size
                packets.append((packet.pts, packet.dts, packet.duration))
        rate = stream.average_rate or stream.guessed_rate
        unit, track_end = stream.time_base, None
        if stream.frames and stream.duration:  # MP4 and AVI know where the stream ends
            track_end = (stream.start_time or 0) + stream.duration
    if not packets:
        raise TranscodeError('its video stream is empty')
    n = len(packets)
    shown = sorted((pts, duration) for pts, _, duration in packets if pts is not None)
    decoded = [dts for _, dts, _ in packets if dts is not None]
    # Timestamps may be missing or start over.
    if len(shown) == n and decoded == sorted(decoded):
        ticks, total = [pts for pts, _ in shown], shown[-1][0] - shown[0][0]
        last = shown[-1][1]
        if track_end is not None:  # an MP4's packets last until the next is decoded, not shown
            last = max(track_end - ticks[-1], packets[-1][2])
        last = last or Fraction(total, max(1, n - 1))  # not every format has it
        duration = (total + last) * unit or 1 / Fraction(rate or 1)
        return Timeline(ticks, unit, duration, False)
    if not rate:  # which decord goes by then
        raise TranscodeError('it has neither timestamps nor a frame rate')
    return Timeline(range(n), 1 / Fraction(rate), n / Fraction(rate), True)


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
    """Decode all frames, each after the second at which it comes on screen.

    What FFmpeg complains of, and conceals, is printed with the name of the video.
    """
    av.logging.set_level(av.logging.ERROR)
    with open_video(path) as (container, stream), av.logging.Capture(local=False) as said:
        number, time = 0, timeline.start
        try:
            for frame in container.decode(stream):
                if timeline.counted:
                    time = number * timeline.tick
                elif frame.pts is not None:
                    time = frame.pts * frame.time_base
                yield time, upright(frame, container, stream)
                number += 1
        except av.FFmpegError as error:
            seconds = f'{float(time - timeline.start):.1f} s of {float(timeline.duration):.1f} s'
            raise TranscodeError(f'decoding fails at {seconds} ({error.strerror})') from error
    for _, who, what in said[:1]:
        sign = f'may be damaged: its decoder says "{who}: {what.strip()}". It is copied as it is.'
        print(f'{shown(str(path))} {sign}', flush=True)


def pick(
    frames: Iterable[tuple[Fraction, av.VideoFrame]], timeline: Timeline, n: int
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Pick the frames that are on screen in the middles of ``n`` equal parts.

    Each comes with the second at which its copy comes on screen: it is there while it is in the
    original. When the original shows one that is not picked, the parts decide.
    All ``frames`` are read, so that an error after the last one is found.
    """
    part, every = timeline.duration / n, n >= len(timeline.ticks)
    end, gone = timeline.start + timeline.duration, None
    for (time, frame), (until, _) in pairwise(chain(frames, [(end, None)])):
        number = max(0, ceil((time - timeline.start) / part - Fraction(1, 2)))
        border = timeline.start + number * part
        if time < until and (every or border + part / 2 < until):
            yield (timeline.start if gone is None else max(gone, min(time, border))), frame
            gone = until


def picture_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height of the copies' frames, even and never larger."""
    scale = min(1, short_side / min(width, height))
    if scale == 1:
        width, height = width - width % 2, height - height % 2
    return tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))


def encode(path: Path, settings: CopySettings) -> bytes:
    """Make a copy of a video, and read it with decord, as training will."""
    if end := missing_end(path):
        raise TranscodeError(f'it is cut off: {end}')
    codec = CODECS[settings.codec]
    options = codec.options | dict.fromkeys(codec.quality_options, str(settings.quality))
    timeline = read_timeline(path)
    n, number = timeline.parts(settings)
    rate = (number / timeline.duration).limit_denominator(1_000_000)
    output, packets, pts = io.BytesIO(), [], -1
    container_format = CONTAINERS.get(path.suffix.lower(), 'matroska')
    tick = timeline.tick if container_format == 'mp4' else Fraction(1, 1000)  # Matroska's
    with av.open(output, 'w', format=container_format) as container:
        stream = container.add_stream(codec.encoder, rate=rate, options=options)
        stream.pix_fmt = codec.pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = tick
        for time, frame in pick(decode(path, timeline), timeline, n):
            if pts < 0:
                size = picture_size(frame.width, frame.height, settings.short_side)
                stream.width, stream.height = size
            # The matrix and range that decord assumes; the frame knows its own.
            look = dict(dst_colorspace=Colorspace.ITU601, dst_color_range=codec.color_range)
            frame = frame.reformat(*size, codec.pixels, interpolation='BICUBIC', **look)
            frame.pts = pts = max(pts + 1, round((time - timeline.start) / tick))
            frame.time_base = tick
            frame.pict_type = 0  # not the original's
            packets += stream.encode(frame)
        if pts < 0:
            raise TranscodeError('no frame of it can be decoded')
        packets += stream.encode()
        ends = [packet.pts for packet in packets[1:]] + [round(timeline.duration / tick)]
        for packet, end in zip(packets, ends):
            packet.duration = max(1, end - packet.pts)
            container.mux(packet)
    output.seek(0)
    try:
        reader = decord.VideoReader(output, num_threads=1)
        found = len(reader), *reader[len(reader) - 1].shape
        wanted = len(packets), size[1], size[0], 3
    except Exception as error:
        line = str(error).strip().splitlines()[-1]
        raise TranscodeError(f'decord fails on its copy ({line})') from error
    if found != wanted:
        sizes = f'frames x height x width x channels are {found}, not {wanted}'
        raise TranscodeError(f'decord misreads its copy: {sizes}')
    return output.getvalue()
