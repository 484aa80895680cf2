"""What an index reads from disks and writes to them."""

import errno
import fcntl
import io
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from .ann import CHUNK

SUFFIXES = (
    '.mp4',
    '.avi',
    '.mkv',
    '.webm',
    '.mov',
    '.m4v',
    '.flv',
    '.mpg',
    '.mpeg',
    '.wmv',
    '.3gp',
    '.ts',
    '.mts',
    '.m2ts',
    '.ogv',
    '.vob',
)
LOCK = '.lock'


class IndexingError(RuntimeError):
    """Indexing cannot go on; the message says why, and what to do."""


class Stamp(NamedTuple):
    """What tells that a file has changed."""

    size: int
    mtime_ns: int


def scan(folder: Path) -> tuple[dict[str, Stamp], dict[str, str]]:
    """Look for videos in a folder and all that it holds.

    Links to folders are followed; what begins with a dot is not looked at.

    Args:
        folder (Path): Where to look.

    Returns:
        tuple[dict, dict]: Videos by their paths in the folder, in order; and
        those that cannot be looked at, with the reason.

    Raises:
        FileNotFoundError: If there is no such folder, or no video in it.
        OSError: If a folder cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {folder}.')
    videos, failed, others = {}, {}, []
    for name, entry in _walk(folder, '', frozenset()):
        if not name.lower().endswith(SUFFIXES):
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
        raise FileNotFoundError(
            f'There is no video ({", ".join(SUFFIXES)}) in {folder}: {holds}. Nothing was changed.'
        )
    return dict(sorted(videos.items())), failed


def _walk(folder: str | Path, prefix: str, above: frozenset) -> Iterator[tuple[str, os.DirEntry]]:
    stat = os.stat(folder)
    if (stat.st_dev, stat.st_ino) in above:
        return  # it is a link to a folder above it
    above |= {(stat.st_dev, stat.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                is_folder = False  # a link to itself
            if is_folder:
                yield from _walk(entry.path, f'{prefix}{entry.name}/', above)
            else:
                yield f'{prefix}{entry.name}', entry


@contextmanager
def writing(path: Path, needed: int) -> Iterator[Path]:
    """Let a file be written under another name, and rename it when whole.

    Args:
        path (Path): The file.
        needed (int): Bytes that this step of the run takes in all, to say so.

    Yields:
        Path: Where to write.

    Raises:
        IndexingError: If it cannot be written. Nothing of it stays.
    """
    part = path.with_name(f'{path.name}.part')
    try:
        try:
            yield part
            _sync(part)
            os.replace(part, path)
            with suppress(OSError):  # not every file system can
                _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error), needed) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, reason: str, needed: int) -> IndexingError:
    free = shutil.disk_usage(path.parent).free
    return IndexingError(
        f'{path} cannot be written: {reason}. The folder needs about '
        f'{needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free. The '
        'index is as it was, and the videos that were saved are kept: once '
        'there is room, and leave to write, the same command goes on.'
    )


def check_room(path: Path, needed: int) -> None:
    """See that there is room for some bytes.

    Args:
        path (Path): The file that most of them are for.
        needed (int): How many there are.

    Raises:
        IndexingError: If there is not.
    """
    if shutil.disk_usage(path.parent).free < needed:
        raise _unwritable(path, os.strerror(errno.ENOSPC), needed)


def write(path: Path, data: Any) -> None:
    """Write a file from bytes, or from what JSON can hold."""
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    with writing(path, len(data)) as part:
        part.write_bytes(data)


def write_array(path: Path, blocks: list[np.ndarray], needed: int) -> None:
    """Write the rows of all blocks as one ``.npy`` file.

    Not through a mapped file, whose writer a full disk kills.

    Args:
        path (Path): The file.
        blocks (list[np.ndarray]): Of shapes [n x ...], with the same rest.
        needed (int): See :func:`writing`.
    """
    header = dict(
        descr=np.lib.format.dtype_to_descr(blocks[0].dtype),
        fortran_order=False,
        shape=(sum(map(len, blocks)), *blocks[0].shape[1:]),
    )
    with writing(path, needed) as part, open(part, 'wb') as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            for start in range(0, len(block), CHUNK):
                file.write(np.ascontiguousarray(block[start : start + CHUNK]))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder.

    Raises:
        IndexingError: If another run is at work there.
    """
    with open(folder / LOCK, 'a+') as file:
        try:
            # Not flock, which worker processes would inherit: they may
            # outlive a run that was killed by some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise IndexingError(
                    f'Another run is indexing into {folder} ({file.read()}). Wait until it is done.'
                ) from error
            print_log(
                f'The file system of {folder} has no locks '
                f'({error.strerror}): see to it that no other run writes '
                'there.',
                'current',
                logging.WARNING,
            )
        with suppress(OSError):  # a full disk says so where it matters
            file.truncate(0)
            who = f'process {os.getpid()} on {socket.gethostname()}'
            os.write(file.fileno(), who.encode())
        yield


def write_part(
    path: Path, videos: list[tuple[str, Stamp]], embeddings: np.ndarray, left: int
) -> None:
    """Save finished videos.

    Args:
        path (Path): The file.
        videos (list[tuple[str, Stamp]]): Names and stamps of n videos.
        embeddings (np.ndarray): float32, of shape [n x e].
        left (int): Videos that are still to be saved, with these.
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
    needed = 2 * left * (embeddings[0].nbytes + 100)
    with writing(path, needed) as part:
        part.write_bytes(data.getvalue())


def read_parts(paths: Iterable[Path]) -> Iterator[tuple[str, Stamp, np.ndarray]]:
    """Read what :func:`write_part` saved; damaged files are left out.

    Args:
        paths (Iterable[Path]): The files.

    Yields:
        tuple[str, Stamp, np.ndarray]: Name, stamp and embedding [e] of a
        video.
    """
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as part:  # checks its CRC
                names = json.loads(part['names'].tobytes())
                stamps = [Stamp(*stamp) for stamp in part['stamps'].tolist()]
                embeddings = part['embeddings']
        except Exception as error:  # a damaged file can raise nearly anything
            print_log(
                f'{path} is damaged and left out ({error}): its videos are encoded again.',
                'current',
                logging.WARNING,
            )
            continue
        yield from zip(names, stamps, embeddings)
