"""Signs that a video which can be read is damaged."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from math import nan
from pathlib import Path

import av
from mmengine.logging import print_log

from .errors import shown

# A header need not be exact: seconds, and a part of the whole.
SLACK, PART = Fraction(1, 10), Fraction(3, 100)
# Nothing has to be decoded to learn what is asked here.
HEADER_ALONE = dict(probesize='32', analyzeduration='0')
SEGMENT = b'\x18\x53\x80\x67'  # what holds all of a Matroska file but its first bytes
# A line of FFmpeg's log: who says it, and what.
FFMPEG_LINE = re.compile(rb'\[([\w,]+) @ 0x[0-9a-f]+\] (.*)')


@contextmanager
def signs_of_damage(path: str | Path, alone: bool, measure: bool = True) -> Iterator[list[str]]:
    """Collect signs that a video is damaged while it is read.

    A decoder conceals what it can, so that the pictures are others than they were. All that tells
    is what FFmpeg writes to the standard error, without a name and each time anew: of a whole
    video it writes nothing.

    Args:
        path (str | Path): The video.
        alone (bool): Whether nothing else writes to the standard error of this process. If not,
            FFmpeg is not listened to, nor is it on Windows and macOS.
        measure (bool): Whether to look where the file ends, which opens it again. Defaults to
            True.

    Yields:
        list[str]: The signs, once it has been read, as sentences that follow its name.

    Example:
        >>> with signs_of_damage('a.mp4', alone=False) as signs:
        ...     data = pipeline(dict(filename='a.mp4', start_index=0, modality='RGB'))
        >>> signs
        ['is cut off: it ends at 3.0 of 10.0 s. What is left of it is used; get it again.']
    """
    signs: list[str] = []
    said: list[str] = []
    # Only Linux has such files in memory, and a disk may be full.
    listen = alone and hasattr(os, 'memfd_create')
    with _ffmpeg_said(said) if listen else nullcontext():
        yield signs
    if measure and (reason := missing_end(path)):
        signs.append(f'is cut off: {reason}. What is left of it is used; get it again.')
    elif said:
        more = f' and {len(said) - 1} more' if len(said) > 1 else ''
        signs.append(f'may be damaged: its decoder says "{said[0]}"{more}. It is used as it is.')


def warn_of_damage(path: str | Path, signs: list[str]) -> None:
    """Log the signs of :func:`signs_of_damage`.

    Example:
        >>> warn_of_damage('cut.mp4', ['is cut off: it ends at 3.0 of 10.0 s.'])
        01/01 10:00:00 - mmengine - ERROR - cut.mp4 is cut off: it ends at 3.0 of 10.0 s.
    """
    for sign in signs:
        print_log(f'{shown(str(path))} {sign}', 'current', logging.ERROR)  # which every rank shows


@contextmanager
def _ffmpeg_said(said: list[str]) -> Iterator[None]:
    """Take FFmpeg's errors out of the standard error; what else is written there stays."""
    import decord  # its symbols get in the way of OpenCV's PNG, so only where it is needed

    decord.logging.set_level(decord.logging.ERROR)
    sys.stderr.flush()
    screen = os.dup(2)
    with open(os.memfd_create('ffmpeg'), 'w+b') as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            file.seek(0)
            for line in file:
                if match := FFMPEG_LINE.fullmatch(line.rstrip()):
                    who, what = (part.decode(errors='replace') for part in match.groups())
                    said.append(f'{who}: {what[:100]}')
                else:
                    os.write(2, line)


def missing_end(path: str | Path) -> str | None:
    """Say where a video ends that is cut off: its container promises more than can be read.

    Nothing is decoded, and of a whole video only the end is read. MP4, MOV, Matroska, WebM, AVI
    and FLV can tell, if they were written to a file. Others promise nothing, as MPEG, MPEG-TS,
    Ogg and recordings of browsers, or nothing that FFmpeg would tell of a cut one, as WMV.

    Args:
        path (str | Path): A local file.

    Returns:
        str | None: Such as ``'it ends at 3.0 of 10.0 s'``; None if nothing is known to be missing,
        or if nothing of the file can be read.

    Example:
        >>> missing_end('whole.mp4')
        >>> missing_end('cut.mp4')
        'it ends at 3.0 of 10.0 s'
    """
    try:
        name = os.path.abspath(path)  # a relative one may look like a protocol's
        for last_part in (True, False):  # which of a whole video is enough
            with av.open(name, metadata_errors='replace', options=HEADER_ALONE) as container:
                end, promised = _end_and_promise(container, path, last_part)
            if promised is not None and end >= promised - max(SLACK, PART * promised):
                return None
    except av.FFmpegError:
        return None
    whole = '' if promised is None or promised <= end else f' of {float(promised):.1f}'
    return f'it ends at {float(end):.1f}{whole} s'


def header_duration(path: str | Path) -> float:
    """Seconds that a video lasts by its header; nan if that does not say, or cannot be read.

    Args:
        path (str | Path): A local file.

    Example:
        >>> header_duration('a.mp4')
        12.5
    """
    try:
        with av.open(os.path.abspath(path), metadata_errors='replace') as container:
            stream = container.streams.best('video')
            if stream is not None and stream.duration:
                return float(stream.duration * stream.time_base)
            return container.duration / av.time_base if container.duration else nan
    except av.FFmpegError:
        return nan


def _end_and_promise(
    container, path: str | Path, last_part: bool
) -> tuple[Fraction, Fraction | None]:
    """Where a video ends, and where it should, in seconds; zeros if its container cannot tell.

    None if it is cut off for certain, and does not know how long it was.
    """
    stream = container.streams.best('video')
    kind = container.format.name.partition(',')[0]
    if stream is not None and kind == 'avi':  # FFmpeg shortens its duration if bytes are missing
        return (stream.duration or 0) * stream.time_base, stream.frames * stream.time_base
    if stream is not None and kind == 'mov':
        promised = ((stream.start_time or 0) + (stream.duration or 0)) * stream.time_base
        # Fragments know only their own length, and one may be cut off in its sound.
        packets = container.demux(stream) if stream.frames else container.demux()
        if last_part:
            with suppress(av.FFmpegError, OverflowError):  # or read all
                container.seek(int(max(0, promised - SLACK) * av.time_base))
    elif stream is not None and kind in LACKS_BYTES and LACKS_BYTES[kind](path):
        promised = Fraction(container.duration or 0, av.time_base)
        packets = container.demux()  # as sound may be longer
    else:
        return Fraction(0), Fraction(0)
    end = Fraction(0)
    with suppress(av.FFmpegError):  # by which reading a cut file may end
        for packet in packets:
            if packet.is_corrupt:  # it is there in part, and all after it is missing
                return end, promised if promised > end + max(SLACK, PART * promised) else None
            if packet.size and packet.pts is not None:
                end = max(end, (packet.pts + packet.duration) * packet.time_base)
    return end, promised


def _matroska_lacks_bytes(path: str | Path) -> bool:
    """Whether the segment, which holds all of the file but its first bytes, is longer than it."""
    with open(path, 'rb') as file:
        head = file.read(4096)
    at = head.find(SEGMENT) + len(SEGMENT)
    if at < len(SEGMENT) or at == len(head):
        return False
    # The leading zeros of a number say how many bytes it has. All ones: it was not known.
    width = 9 - head[at].bit_length()
    ones = (1 << 7 * width) - 1
    size = int.from_bytes(head[at : at + width], 'big') & ones
    return size != ones and at + width + size > os.path.getsize(path)


def _flv_lacks_bytes(path: str | Path) -> bool:
    """Whether the last four bytes are not the size of a tag that begins so much before them."""
    with open(path, 'rb') as file:
        file.seek(-4, os.SEEK_END)
        size = int.from_bytes(file.read(4), 'big')
        file.seek(max(0, file.tell() - 4 - size))
        tag = file.read(4)
    return size != 11 + int.from_bytes(tag[1:], 'big')


# In these, the last frame may stay longer than its own data say: only a file that lacks bytes is
# cut off.
LACKS_BYTES = dict(matroska=_matroska_lacks_bytes, flv=_flv_lacks_bytes)
