"""Searching the videos of a folder."""

import math
import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UserError
from .ann import IVF, TOP, search_exactly
from .store import (
    ROWS_PER_BLOCK,
    damaged,
    index_files,
    read_manifest,
    read_or_damaged,
    read_videos,
)

# Only what opens the model needs them.
if TYPE_CHECKING:
    import pandas
    from torch import Tensor

    from ..apis.inferencer import VoPInferencer
    from ..apis.onnx_text import OnnxTextEncoder

MOMENT = np.dtype([('video', '<i8'), ('start', '<f8'), ('end', '<f8')])
MOST_IDS = 1 << 32  # in the life of an index, as a query of some videos has a bit for each
EXACT_BELOW = 100_000  # fewer moments are compared one by one


class Hit(NamedTuple):
    """A moment of a video that was found.

    Attributes:
        name (str): The video's path in the folder of the videos.
        score (float): The model's score: a cosine, unless the config says
            ``normalize_video=False``.
        start (float): When the moment begins, in seconds; 0 for a whole video.
        end (float): When it ends. nan where a file does not tell how long it is.
        row (int): Its number among the index's ``moments`` and ``embeddings``.

    Example:
        >>> index.search(inferencer.encode_texts(['a dog']), topk=1)
        [[Hit(name='pets/rex.mp4', score=0.31, start=20.0, end=30.0, row=7)]]
    """

    name: str
    score: float
    start: float
    end: float
    row: int

    def to_dict(self) -> dict[str, Any]:
        """The hit as JSON has it, without an end that is not known."""
        end = None if math.isnan(self.end) else self.end
        return dict(video=self.name, score=self.score, start=self.start, end=end)


class Answers(list[list[Hit]]):
    """For each query a list of hits, the best first.

    Example:
        >>> index.search(inferencer.encode_texts(['a dog', 'a cat']), topk=5).to_pandas()
           query  rank          name  score  start   end  row
        0      0     1  pets/rex.mp4   0.31   20.0  30.0    7
        ...
    """

    def to_pandas(self) -> 'pandas.DataFrame':
        """All hits as a table, with the number of the query and the rank from 1 on."""
        import pandas

        rows = [
            (query, rank, *hit)
            for query, hits in enumerate(self)
            for rank, hit in enumerate(hits, 1)
        ]
        return pandas.DataFrame(rows, columns=['query', 'rank', *Hit._fields])


class VideoIndex:
    """The embeddings of a folder's videos, to be searched.

    An index is a folder, which :func:`.update_index` writes. It holds what a
    query needs: the embeddings, the config and the weights that were trained.
    CLIP's own weights are read from where the config says. What was opened
    stays what it was while updates write the next generation.

    Args:
        folder (Path): Its folder.
        manifest (dict): What its ``index.json`` says; see :meth:`open`.

    Attributes:
        video_dir (Path): The folder of the videos.
        names (list[str]): The v videos by their paths in that folder.
        stamps (np.ndarray): int64 [v x 2]: size in bytes and time of change in ns of each video
            when it was encoded.
        moments (np.ndarray): The m moments, those of a video in order: ``video`` (its number
            among ``names``), ``start`` and ``end`` in seconds.
        ids (np.ndarray): int64 [m], ascending: what the lists call the moments.
        embeddings (np.ndarray): float32 [m x e], in a mapped file.
        window (tuple[float, float], optional): Seconds of a window and of the step to the next;
            None if each video is one moment.
        model_fingerprint (str): See :class:`.VoPInferencer`.
        generation (int): Counts the updates.
        threshold (float): The score that one in twenty pairs of a caption and a moment exceed.
        ivf (IVF, optional): The lists of an approximate search.
        files (dict[str, Path]): Its files.

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
        self.window: tuple[float, float] | None = tuple(manifest['window']) or None
        self.threshold: float = manifest['measured']['threshold']
        self.files, sizes = index_files(folder, manifest), manifest['files']
        for what, path in self.files.items():
            # An update may delete it between two looks.
            about = read_or_damaged(path, os.stat)
            if not stat.S_ISREG(about.st_mode):
                raise damaged(path, 'it is no file')
            if about.st_size != sizes.get(what, about.st_size):
                raise damaged(path, f'it has {about.st_size:,} bytes, not {sizes[what]:,}')
        path = self.files['videos']
        held, self.ids = read_or_damaged(path, read_videos)
        videos, moments = manifest['videos'], manifest['moments']
        if (len(held.names), len(held.spans)) != (videos, moments) or self.ids.dtype != np.int64:
            raise damaged(path, f'it has {len(held.names):,} names of {len(held.spans):,} moments')
        joined = f'/{"/".join(held.names)}/'  # a million are searched at once
        if any(part in joined for part in ('//', '/../', '\0')):
            raise damaged(path, 'a name leads out of the folder of the videos')
        if (np.diff(self.ids) <= 0).any() or not 0 <= self.ids[0] <= self.ids[-1] < MOST_IDS:
            raise damaged(path, 'its ids are not ascending')
        starts, ends = held.spans.T  # an end may be unknown, nan, if there are no windows
        wrong = (starts < 0) | (ends < starts) | np.isnan(ends if self.window else starts)
        if wrong.any() or np.isinf(held.spans).any() or np.isnan(starts).any():
            raise damaged(path, 'a moment is at no time')
        self.names, self.stamps = held.names, held.stamps
        self.moments = np.empty(moments, MOMENT)
        self.moments['video'] = np.repeat(np.arange(videos), held.counts)
        self.moments['start'], self.moments['end'] = held.spans.T
        path = self.files['embeddings']
        # np.load opens other kinds, too.
        embeddings = read_or_damaged(path, lambda path: np.lib.format.open_memmap(path, mode='r'))
        if (embeddings.dtype, embeddings.shape) != (np.float32, (moments, manifest['width'])):
            raise damaged(path, f'it is {embeddings.dtype} of shape {embeddings.shape}')
        self.embeddings = embeddings
        self.ivf: IVF | None = None
        if 'ivf' in self.files:
            path = self.files['ivf']
            self.ivf = read_or_damaged(path, lambda path: IVF.open(path, **manifest['ivf']))
            shape = self.ivf.index.ntotal, self.ivf.index.d
            if shape != embeddings.shape:
                raise damaged(path, f'it holds [{shape[0]:,} x {shape[1]:,}]')
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

    def __len__(self) -> int:
        return len(self.moments)

    def __str__(self) -> str:
        what = f'{len(self.names):,} videos'
        if self.window:
            length, stride = self.window
            what = f'{len(self):,} moments of {length:g} s, one each {stride:g} s, in {what}'
        return f'{what} of {self.video_dir}. {self.how}'

    @property
    def how(self) -> str:
        """A sentence about how it is searched."""
        if self.ivf is None:
            return 'Search is exact.'
        measured = self.manifest['measured']
        found = [f'{100 * part:.0f} % for {kind}' for kind, part in measured['recall'].items()]
        return (
            f'Search is approximate: IVF with {self.ivf.index.nlist:,} lists, of which '
            f'{self.ivf.nprobe:,} are read; of the exact top {TOP} it finds {", ".join(found)}, '
            f'measured with {measured["moments"]:,}.'
        )

    def path(self, name: str) -> Path:
        """Path of a video."""
        return self.video_dir / name

    def select(
        self, pattern: str = '*', min_duration: float = 0, max_duration: float = np.inf
    ) -> np.ndarray:
        """Choose videos to search among.

        Args:
            pattern (str): What the path in the folder is like, with ``*``, ``?`` and ``[...]``; a
                ``*`` stands for several folders, too. Case matters.
            min_duration (float): The shortest, in seconds. One of unknown length is left out if a
                length is asked for.
            max_duration (float): The longest.

        Returns:
            np.ndarray: bool [v], for :meth:`search`.

        Example:
            >>> index.search(queries, 5, among=index.select('pets/*', max_duration=60))
        """
        chosen = np.ones(len(self.names), bool)
        if pattern != '*':
            chosen = np.array([fnmatchcase(name, pattern) for name in self.names])
        if min_duration > 0 or max_duration < np.inf:
            durations = np.zeros(len(self.names))
            with np.errstate(invalid='ignore'):  # of a video without a length, NaN
                np.maximum.at(durations, self.moments['video'], self.moments['end'])
            chosen &= (durations >= min_duration) & (durations <= max_duration)
        return chosen

    def search(
        self,
        embeddings: 'Tensor | np.ndarray',
        topk: int,
        exact: bool = False,
        min_score: float = -np.inf,
        among: np.ndarray | None = None,
    ) -> Answers:
        """Find the moments with the highest scores.

        Of moments of a video that overlap, the best alone is given (non-maximum suppression).

        Args:
            embeddings (Tensor | np.ndarray): Of texts or videos, as this
                index's model embeds them, of shape [q x e].
            topk (int): How many to find for each; all, where there are no
                more.
            exact (bool): Compare with every moment, also where the search is
                approximate. Defaults to False.
            min_score (float): Leave out what has a lower score. Defaults to none.
            among (np.ndarray, optional): The videos to search, bool [v]; see :meth:`select`.

        Returns:
            Answers: For each query, best first.

        Raises:
            ValueError: If the queries are of another width or not finite, if
                topk is below 1, or ``among`` is of another shape.
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
        rows = None
        if among is not None:
            if np.shape(among) != (len(self.names),):
                raise ValueError(f'among must be of shape [{len(self.names)}].')
            rows = np.flatnonzero(np.asarray(among, bool)[self.moments['video']])
        available = len(self) if rows is None else len(rows)
        # Neighbours of a hit score as high, and are left out.
        wanted = min(available, 4 * topk if self.window else topk)
        while True:
            found = self._nearest(queries, wanted, exact, rows) if wanted else [[]] * len(queries)
            answers = Answers(_without_overlap(hits)[:topk] for hits in found)
            if wanted == available or all(len(hits) == topk for hits in answers):
                return Answers([hit for hit in hits if hit.score >= min_score] for hits in answers)
            wanted = min(available, 4 * wanted)

    def _nearest(
        self, queries: np.ndarray, topk: int, exact: bool, rows: np.ndarray | None
    ) -> list[list[Hit]]:
        if self.ivf is None or exact or (rows is not None and len(rows) < EXACT_BELOW):
            return self._hits(*self._search_exactly(queries, topk, rows))
        ids = None if rows is None else self.ids[rows]
        try:
            scores, found = self.ivf.search(queries, topk, self.embeddings, self.ids, ids)
        except ValueError as error:
            raise damaged(self.files['ivf'], error) from error
        few = found[:, -1] < 0  # the lists that were read hold no more
        if few.any():
            scores[few], found[few] = self._search_exactly(queries[few], topk, rows)
        return self._hits(scores, found)

    def _search_exactly(
        self, queries: np.ndarray, topk: int, rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self._finite:  # FAISS passes over what is not a number
            self._finite = all(np.isfinite(block).all() for block in self._blocks(None))
            if not self._finite:
                raise damaged(self.files['embeddings'], 'it holds numbers that are not finite')
        scores, found = search_exactly(queries, self._blocks(rows), topk)
        return scores, found if rows is None else rows[found]

    def _blocks(self, rows: np.ndarray | None) -> Iterator[np.ndarray]:
        for start in range(0, len(self if rows is None else rows), ROWS_PER_BLOCK):
            part = slice(start, start + ROWS_PER_BLOCK)
            yield self.embeddings[part if rows is None else rows[part]]

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> list[list[Hit]]:
        found = zip(scores.tolist(), self.moments[rows].tolist(), rows.tolist())
        return [
            [
                Hit(self.names[video], score, start, end, row)
                for score, (video, start, end), row in zip(*of_query)
            ]
            for of_query in found
        ]

    def load_inferencer(
        self, device: str | None = None, show_progress: bool = True, **named: Any
    ) -> 'VoPInferencer':
        """Open the index's own model.

        Args:
            device (str, optional): Where to compute. Defaults to a GPU, where
                there is one.
            show_progress (bool): Show progress bars. Defaults to True.
            **named: ``config``, ``checkpoint`` and ``options`` of :func:`open_model`, to name the
                same model otherwise.

        Returns:
            VoPInferencer: What embeds queries.

        Raises:
            UserError: If CLIP's weights are not there, or are others now; if
                the config or the trained weights are damaged; or if another
                model is named.
        """
        files = self.files['config'], self.files['model']
        inferencer = open_model(files, device, show_progress, **named)
        self._check_model(
            inferencer.model_fingerprint,
            "Search with the index's own model (without --config and --checkpoint), or index "
            f'the videos again with this one: `python tools/search.py index {self.video_dir} '
            f'{self.folder} --config CONFIG --checkpoint CHECKPOINT`.',
        )
        return inferencer

    def load_text_encoder(self, path: str | Path) -> 'OnnxTextEncoder':
        """Open an exported text encoder of the index's own model, without torch.

        Args:
            path (str | Path): See :class:`.OnnxTextEncoder`.

        Returns:
            OnnxTextEncoder: What embeds texts.

        Raises:
            UserError: If there is none, it is damaged, or it is of another model.
        """
        from ..apis.onnx_text import OnnxTextEncoder

        encoder = OnnxTextEncoder(path)
        self._check_model(
            encoder.model_fingerprint,
            "Export the index's own model: `python tools/deployment/export_onnx.py CONFIG "
            'CHECKPOINT OUT`.',
        )
        return encoder

    def _check_model(self, fingerprint: str, advice: str) -> None:
        if fingerprint != self.model_fingerprint:
            raise UserError(
                f'{self.folder} was made with another model (fingerprint '
                f'{self.model_fingerprint[:12]}) than that of the query '
                f'({fingerprint[:12]}): their embeddings cannot be compared. {advice}'
            )


def open_model(
    files: tuple[Path, Path] | None,
    device: str | None = None,
    show_progress: bool = True,
    config: str | None = None,
    checkpoint: str | None = None,
    options: dict[str, Any] | None = None,
) -> 'VoPInferencer':
    """Open the model of an index, which may be someone else's, or one that is named.

    Args:
        files (tuple[Path, Path], optional): Config and trained weights of the index; not needed
            with ``config``.
        device (str, optional): See :class:`.VoPInferencer`.
        show_progress (bool): Show progress bars. Defaults to True.
        config (str, optional): A config in place of the index's.
        checkpoint (str, optional): A checkpoint of that, or in place of the index's weights.
        options (dict, optional): Changes of the config by dotted keys.

    Raises:
        UserError: If config or weights are damaged, CLIP's weights are not there, or the model
            cannot be made.
    """
    import torch

    from ..apis.inferencer import VoPInferencer
    from ..engine.config import merge_options, open_config

    own, state = files or ('', '')
    cfg = open_config(config or own)
    merge_options(cfg, options)
    if config is not None:
        return VoPInferencer(cfg, checkpoint, device, show_progress)
    try:
        return VoPInferencer(cfg, checkpoint or str(state), device, show_progress)
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a wrong config can raise nearly anything
        raise UserError(
            f'The model of {own} cannot be made: {type(error).__name__}: {str(error)[:200]}. '
            'Check --cfg-options and --device, or name config and checkpoint with --config and '
            '--checkpoint.'
        ) from error


def combine(embeddings: Any, weights: Sequence[float]) -> Any:
    """Make one query of several: their weighted sum, as long as one.

    Args:
        embeddings (Tensor | np.ndarray): Of texts, videos and pictures, of shape [n x e].
        weights (Sequence[float]): n of them. What a video is not to be like has one below 0.

    Returns:
        Tensor | np.ndarray: [1 x e].

    Raises:
        UserError: If nothing is left of them.

    Example:
        >>> texts = inferencer.encode_texts(['a dog', 'on a beach', 'night'])
        >>> index.search(combine(texts, [1, 1, -0.5]), topk=5)
    """
    query: Any = sum(weight * each for weight, each in zip(weights, embeddings))
    norm = float((query * query).sum()) ** 0.5
    if not norm > 1e-6:
        raise UserError(f'With the weights {[*weights]} nothing is left of the query.')
    return (query / norm)[None]


def clock(seconds: float) -> str:
    """A time as 1:02:03, or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def _without_overlap(hits: list[Hit]) -> list[Hit]:
    """Leave out what overlaps a better moment of the same video."""
    kept: list[Hit] = []
    taken: dict[str, list[Hit]] = {}
    for hit in hits:
        others = taken.setdefault(hit.name, [])
        if not any(hit.start < other.end and other.start < hit.end for other in others):
            others.append(hit)
            kept.append(hit)
    return kept
