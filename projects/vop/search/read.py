"""Searching the videos of a folder."""

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..fileio import read_json
from .ann import IVF, ROWS_PER_BLOCK, IVFSettings, search_exactly
from .store import read_parts

# Only what opens the model needs them.
if TYPE_CHECKING:
    from torch import Tensor

    from ..apis.inferencer import VoPInferencer

FORMAT = 4
MANIFEST = 'index.json'
FAILED = 'failed.json'
PARTS = 'parts'
# The other files of an index. Each belongs to a generation or to a model,
# whose number or fingerprint is in its name.
FILES = dict(
    config='config-{}.json',
    model='model-{}.safetensors',
    embeddings='embeddings-{}.npy',
    names='names-{}.json',
    stamps='stamps-{}.npy',
    ivf='ivf-{}.faiss',
)
OURS = re.compile(
    '({})([.]part)?'.format(
        '|'.join(re.escape(name.format('@')).replace('@', '[0-9a-f]+') for name in FILES.values())
    )
)


FIELDS = dict(generation=int, model_fingerprint=str, video_dir=str, videos=int, width=int)
FIELDS |= dict(next_id=int, files=dict)
OUTSIDE = re.compile(r'(?:^|\0)(?:/|(?:[^\0]*/)?\.\.(?:[/\0]|$))')


class Hit(NamedTuple):
    """A video that was found.

    Attributes:
        name (str): Its path in the folder of the videos.
        score (float): The model's score: a cosine, unless the config says
            ``normalize_video=False``.

    Example:
        >>> index.search(inferencer.encode_texts(['a dog']), topk=1)
        [[Hit(name='pets/rex.mp4', score=0.31)]]
    """

    name: str
    score: float


class VideoIndex:
    """The embeddings of a folder's videos, to be searched.

    An index is a folder, which :func:`.update_index` writes. It holds what a
    query needs: the embeddings, the config and the weights that were trained.
    CLIP's own weights are read from where the config says.

    ``index.json`` names the other files. Those of a generation never change;
    an update writes those of the next, replaces ``index.json``, and deletes
    the old ones. An index that is open stays what it was.

    Args:
        folder (Path): The folder.
        manifest (dict): What its ``index.json`` says.

    Attributes:
        names (list[str]): Paths of the n videos in the folder of the videos.
        video_dir (Path): That folder, absolute.
        embeddings (np.ndarray): float32 of shape [n x e], mapped from the
            disk.
        stamps (np.ndarray): int64 of shape [n x 3]: an id that rises from
            row to row and is never used again; the size in bytes and the
            time of change in ns that the video had when it was encoded.
        model_fingerprint (str): See :class:`.VoPInferencer`.
        generation (int): Counts the updates.
        config_file (Path): The model's config.
        state_file (Path): The model's trained weights.
        ivf (IVF, optional): The lists of an approximate search.

    Example:
        >>> index = VideoIndex.open('my_index')
        >>> inferencer = index.load_inferencer()
        >>> hits = index.search(inferencer.encode_texts(['a dog', 'a cat']), topk=5)
        >>> [index.path(hit.name) for hit in hits[0]]  # the videos of a dog
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.video_dir = Path(manifest['video_dir'])
        self.model_fingerprint: str = manifest['model_fingerprint']
        self.generation: int = manifest['generation']
        sizes, short = manifest['files'], self.model_fingerprint[:12]
        self.files = {what: folder / FILES[what].format(self.generation) for what in sizes}
        for what in ('config', 'model'):
            self.files[what] = folder / FILES[what].format(short)
        for what, path in self.files.items():
            # An update may delete it between two looks.
            about = _read(path, os.stat)
            if not stat.S_ISREG(about.st_mode):
                raise damaged(path, 'it is no file')
            found = about.st_size
            if found != sizes.get(what, found):
                raise damaged(path, f'it has {found:,} bytes, not {sizes[what]:,}')
        self.config_file = self.files['config']
        self.state_file = self.files['model']
        self.names = _read(self.files['names'], _names)
        self.embeddings = _read(self.files['embeddings'], _mapped)
        self.stamps = _read(self.files['stamps'], _mapped)
        count, width = manifest['videos'], manifest['width']
        for what, array, kind, shape in (
            ('names', np.empty(len(self.names)), float, (count,)),
            ('embeddings', self.embeddings, np.float32, (count, width)),
            ('stamps', self.stamps, np.int64, (count, 3)),
        ):
            if (array.dtype, array.shape) != (kind, shape) or not count:
                raise damaged(self.files[what], f'it is {array.dtype} of shape {array.shape}')
        self.ivf = None
        if 'ivf' in self.files:
            self.ivf = self.open_ivf(mapped=True)
            self._ids = np.array(self.stamps[:, 0])
        self._finite = False  # whether the embeddings are known to be

    @classmethod
    def open(cls, path: str | Path) -> 'VideoIndex':
        """Open an index.

        Args:
            path (str | Path): Its folder.

        Returns:
            VideoIndex: The index as it is now.

        Raises:
            UserError: If there is no index, or none yet; if it is damaged or
                of another version, when the message names the file; or if
                search is approximate and FAISS is missing.
        """
        path = Path(path)
        while True:
            manifest = read_manifest(path)
            try:
                return cls(path, manifest)
            except UserError:
                # An update may just have deleted what was to be opened.
                if read_manifest(path) == manifest:
                    raise

    def open_ivf(self, mapped: bool) -> IVF:
        """Open the lists of an approximate search; see :class:`.IVF`."""
        path, settings = self.files['ivf'], IVFSettings(**self.manifest['ivf'])

        def open_it(path: Path) -> tuple[IVF, tuple[int, ...]]:
            ivf = IVF.open(path, settings, mapped)
            return ivf, (ivf.index.ntotal, ivf.index.d, ivf.index.nlist)

        ivf, held = _read(path, open_it)
        if held != (*self.embeddings.shape, settings.nlist):
            raise damaged(path, f'it holds [{held[0]:,} x {held[1]:,}] in {held[2]:,} lists')
        return ivf

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        how = self.ivf.settings if self.ivf else 'Search is exact.'
        return f'{len(self):,} videos of {self.video_dir}. {how}'

    def path(self, name: str) -> Path:
        """Path of a video."""
        return self.video_dir / name

    def search(
        self, embeddings: 'Tensor | np.ndarray', topk: int, exact: bool = False
    ) -> list[list[Hit]]:
        """Find the videos with the highest scores.

        Args:
            embeddings (Tensor | np.ndarray): Of texts or videos, as this
                index's model embeds them, of shape [q x e].
            topk (int): How many to find for each; all, where there are no
                more.
            exact (bool): Compare with every video, also where the search is
                approximate. Defaults to False.

        Returns:
            list[list[Hit]]: For each query, best first.

        Raises:
            ValueError: If the queries are of another width or not finite, or
                if topk is below 1.
            UserError: If the index is damaged, or FAISS is missing.
        """
        queries = np.ascontiguousarray(embeddings, dtype=np.float32)
        width = self.embeddings.shape[1]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(f'Queries must be of shape [q x {width}], got {list(queries.shape)}.')
        if not np.isfinite(queries).all():
            raise ValueError('The embedding of a query is not finite.')
        if topk < 1:
            raise ValueError(f'topk must be 1 or more, got {topk}.')
        topk = min(topk, len(self))
        if self.ivf is None or exact:
            return self._search_exactly(queries, topk)
        scores, ids = self.ivf.search(queries, topk)
        # Where the lists that were read hold too few videos, ids are -1.
        few = ids.min(axis=1) < 0
        rows = np.searchsorted(self._ids[:-1], ids)
        if not ((self._ids[rows] == ids) | (ids < 0)).all():
            raise damaged(self.files['ivf'], 'it holds unknown videos')
        hits = self._hits(scores, rows)
        if few.any():
            exactly = iter(self._search_exactly(queries[few], topk))
            hits = [next(exactly) if short else found for short, found in zip(few, hits)]
        return hits

    def _search_exactly(self, queries: np.ndarray, topk: int) -> list[list[Hit]]:
        if not self._finite:  # FAISS passes over what is not a number
            for start in range(0, len(self), ROWS_PER_BLOCK):
                if not np.isfinite(self.embeddings[start : start + ROWS_PER_BLOCK]).all():
                    raise damaged(self.files['embeddings'], 'it holds numbers that are not finite')
            self._finite = True
        return self._hits(*search_exactly(queries, self.embeddings, topk))

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> list[list[Hit]]:
        return [
            [Hit(self.names[row], score) for score, row in zip(*found)]
            for found in zip(scores.tolist(), rows.tolist())
        ]

    def check_model(self, model_fingerprint: str) -> None:
        """Refuse queries of another model.

        Args:
            model_fingerprint (str): Of the model that embeds the queries.

        Raises:
            UserError: If it is not the one that embedded the videos.
        """
        if model_fingerprint != self.model_fingerprint:
            raise UserError(
                f'{self.folder} was made with another model (fingerprint '
                f'{self.model_fingerprint[:12]}) than that of the query '
                f'({model_fingerprint[:12]}): their embeddings cannot be compared. Search with '
                "the index's own model (without --config and --checkpoint), or index the videos "
                f'again with this one: `python tools/search.py index {self.video_dir} '
                f'{self.folder} --config CONFIG --checkpoint CHECKPOINT`.'
            )

    def load_inferencer(
        self, device: str | None = None, show_progress: bool = True
    ) -> 'VoPInferencer':
        """Open the index's own model.

        Args:
            device (str, optional): Where to compute. Defaults to a GPU, where
                there is one.
            show_progress (bool): Show progress bars. Defaults to True.

        Returns:
            VoPInferencer: What embeds queries.

        Raises:
            UserError: If CLIP's weights are not there, or are others now; or
                if the config or the trained weights are damaged.
        """
        inferencer = open_index_model(self.config_file, str(self.state_file), device, show_progress)
        self.check_model(inferencer.model_fingerprint)
        return inferencer


def open_index_model(
    config: Path,
    checkpoint: str,
    device: str | None = None,
    show_progress: bool = True,
    options: dict[str, Any] | None = None,
) -> 'VoPInferencer':
    """Open the model of an index, which may be someone else's.

    Args:
        config (Path): Its ``config-*.json``.
        checkpoint (str): The trained weights.
        device (str, optional): See :class:`.VoPInferencer`.
        show_progress (bool): Show progress bars. Defaults to True.
        options (dict, optional): Changes of the config by dotted keys.

    Raises:
        UserError: If config or weights are damaged, CLIP's weights are not there, or the model
            cannot be made.
    """
    import torch

    from ..apis.inferencer import VoPInferencer
    from ..engine.config import merge_options, open_config

    cfg = open_config(config)
    merge_options(cfg, options)
    try:
        return VoPInferencer(cfg, checkpoint, device, show_progress)
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a wrong config can raise nearly anything
        raise UserError(
            f'The model of {config} cannot be made: {type(error).__name__}: {str(error)[:200]}. '
            'Check --cfg-options and --device, or name config and checkpoint with --config and '
            '--checkpoint.'
        ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``index.json`` says.

    Raises:
        UserError: If there is none, when the message says how far an
            unfinished indexing got; or if it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(_why_missing(folder))
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
    check_fields(path, manifest, **FIELDS)
    if not re.fullmatch('[0-9a-f]{32}', manifest['model_fingerprint']):
        raise damaged(path, 'its "model_fingerprint" is none')
    needed = ['names', 'stamps', 'embeddings', *['ivf'] * ('ivf' in manifest)]
    check_fields(path, manifest['files'], **dict.fromkeys(needed, int))
    if len(manifest['files']) != len(needed):
        raise damaged(path, f'its "files" are not {", ".join(needed)}')
    if 'ivf' in manifest:
        ivf = manifest['ivf']
        numbers = dict.fromkeys(('nlist', 'nprobe', 'trained_for', 'measured_for', 'next_id'), int)
        check_fields(path, ivf, **numbers, recall=dict)
        check_fields(path, ivf['recall'], **dict.fromkeys(ivf['recall'], float))
        if len(ivf) != 6 or not ivf['nprobe']:
            raise damaged(path, 'its "ivf" is none')
    return manifest


def check_fields(path: Path, value: Any, **kinds: type) -> None:
    """Refuse what is not an object with such fields, in a file of JSON."""
    if not isinstance(value, dict):
        raise damaged(path, f'it holds a {type(value).__name__} in place of an object')
    for key, kind in kinds.items():
        field = value.get(key)
        if type(field) is not kind or (isinstance(field, int) and not 0 <= field < 1 << 63):
            raise damaged(path, f'its "{key[:80]}" is no {kind.__name__} that can be')


def _why_missing(folder: Path) -> str:
    runs = {}
    for path in folder.glob(f'{PARTS}/*/run-*.json'):
        with suppress(FileNotFoundError):  # a run that ends removes it
            if path.is_file():
                runs[path] = path.stat().st_mtime
    if not runs:
        return (
            f'There is no index in {folder}: it has no {MANIFEST}. '
            '`python tools/search.py index VIDEO_DIR INDEX` makes one.'
        )
    run = max(runs, key=lambda path: runs[path])
    about = read_json(run)
    check_fields(run, about, video_dir=str, videos=int)
    done = {name for name, *_ in read_parts(run.parent.glob('*.npz'))}
    return (
        f'The first indexing of {about["video_dir"]} into {folder} is not finished: {len(done):,} '
        f'of {about["videos"]:,} videos are saved. Wait for it; or, if it was stopped, give the '
        'same command again, and it resumes: '
        f'`python tools/search.py index {about["video_dir"]} {folder}`.'
    )


def _names(path: Path) -> list[str]:
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(path, 'it is not a list of names')
    together = '\0'.join(names)  # of which a million are searched at once
    doubtful = '..' in together or together.startswith('/') or '\0/' in together
    if together.count('\0') != len(names) - 1 or (doubtful and OUTSIDE.search(together)):
        raise damaged(path, 'a name leads out of the folder of the videos')
    return names


def _mapped(path: Path) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode='r')  # np.load opens other kinds, too


def _read(path: Path, how: Callable[[Path], Any]) -> Any:
    try:
        return how(path)
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
