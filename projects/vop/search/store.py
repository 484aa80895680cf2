"""The files of an index: their names, and how they are read and written."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, warn
from ..fileio import VIDEO_SUFFIXES, atomic_write, is_video, read_json, walk_files

FORMAT = 6
LOCK = '.lock'
MANIFEST = 'index.json'
FAILED = 'failed.json'
PARTS = 'parts'
# The other files of an index. Each belongs to a generation or to a model,
# whose number or fingerprint is in its name.
FILES = dict(
    config='config-{}.json',
    model='model-{}.safetensors',
    videos='videos-{}.npz',
    embeddings='embeddings-{}.npy',
    ivf='ivf-{}.faiss',
)
_NAMES = '|'.join(name.replace('.', '[.]').format('[0-9a-f]+') for name in FILES.values())
OURS = re.compile(f'({_NAMES})([.]part)?')
ROWS_PER_BLOCK = 4096  # that are read, compared or written at a time
# The fields of index.json; an approximate search has more.
FIELDS: dict[str, Any] = dict(
    format=int,
    generation=int,
    model_fingerprint=str,
    video_dir=str,
    window=list,
    videos=int,
    moments=int,
    width=int,
    measured=dict(moments=int, next_id=int, threshold=float, recall={}),
    files=dict(videos=int, embeddings=int),
)
IVF_FIELDS: dict[str, Any] = dict(
    ivf=dict(nprobe=int, trained_for=int, candidates=int),
    measured=dict(FIELDS['measured'], recall=dict(videos=float, texts=float)),
    files=dict(FIELDS['files'], ivf=int),
)

Stamp = tuple[int, int]  # size in bytes and time of change in ns, by which a file is known


class Videos(NamedTuple):
    """The v videos of an index, or of a part of one, and when their m moments are.

    Attributes:
        names (list[str]): Their paths in the folder of the videos.
        stamps (np.ndarray): int64 [v x 2]: sizes in bytes and times of change in ns.
        counts (np.ndarray): int64 [v]: the moments of each, which follow each other.
        spans (np.ndarray): float64 [m x 2]: when each begins and ends, in seconds.
    """

    names: list[str]
    stamps: np.ndarray
    counts: np.ndarray
    spans: np.ndarray


def model_paths(folder: Path, fingerprint: str) -> tuple[Path, Path]:
    """Config and trained weights of a model."""
    short = fingerprint[:12]
    return folder / FILES['config'].format(short), folder / FILES['model'].format(short)


def index_files(folder: Path, manifest: dict[str, Any]) -> dict[str, Path]:
    """The files that an ``index.json`` names."""
    generation, fingerprint = manifest['generation'], manifest['model_fingerprint']
    files = {what: folder / FILES[what].format(generation) for what in manifest['files']}
    files['config'], files['model'] = model_paths(folder, fingerprint)
    return files


def scan(folder: Path) -> tuple[dict[str, Stamp], dict[str, str]]:
    """Look for videos in a folder and below it; see :func:`.walk_files`.

    Returns:
        tuple[dict, dict]: Videos by their paths in the folder; and
        those that cannot be looked at, with the reason.

    Raises:
        UserError: If there is no such folder, or no video in it, or a folder
            cannot be read.
    """
    videos, failed = {}, {}
    for name, entry in walk_files(folder):
        if not is_video(name):
            continue
        try:
            stat = entry.stat()
        except OSError as error:  # such as a link to nowhere
            failed[name] = f'{error.strerror}.'
        else:
            videos[name] = (stat.st_size, stat.st_mtime_ns)
    if not videos and not failed:
        raise UserError(
            f'There is no video ({", ".join(VIDEO_SUFFIXES)}) in {folder}: it is empty, or holds '
            'other files. Is its disk mounted? Nothing was changed.'
        )
    return videos, failed


def write_rows(
    path: Path,
    shape: tuple[int, int],
    blocks: Iterable[np.ndarray],
    others: Iterable[tuple[int, np.ndarray]],
) -> None:
    """Write an ``.npy`` file of float32: first blocks of rows, then others, each at its row.

    Not through a mapped file, whose writer a full disk kills.
    """
    with atomic_write(path) as part, open(part, 'wb') as file:
        header = dict(descr='<f4', fortran_order=False, shape=shape)
        np.lib.format.write_array_header_1_0(file, header)
        begin = file.tell()
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
        for row, block in others:
            file.seek(begin + 4 * row * shape[1])
            file.write(np.ascontiguousarray(block).data)


def read_blocks(array: np.memmap, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Rows of a mapped file, in ascending order, some thousands at a time, without mapping them.

    The pages of a mapped file count as memory of a process until it ends.
    """
    rows = np.arange(len(array)) if rows is None else rows
    width = array.strides[0]
    for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        for start in range(0, len(run), ROWS_PER_BLOCK):
            part = run[start : start + ROWS_PER_BLOCK]
            count, offset = len(part) * width // array.itemsize, array.offset + part[0] * width
            block = np.fromfile(str(array.filename), array.dtype, count, offset=offset)
            yield block.reshape(len(part), *array.shape[1:])


def write_videos(path: Path, videos: Videos, of_moments: np.ndarray) -> None:
    """Write a file of videos.

    Args:
        path (Path): The file.
        videos (Videos): The videos.
        of_moments (np.ndarray): Ids of the moments, int64 [m], of an index; of a part their
            embeddings, float32 [m x e].
    """
    names = np.frombuffer(json.dumps(videos.names).encode(), np.uint8)
    with atomic_write(path) as part, open(part, 'wb') as file:
        np.savez(file, **dict(videos._asdict(), names=names, more=of_moments))


def read_videos(path: Path) -> tuple[Videos, np.ndarray]:
    """Read a file of :func:`write_videos`, which may be damaged or anybody's.

    Returns:
        tuple[Videos, np.ndarray]: The videos, and the ids or embeddings of their moments.

    Raises:
        ValueError: If it holds other values. Others are NumPy's and zipfile's.
    """
    with np.load(path, allow_pickle=False) as file:  # checks its CRC
        if any(item.compress_type for item in file.zip.infolist()):
            raise ValueError('it is compressed')  # as what fills the memory may be
        names = json.loads(file['names'].tobytes())
        videos = Videos(names, file['stamps'], file['counts'], file['spans'])
        of_moments = file['more']
    total = int(videos.counts.sum())
    kinds = [(each.dtype, each.shape) for each in videos[1:]]
    shapes = (len(names), 2), (len(names),), (total, 2)
    if not isinstance(names, list) or set(map(type, names)) != {str}:
        raise ValueError('it holds other names')
    if kinds != [*zip((np.int64, np.int64, np.float64), shapes)] or len(of_moments) != total:
        raise ValueError('it holds other values')
    if (videos.counts < 1).any() or (videos.counts > total).any():
        raise ValueError('it holds other counts')
    return videos, of_moments


def read_parts(
    paths: Iterable[Path],
) -> Iterator[tuple[str, Stamp, np.ndarray, np.ndarray]]:
    """Name, stamp, spans [m x 2] and embeddings [m x e] of each video that was saved.

    Damaged files are left out, with a warning.
    """
    for path in paths:
        try:
            part, embeddings = read_videos(path)
            if embeddings.dtype != np.float32 or embeddings.ndim != 2:
                raise ValueError('it holds other values')
        except Exception as error:  # a damaged file can raise nearly anything
            warn(f'{path} is damaged and left out ({error}): its videos are encoded again.')
            continue
        cuts = np.cumsum(part.counts)[:-1]
        stamps = map(tuple, part.stamps.tolist())
        yield from zip(part.names, stamps, np.split(part.spans, cuts), np.split(embeddings, cuts))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``index.json`` says.

    Raises:
        UserError: If there is none, or none yet; or if it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if any(folder.glob(f'{PARTS}/*/run-*')):
            raise UserError(
                f'The first indexing into {folder} is not finished. Wait for it; or, if it was '
                'stopped, give the same command again, with the same --window and --stride, and it '
                'resumes.'
            )
        raise UserError(
            f'There is no index in {folder}: it has no {MANIFEST}. '
            '`python tools/search.py index VIDEO_DIR INDEX` makes one.'
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or 'format' not in manifest:
        raise UserError(
            f'{path} is not of an index of videos. Give the folder of an index, or a new one.'
        )
    if manifest['format'] != FORMAT:
        videos = str(manifest.get('video_dir', 'VIDEO_DIR'))[:4096]
        raise UserError(
            f'{path} is of version {str(manifest["format"])[:20]} of the format, and this program '
            f'reads version {FORMAT}. Use the program that wrote it, or make the index anew in '
            f'another folder: `python tools/search.py index {videos} ANOTHER_FOLDER --config '
            'CONFIG --checkpoint CHECKPOINT`.'
        )
    _check(path, manifest, FIELDS | (IVF_FIELDS if 'ivf' in manifest else {}))
    window = manifest['window']
    if window and not ([*map(type, window)] == [float] * 2 and min(window) > 0):
        raise damaged(path, 'its "window" is not valid')
    if not re.fullmatch('[0-9a-f]{32}', manifest['model_fingerprint']):
        raise damaged(path, 'its "model_fingerprint" is not valid')
    return manifest


def _check(path: Path, value: Any, template: Any, name: str = 'fields') -> None:
    """Refuse a value of a JSON file that is not of a type, or has other fields than a template."""
    if not isinstance(template, dict):
        if type(value) is not template or (template is int and not 0 < value < 1 << 63):
            raise damaged(path, f'its "{name}" is not valid')
        return
    if not isinstance(value, dict) or value.keys() != template.keys():
        raise damaged(path, f'its "{name}" are not {", ".join(template) or "none"}')
    for key in template:
        _check(path, value[key], template[key], key)


def read_or_damaged(path: Path, read: Callable[[Path], Any]) -> Any:
    """Read a file of an index, or raise :func:`damaged`."""
    try:
        return read(path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise damaged(path, 'it is missing') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}.') from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise damaged(path, f'{type(error).__name__}: {str(error)[:200]}') from error


def damaged(path: str | Path, reason: Any) -> UserError:
    """Make the error for a damaged file of an index."""
    return UserError(
        f'{path} of the index is damaged: {reason}. Delete the folder {Path(path).parent} and '
        'index the videos again.'
    )
