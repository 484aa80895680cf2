"""Nearest neighbours by inner product, by means of FAISS."""

import math
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ..errors import UserError

TOP = 10  # recall is measured among so many neighbours
WANTED_RECALL = 0.95
POINTS_PER_LIST = 64  # embeddings that each list of an IVF is trained with
QUERIES = 256  # of each kind, to choose nprobe
SAME = 0.9  # recall is measured anew when fewer embeddings are those of the last time
ROWS_PER_BLOCK = 16384  # rows that are added, checked or written at a time


def open_faiss() -> ModuleType:
    """Import FAISS.

    Raises:
        UserError: If it is not installed; the message says how to.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            'Search needs FAISS, which is not installed: `pip install faiss-cpu` (or faiss-gpu, '
            'where you have it; not both).'
        ) from error
    return faiss


def search_exactly(
    queries: np.ndarray, embeddings: np.ndarray, topk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare each query with every embedding.

    This is what FAISS's ``IndexFlatIP`` does, without the copy that it makes:
    the embeddings may stay in a file that is mapped into memory.

    Args:
        queries (np.ndarray): float32, of shape [q x e].
        embeddings (np.ndarray): float32, of shape [n x e].
        topk (int): How many to find, n at most.

    Returns:
        tuple[np.ndarray, np.ndarray]: Inner products, best first, and the
        rows that they belong to; both of shape [q x topk].
    """
    faiss = open_faiss()
    return faiss.knn(queries, embeddings, topk, metric=faiss.METRIC_INNER_PRODUCT)


class IVFSettings(NamedTuple):
    """How an inverted file was made, and its recall.

    Attributes:
        nlist (int): Number of lists that the embeddings are divided among.
        nprobe (int): Number of lists that a query reads.
        recall (dict[str, float]): Recall@10 against exact search, by the kind
            of query.
        trained_for (int): Number of embeddings when the lists were trained.
        measured_for (int): Number of embeddings when recall was measured.
        next_id (int): Ids of embeddings that have come since are not below it.

    Example:
        >>> print(IVFSettings(400, 32, {'texts': 0.96}, 10_000, 10_000, 10_000))
        Search is approximate: IVF with 400 lists, of which 32 are read; of ...
    """

    nlist: int
    nprobe: int
    recall: dict[str, float]
    trained_for: int
    measured_for: int = 0
    next_id: int = 0

    def __str__(self) -> str:
        found = ', '.join(f'{100 * part:.0f} % for {kind}' for kind, part in self.recall.items())
        return (
            f'Search is approximate: IVF with {self.nlist:,} lists, of which {self.nprobe:,} are '
            f'read; of the exact top {TOP} it finds {found}, measured with '
            f'{self.measured_for:,} videos.'
        )


class IVF:
    """An inverted file with flat codes: a query reads the likeliest lists only.

    Scores are exact, but a neighbour in a list that is not read is missed.
    Embeddings can be removed from it, which a graph (HNSW) does not allow, and
    its file is mapped into memory, so that a query reads some of its pages
    only.

    Args:
        index (faiss.IndexIVFFlat): The lists, trained.
        settings (IVFSettings): How they were made.

    Example:
        >>> ivf = IVF.train(embeddings)
        >>> ivf.add(np.arange(len(embeddings)), embeddings)
        >>> scores, ids = ivf.search(queries, topk=5)
    """

    def __init__(self, index, settings: IVFSettings) -> None:
        self.index, self.settings = index, settings
        index.nprobe = settings.nprobe

    @classmethod
    def train(cls, embeddings: np.ndarray) -> 'IVF':
        """Make the lists, still empty, for embeddings of shape [n x e]."""
        faiss = open_faiss()
        count, width = embeddings.shape
        nlist = max(1, min(round(4 * math.sqrt(count)), count // 8))
        index = faiss.index_factory(width, f'IVF{nlist},Flat', faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # no warning of small samples
        index.train(_sample(embeddings, min(count, POINTS_PER_LIST * nlist))[0])
        return cls(index, IVFSettings(nlist, 1, {}, count))

    @classmethod
    def open(cls, path: Path, settings: IVFSettings, mapped: bool) -> 'IVF':
        """Open a file.

        Args:
            path (Path): What :meth:`write` wrote.
            settings (IVFSettings): The settings at that time.
            mapped (bool): Leave the embeddings on the disk until a query
                reads them. Such an IVF cannot be changed.

        Raises:
            RuntimeError: FAISS's, if the file is damaged.
            ValueError: If it holds another kind of index, or names another file.
        """
        faiss = open_faiss()
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped else 0
        index = faiss.read_index(str(path), flags)
        if type(index) is not faiss.IndexIVFFlat:
            raise ValueError(f'it holds an {type(index).__name__}')
        if type(faiss.downcast_index(index.quantizer)) is not faiss.IndexFlatIP:
            raise ValueError('its lists are of another kind')
        lists = faiss.downcast_InvertedLists(index.invlists)
        # FAISS maps whichever file this one names, and writes to it.
        if getattr(lists, 'filename', '') not in ('', str(path) if mapped else ''):
            raise ValueError('its lists are in another file')
        return cls(index, settings)

    def write(self, path: Path) -> None:
        """Write a file, or raise OSError."""
        faiss = open_faiss()
        # By itself, FAISS would not notice that a disk is full at the end.
        with open(path, 'wb') as file:
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write, 1 << 20))

    def remove(self, ids: np.ndarray) -> None:
        """Remove embeddings by their ids, int64 of shape [n]."""
        if len(ids):
            self.index.remove_ids(ids)

    def add(self, ids: np.ndarray, embeddings: np.ndarray) -> None:
        """Add float32 embeddings of shape [n x e] under int64 ids of shape [n]."""
        for start in range(0, len(ids), ROWS_PER_BLOCK):
            block = slice(start, start + ROWS_PER_BLOCK)
            self.index.add_with_ids(embeddings[block], ids[block])

    def search(self, queries: np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products and ids, as of :func:`search_exactly`.

        Where the lists that are read hold fewer, the ids end with -1.
        """
        return self.index.search(queries, topk)

    def is_measured(self, ids: np.ndarray) -> bool:
        """Whether ``nprobe`` was chosen for about these embeddings, by their ids [n]."""
        same = np.count_nonzero(ids < self.settings.next_id)
        return bool(same >= SAME * max(len(ids), self.settings.measured_for))

    def choose_nprobe(
        self, embeddings: np.ndarray, ids: np.ndarray, texts: np.ndarray | None
    ) -> None:
        """Choose the smallest ``nprobe`` with the wanted recall.

        ``WANTED_RECALL`` holds for each kind of query: for videos of the
        collection (not counting that each finds itself) and for texts. Texts
        lie elsewhere than videos, and need more lists.

        Args:
            embeddings (np.ndarray): All that it holds, of shape [n x e].
            ids (np.ndarray): Their ids, of shape [n].
            texts (np.ndarray, optional): Embeddings of texts to try.
        """
        videos, rows = _sample(embeddings, min(len(embeddings), QUERIES))
        kinds = {'videos': (videos, ids[rows])}
        if texts is not None:
            kinds['texts'] = (texts, np.full(len(texts), -1))
        top = min(TOP + 1, len(embeddings))
        wanted = {}
        for kind, (queries, own) in kinds.items():
            _, exact = search_exactly(queries, embeddings, top)
            wanted[kind] = _without(ids[exact], own)

        def measure(nprobe: int) -> dict[str, float]:
            self.index.nprobe = nprobe
            return {
                kind: _recall(_without(self.search(queries, top)[1], own), wanted[kind])
                for kind, (queries, own) in kinds.items()
            }

        nlist = self.settings.nlist
        below, nprobe = 0, 1  # too few, and a guess
        while nprobe < nlist and min(measure(nprobe).values()) < WANTED_RECALL:
            below, nprobe = nprobe, min(2 * nprobe, nlist)
        while nprobe - below > max(1, below // 4):
            middle = (below + nprobe) // 2
            if min(measure(middle).values()) < WANTED_RECALL:
                below = middle
            else:
                nprobe = middle
        self.settings = self.settings._replace(
            nprobe=nprobe,
            recall=measure(nprobe),
            measured_for=len(ids),
            next_id=int(ids.max()) + 1,
        )


def _sample(embeddings: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Some embeddings, the same each time, and their rows in order."""
    rows = np.random.default_rng(0).choice(len(embeddings), count, replace=False)
    rows.sort()
    return np.ascontiguousarray(embeddings[rows]), rows


def _without(found: np.ndarray, own: np.ndarray) -> list[set]:
    """The first ten ids of each query except its own."""
    return [
        set([each for each in ids if each not in (mine, -1)][:TOP])
        for ids, mine in zip(found.tolist(), own.tolist())
    ]


def _recall(found: list[set], wanted: list[set]) -> float:
    return sum(len(a & b) for a, b in zip(found, wanted)) / max(1, sum(map(len, wanted)))
