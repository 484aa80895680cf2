"""Videos that end before their container says that they do."""

import logging
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
from mmengine.logging import print_log

# A header need not be exact: seconds, and a part of the whole.
SLACK, PART = Fraction(1, 10), Fraction(3, 100)
# Nothing has to be decoded to learn what is asked here.
HEADER_ALONE = dict(probesize='32', analyzeduration='0')
SEGMENT = b'\x18\x53\x80\x67'  # what holds all of a Matroska file but its first bytes


def warn_if_cut(path: str | Path) -> None:
    """Log the name of a video that can be read, but is cut off; see :func:`missing_end`.

    Example:
        >>> warn_if_cut('cut.mp4')
        01/01 10:00:00 - mmengine - ERROR - cut.mp4 is cut off: it ends at 3.0 of 10.0 s. ...
    """
    if reason := missing_end(path):
        message = f'{path} is cut off: {reason}. What is left of it is used; get it again.'
        print_log(message, 'current', logging.ERROR)  # which every rank shows


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
            if end >= promised - max(SLACK, PART * promised):
                return None
    except av.FFmpegError:
        return None
    return f'it ends at {float(end):.1f} of {float(promised):.1f} s'


def _end_and_promise(container, path: str | Path, last_part: bool) -> tuple[Fraction, Fraction]:
    """Where a video ends, and where it should, in seconds; zeros if its container cannot tell."""
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
                return end, max(promised, 2 * (end + SLACK))
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
