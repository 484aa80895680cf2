"""What an index reads from disks and writes to them."""

import errno
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from ..errors import UserError
from ..fileio import VIDEO_SUFFIXES, atomic_write, is_video, walk_files
from .ann import ROWS_PER_BLOCK

LOCK = '.lock'


class Stamp(NamedTuple):
    """What tells that a file has changed."""

    size: int
    mtime_ns: int


def scan(folder: Path) -> tuple[dict[str, Stamp], dict[str, str]]:
    """Look for videos in a folder and below it; see :func:`.walk_files`.

    Returns:
        tuple[dict, dict]: Videos by their paths in the folder, in order; and
        those that cannot be looked at, with the reason.

    Raises:
        UserError: If there is no such folder, or no video in it, or a folder
            cannot be read.
    """
    videos, failed, others = {}, {}, []
    for name, entry in walk_files(folder):
        if not is_video(name):
            others.append(name)
            continue
        try:
            stat = entry.stat()
        except OSError as error:  # such as a link to nowhere
            failed[name] = f'{error.strerror}.'
        else:
            videos[name] = Stamp(stat.st_size, stat.st_mtime_ns)
    if not videos and not failed:
        holds = 'it is empty (is its disk mounted?)'
        if others:
            holds = f'it holds {len(others):,} file{"s" * (len(others) > 1)} such as {min(others)}'
        suffixes = ', '.join(VIDEO_SUFFIXES)
        raise UserError(
            f'There is no video ({suffixes}) in {folder}: {holds}. Nothing was changed.'
        )
    return dict(sorted(videos.items())), failed


@contextmanager
def writing(path: Path, needed: int) -> Iterator[Path]:
    """As :func:`.atomic_write`; a failure also says what is needed and free.

    Args:
        path (Path): The file.
        needed (int): Bytes that this step of the run takes in total.
    """
    try:
        with atomic_write(path) as part:
            yield part
    except UserError as error:
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f'{error} The folder needs about {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are '
            'free. The index is as it was, and the videos that were saved are kept: once there is '
            'room, and permission to write, the same command resumes.'
        ) from error


def check_room(path: Path, needed: int) -> None:
    """Fail as :func:`writing` does if there are fewer bytes free than needed."""
    if shutil.disk_usage(path.parent).free < needed:
        with writing(path, needed):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file at once; see :func:`writing`."""
    with writing(path, len(data)) as part:
        part.write_bytes(data)


def write_json(path: Path, data: Any) -> None:
    """Write what JSON can hold; see :func:`writing`."""
    write_bytes(path, json.dumps(data).encode())


def write_array(path: Path, blocks: list[np.ndarray], needed: int) -> None:
    """Write the rows of all blocks as one ``.npy`` file.

    The blocks are of shapes [n x ...], with the same rest. Not through a
    mapped file, whose writer a full disk kills.
    """
    header = dict(
        descr=np.lib.format.dtype_to_descr(blocks[0].dtype),
        fortran_order=False,
        shape=(sum(map(len, blocks)), *blocks[0].shape[1:]),
    )
    with writing(path, needed) as part, open(part, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            for start in range(0, len(block), ROWS_PER_BLOCK):
                file.write(np.ascontiguousarray(block[start : start + ROWS_PER_BLOCK]).data)


def write_part(
    path: Path, videos: list[tuple[str, Stamp]], embeddings: np.ndarray, left: int
) -> None:
    """Save n videos with their float32 embeddings of shape [n x e].

    ``left`` is the number of videos that are still to be saved, with these.
    """
    names = json.dumps([name for name, _ in videos]).encode()
    data = io.BytesIO()
    np.savez(
        data,
        names=np.frombuffer(names, np.uint8),
        stamps=np.array([stamp for _, stamp in videos], np.int64),
        embeddings=embeddings,
    )
    # All of them will be written as parts, and again as an index.
    with writing(path, 2 * left * (embeddings[0].nbytes + 100)) as part:
        part.write_bytes(data.getvalue())


def read_parts(paths: Iterable[Path]) -> Iterator[tuple[str, Stamp, np.ndarray]]:
    """Name, stamp and embedding [e] of each video of :func:`write_part`.

    Damaged files are left out, with a warning.
    """
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as part:  # checks its CRC
                names = json.loads(part['names'].tobytes())
                stamps = [Stamp(*stamp) for stamp in part['stamps'].tolist()]
                embeddings = part['embeddings']
            if set(map(type, names)) != {str} or embeddings.dtype != np.float32:
                raise ValueError('it holds other values')
            if embeddings.ndim != 2 or not len(names) == len(stamps) == len(embeddings):
                raise ValueError('it holds other values')
        except Exception as error:  # a damaged file can raise nearly anything
            print_log(
                f'{path} is damaged and left out ({error}): its videos are encoded again.',
                'current',
                logging.WARNING,
            )
            continue
        yield from zip(names, stamps, embeddings)
