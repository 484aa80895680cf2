"""Decode one video, and encode a small copy of it."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import decord
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mp4', '.avi': 'avi'}


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
