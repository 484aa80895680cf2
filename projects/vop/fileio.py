"""Files and folders: written whole or not at all, and searched for videos."""

import codecs
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import portalocker
from portalocker import portalocker as lockers

from .errors import FileWriteError, UserError, shown, warn

# Of configs/ and tools/: a checkout, or what a wheel brings, where MIM looks for it.
PROJECTS = Path(__file__).resolve().parents[1]
ROOT = PROJECTS / '.mim' if (PROJECTS / '.mim').is_dir() else PROJECTS.parent
# In the folder of a model that travels, see `apis/pretrained.py`.
PRETRAINED_CONFIG, PRETRAINED_WEIGHTS = 'config.json', 'model.safetensors'
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
        FileWriteError: If it cannot be written; the message names the file and, where the disk is
            full, says how much is free. Nothing of it stays.

    Example:
        >>> with atomic_write('captions.txt') as part:
        ...     part.write_text(text)
    """
    path = Path(path)
    name = os.fsencode(f'{path.name}.part')
    if len(name) > 255:  # bytes, which a file system allows
        name = hashlib.sha256(name).hexdigest().encode() + b'.part'
    part = path.with_name(os.fsdecode(name))
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            yield path  # a device or a pipe, which no file is to replace
            return
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
        raise _write_error(path, path.parent, error) from error


def _write_error(name: str | Path, folder: Path, error: OSError) -> FileWriteError:
    reason = str(error.strerror or error)
    if error.errno == errno.ENOSPC:
        with suppress(OSError):  # the folder may not be there
            reason += f' ({shutil.disk_usage(folder).free / 1e6:,.1f} MB are free without it)'
    return FileWriteError(f'{name} cannot be written: {reason}.')


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
        FileWriteError: If it cannot be written.

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
        FileWriteError: If it cannot be written.

    Example:
        >>> save_tensors('prompts.pth', dict(state_dict=model.state_dict()))
    """
    import torch  # which most that writes files does not need

    try:
        with atomic_write(path) as part:
            torch.save(content, part)
    except RuntimeError as error:  # raised by torch when the disk is full
        raise FileWriteError(f'{path} cannot be written: {error}') from error


def read_log(folder: str | Path, since: float = 0) -> list[dict[str, Any]]:
    """What MMEngine logged in the folder of a run, oldest first.

    Args:
        folder (str | Path): The folder, with logs in it or below it.
        since (float): Leave out files that were last written before, in seconds of
            ``time.time()``. Defaults to none.

    Returns:
        list[dict]: A record each, with ``'loss'``, ``'epoch'`` and ``'step'``, or with metrics.

    Example:
        >>> read_log('work_dirs/vop_msrvtt')[0]['epoch']
        1
    """
    records = []
    stamps = {file: file.stat().st_mtime for file in Path(folder).rglob('*.json')}
    for file in sorted((file for file in stamps if stamps[file] >= since), key=lambda f: stamps[f]):
        for line in file.read_text(encoding='utf-8').splitlines():
            with suppress(json.JSONDecodeError):  # cut off while it was written
                records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def read_evaluations(folder: str | Path) -> list[dict[str, Any]]:
    """What every evaluation of retrieval in the folder of a run logged, oldest first.

    Args:
        folder (str | Path): The folder, with logs of MMEngine in it or below it.

    Returns:
        list[dict]: A record each, with ``'t2v/R@1'`` and the like, and the ``'step'``.

    Example:
        >>> read_evaluations('work_dirs/vop_msrvtt')[-1]['t2v/R@1']
        39.6
    """
    return [record for record in read_log(folder) if 't2v/R@1' in record]


def code_in(path: str | Path) -> str | None:
    """Say what a file of torch would call if it were loaded unsafely, if anything.

    Example:
        >>> code_in('whole_model.pt')
        'it would call open_clip.model.CLIP, ..., and only tensors and plain data are loaded'
    """
    import torch

    try:
        calls = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))  # torch >= 2.6
    except Exception:  # it is damaged, too, or torch is older
        return None
    names = ', '.join(calls[:2] + ['...'] * (len(calls) > 2))
    return names and f'it would call {names}, and only tensors and plain data are loaded'


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is of safetensors: JSON, after 8 bytes that say how long it is.

    Raises:
        OSError: If it cannot be read.

    Example:
        >>> is_safetensors('open_clip_model.safetensors')
        True
    """
    with open(path, 'rb') as file:
        return file.read(9)[8:] == b'{'


def check_zip(path: str | Path) -> None:
    """Compare what a file of torch holds with its checksums, which torch does not look at.

    Without, bytes that were lost are taken for weights. Files that are no zip have no checksums,
    and pass.

    Args:
        path (str | Path): The file.

    Raises:
        zipfile.BadZipFile: If it is damaged; its parts may raise other errors, but ``OSError``.
        OSError: If the system cannot read it.

    Example:
        >>> check_zip('work_dirs/vop_msrvtt/epoch_5.pth')
    """
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\3\4':  # as torch tells
            return
        try:
            with zipfile.ZipFile(file) as archive:
                for item in archive.infolist():
                    if item.CRC:  # 0 of all, after torch.serialization.set_crc32_options(False)
                        with archive.open(item) as part:
                            while part.read(1 << 20):
                                pass
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise zipfile.BadZipFile('a part begins where no byte can be') from error


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, whether or not it begins with a byte order mark.

    Raises:
        UserError: If it cannot be read, or is not UTF-8 text; the message says
            in which line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'{shown(str(path), 300)} cannot be read: {error.strerror}.') from error
    except ValueError as error:  # of a path that no file can have
        raise UserError(f'{shown(str(path), 300)} cannot be read: {error}.') from error
    try:
        text, end, reason = data.decode('utf-8-sig'), data.find(b'\0'), 'a NUL'
    except UnicodeDecodeError as error:
        text, end, reason = '', error.start, f'the byte {data[error.start]:#04x}'
    if end < 0:
        return text
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        reason = 'the mark of UTF-16'
    line = data.count(b'\n', 0, end) + 1
    column = len(data[data.rfind(b'\n', 0, end) + 1 : end].decode(errors='replace')) + 1
    raise UserError(
        f'{path} is not UTF-8 text: {reason} is in line {line}, column {column}. Save it as UTF-8.'
    )


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: If it cannot be read, is not UTF-8 text or not valid JSON,
            is nested too deeply, has a number that no float can hold, or lists
            a key twice in an object, one of which would be lost.
    """
    text = read_text(path)

    def unique(pairs: list) -> dict:
        values = {}
        for key, value in pairs:
            if key in values:
                raise UserError(f'{path}: "{shown(key, 100)}" is listed twice. Put all under one.')
            values[key] = value
        return values

    def integer(digits: str) -> int:
        if len(digits) > sys.float_info.max_10_exp:
            message = f'a number of {len(digits):,} digits'
            raise json.JSONDecodeError(message, text, text.index(digits))
        return int(digits)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=integer)
    except json.JSONDecodeError as error:
        raise UserError(
            f'{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).'
        ) from error
    except RecursionError as error:
        raise UserError(f'{path} is nested too deeply: {shown(text, 60)}.') from error


@contextmanager
def name_full_disk(folder: str | Path) -> Iterator[None]:
    """Say where the disk is full, which an ``OSError`` of a write does not.

    Args:
        folder (str | Path): Where the files of a run are.

    Raises:
        FileWriteError: If a file cannot be written as the disk is full or read-only, or a quota
            or a limit is reached.

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
        raise _write_error(name, Path(folder), error) from error


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
        raise _write_error(path, path.parent, error) from error
    with file:
        try:
            _lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.AlreadyLocked as error:
            file.seek(0)
            raise UserError(
                f'Another run writes to {path.parent} ({file.read()}): wait until it has ended.'
            ) from error
        except portalocker.LockException as error:
            warn(
                f'The file system of {path.parent} has no locks ({error}): see to it that no '
                'other run writes there.'
            )
        with suppress(OSError):  # a full disk says so where it matters
            file.truncate(0)
            os.write(file.fileno(), f'process {os.getpid()} on {socket.gethostname()}'.encode())
        yield


def walk_files(folder: str | Path) -> Iterator[tuple[str, os.DirEntry]]:
    """All files in a folder and below it, in order.

    Links to folders are followed, but not back into a folder above. What
    begins with a dot is left out, such as the ``._a.mp4`` that macOS puts
    beside an ``a.mp4`` on other systems' disks.

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
    if not os.path.isdir(folder):
        raise UserError(f'There is no folder {shown(str(folder), 300)}.')
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


def as_file(path: str | Path) -> str:
    """A path that FFmpeg does not take for an address, as it does ``take:1.mp4``.

    Example:
        >>> as_file('videos/a.mp4')
        'videos/a.mp4'
    """
    path = os.fspath(path)
    return os.path.abspath(path) if ':' in path else path


def same_name(path: str) -> str:
    r"""A path in the one Unicode form in which names can be compared.

    macOS writes the é of a name as two characters, others as one.

    Example:
        >>> same_name('cafe\u0301.mp4')
        'café.mp4'
    """
    return unicodedata.normalize('NFC', path)


def why_no_file(path: str | Path) -> str | None:
    """Say why a path is not a file that can be read at once; None if it is one.

    Reading a pipe, a socket or a device may wait for ever.

    Args:
        path (str | Path): The path.

    Example:
        >>> why_no_file('/dev/zero')
        'it is not a regular file'
    """
    if os.path.isfile(path):
        return None
    if os.path.isdir(path):
        return 'it is a folder'
    return 'it is not a regular file' if os.path.exists(path) else 'there is no such file'


def available_cores() -> int:
    """Count the cores that this process may use; Slurm lends a job some of a machine.

    Example:
        >>> available_cores() >= 1
        True
    """
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
