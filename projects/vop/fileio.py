"""Files and folders: written whole or not at all, and searched for videos."""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import portalocker
from mmengine.logging import print_log
from portalocker import portalocker as lockers

from .errors import UserError

VIDEO_SUFFIXES = (
    *('.mp4', '.avi', '.mkv', '.webm', '.mov', '.m4v', '.flv', '.mpg', '.mpeg', '.wmv'),
    *('.3gp', '.ts', '.mts', '.m2ts', '.ogv', '.vob'),
)
# Not portalocker's default of POSIX, flock, which worker processes would
# inherit: they may outlive a run that was killed by some seconds.
_lock = lockers.LockfLocker().lock if os.name == 'posix' else portalocker.lock


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file under another name, and rename it when it is complete.

    A file of that name is always whole: the old one stays until the new one
    is on the disk. Its folder is made if need be.

    Args:
        path (str | Path): The file.

    Yields:
        Path: Where to write, in the same folder.

    Raises:
        UserError: If it cannot be written, such as on a full disk; the message
            names the file. Nothing of it stays.

    Example:
        >>> with atomic_write('captions.txt') as part:
        ...     part.write_text(text)
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            _sync(part)
            os.replace(part, path)
            with suppress(OSError):  # not every file system can
                _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}.') from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: str | Path, data: str | bytes) -> None:
    """Write a file at once; see :func:`atomic_write`.

    Args:
        path (str | Path): The file.
        data (str | bytes): What it holds; text is encoded as UTF-8.

    Raises:
        UserError: If it cannot be written.

    Example:
        >>> write_file('train.json', json.dumps(captions))
    """
    with atomic_write(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def save_tensors(path: str | Path, content: Any) -> None:
    """Write what ``torch.load(path, weights_only=True)`` opens; see :func:`atomic_write`.

    Args:
        path (str | Path): The file.
        content (Any): Tensors and plain data.

    Raises:
        UserError: If it cannot be written.

    Example:
        >>> save_tensors('prompts.pth', dict(state_dict=model.state_dict()))
    """
    import torch  # which most that writes files does not need

    try:
        with atomic_write(path) as part:
            torch.save(content, part)
    except RuntimeError as error:  # raised by torch when the disk is full
        raise UserError(f'{path} cannot be written: {error}') from error


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, whether or not it begins with a byte order mark.

    Raises:
        UserError: If it cannot be read, or is not UTF-8 text.
    """
    try:
        return Path(path).read_text(encoding='utf-8-sig')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}.') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 text: {error}.') from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If it cannot be read, is not UTF-8 text or not valid JSON,
            or lists a key twice in an object, one of which would be lost.
    """

    def unique(pairs: list) -> dict:
        values = {}
        for key, value in pairs:
            if key in values:
                raise UserError(f'{path}: "{key}" is listed twice. Put all under one.')
            values[key] = value
        return values

    try:
        return json.loads(read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(
            f'{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).'
        ) from error


@contextmanager
def name_full_disk(folder: str | Path) -> Iterator[None]:
    """Say where the disk is full, which an ``OSError`` of a write does not.

    Args:
        folder (str | Path): Where the files of a run are.

    Raises:
        UserError: If a file cannot be written as the disk is full or read-only, or a quota or a
            limit is reached.

    Example:
        >>> with name_full_disk('work_dirs/vop'):
        ...     runner.train()
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        name = error.filename or f'A file in {folder}'
        raise UserError(f'{name} cannot be written: {error.strerror}.') from error


def check_writable(path: str | Path) -> None:
    """Say that a file cannot be written before there is work to lose.

    Its folder is made if need be.

    Args:
        path (str | Path): The file.

    Raises:
        UserError: If it cannot be written.

    Example:
        >>> check_writable('out/embeddings.pt')
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'The folder {path.parent} cannot be made: {error.strerror}.') from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f'{path} cannot be written: it is a folder, or its folder is read-only.')


@contextmanager
def file_lock(path: str | Path) -> Iterator[None]:
    """Keep other processes out of a file's folder, which is made if need be.

    A process that is killed holds no lock, nor do processes that it forked.
    Where the file system has no locks, a warning says so, and nobody is kept out.

    Args:
        path (str | Path): The file; it holds who has the lock, and stays.

    Raises:
        UserError: If another process has the lock, or the file cannot be written.

    Example:
        >>> with file_lock('out/.lock'):
        ...     write_file('out/train.json', text)
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'a+')
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}.') from error
    with file:
        try:
            _lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.AlreadyLocked as error:
            file.seek(0)
            raise UserError(
                f'Another run writes to {path.parent} ({file.read()}): wait until it has ended.'
            ) from error
        except portalocker.LockException as error:
            print_log(
                f'The file system of {path.parent} has no locks ({error}): see to it that no '
                'other run writes there.',
                'current',
                logging.WARNING,
            )
        with suppress(OSError):  # a full disk says so where it matters
            file.truncate(0)
            os.write(file.fileno(), f'process {os.getpid()} on {socket.gethostname()}'.encode())
        yield


def walk_files(folder: str | Path) -> Iterator[tuple[str, os.DirEntry]]:
    """All files in a folder and below it, in order.

    Links to folders are followed, but not back into a folder above. What
    begins with a dot is left out.

    Args:
        folder (str | Path): Where to look.

    Yields:
        tuple[str, os.DirEntry]: The path relative to ``folder``, with ``/``
        between its parts, and the entry.

    Raises:
        UserError: If the folder, or one below it, cannot be read.

    Example:
        >>> videos = [name for name, _ in walk_files('data') if is_video(name)]
    """
    if not Path(folder).is_dir():
        raise UserError(f'There is no folder {folder}.')
    try:
        yield from _walk(folder, '', frozenset())
    except OSError as error:
        raise UserError(f'{error.filename} cannot be read: {error.strerror}.') from error


def _walk(folder, prefix: str, above: frozenset) -> Iterator[tuple[str, os.DirEntry]]:
    stat = os.stat(folder)
    if (stat.st_dev, stat.st_ino) in above:
        return
    above |= {(stat.st_dev, stat.st_ino)}
    with os.scandir(folder) as unsorted:
        entries = sorted(unsorted, key=lambda entry: entry.name)
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


def is_video(name: str) -> bool:
    """Whether a file is a video, by its suffix.

    Example:
        >>> is_video('clip.MP4')
        True
    """
    return name.lower().endswith(VIDEO_SUFFIXES)


def available_cores() -> int:
    """Count the cores that this process may use; Slurm lends a job some of a machine.

    Example:
        >>> available_cores() >= 1
        True
    """
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
