"""The nearest embeddings by inner product, by means of FAISS."""

import math
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

# Recall is measured among so many neighbours.
TOP = 10
WANTED_RECALL = 0.95
# Embeddings that a list of an IVF is trained with, and how many queries
# choose how many lists are read.
POINTS_PER_LIST = 64
QUERIES = 256
CHUNK = 16384  # rows that are added at a time


def open_faiss() -> ModuleType:
    """Import FAISS.

    Raises:
        ImportError: If it is not installed; the message says how to.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'Search needs FAISS, which is not installed: `pip install '
            'faiss-cpu` (or faiss-gpu, where you have it; not both).'
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


class Settings(NamedTuple):
    """How an IVF was made, and what it is worth.

    Attributes:
        lists (int): Lists that the embeddings are divided among.
        read (int): Lists that a query reads.
        recall (dict[str, float]): Which part of the exact top 10 it finds,
            by the kind of query.
        trained_for (int): Embeddings that there were when the lists were
            made.
    """

    lists: int
    read: int
    recall: dict[str, float]
    trained_for: int

    def __str__(self) -> str:
        found = ', '.join(f'{100 * part:.0f} % for {kind}' for kind, part in self.recall.items())
        return (
            f'Search is approximate: IVF with {self.lists:,} lists, of '
            f'which {self.read:,} are read; of the exact top {TOP} it '
            f'finds {found}.'
        )


class IVF:
    """Embeddings divided among lists, of which a query reads the likeliest.

    An inverted file with flat codes: scores are exact, but a neighbour in a
    list that is not read is missed. Embeddings can be removed from it, which
    a graph (HNSW) does not allow, and its file is mapped into memory, so that
    one query reads some of its pages alone.

    Args:
        index (faiss.IndexIVFFlat): The lists, trained.
        settings (Settings): How they were made.
    """

    def __init__(self, index, settings: Settings) -> None:
        self.index, self.settings = index, settings
        index.nprobe = settings.read

    @classmethod
    def train(cls, embeddings: np.ndarray) -> 'IVF':
        """Make the lists, still empty, for embeddings of shape [n x e]."""
        faiss = open_faiss()
        count, width = embeddings.shape
        lists = max(1, min(round(4 * math.sqrt(count)), count // 8))
        index = faiss.index_factory(width, f'IVF{lists},Flat', faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # no warning of small samples
        index.train(sample(embeddings, min(count, POINTS_PER_LIST * lists))[0])
        return cls(index, Settings(lists, 1, {}, count))

    @classmethod
    def open(cls, path: Path, settings: Settings, mapped: bool) -> 'IVF':
        """Open a file.

        Args:
            path (Path): What :meth:`write` wrote.
            settings (Settings): Of then.
            mapped (bool): Leave the embeddings on the disk until a query
                reads them. Such an IVF cannot be changed.

        Raises:
            ValueError: If the file is damaged.
        """
        faiss = open_faiss()
        try:
            index = faiss.read_index(
                str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped else 0
            )
        except RuntimeError as error:
            raise ValueError(f'FAISS cannot open it ({error})') from error
        return cls(index, settings)

    def write(self, path: Path) -> None:
        """Write a file.

        Raises:
            OSError: If it cannot be written.
        """
        faiss = open_faiss()
        # By itself, FAISS would not notice that a disk is full at the end.
        with open(path, 'wb') as file:
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write, 1 << 20))

    def remove(self, ids: np.ndarray) -> None:
        """Remove embeddings by their ids, int64 of shape [n]."""
        if len(ids):
            self.index.remove_ids(ids)

    def add(self, ids: np.ndarray, embeddings: np.ndarray) -> None:
        """Add embeddings.

        Args:
            ids (np.ndarray): int64, of shape [n].
            embeddings (np.ndarray): float32, of shape [n x e].
        """
        for start in range(0, len(ids), CHUNK):
            part = slice(start, start + CHUNK)
            self.index.add_with_ids(embeddings[part], ids[part])

    def search(self, queries: np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products and ids, as of :func:`search_exactly`.

        Where the lists that are read hold fewer, the ids end with -1.
        """
        return self.index.search(queries, topk)

    def choose_read(
        self, embeddings: np.ndarray, ids: np.ndarray, texts: np.ndarray | None
    ) -> None:
        """Choose how many lists are read, by what would be missed.

        The least is taken that finds ``WANTED_RECALL`` of the exact top 10
        for each kind of query: for videos of the collection (not counting
        that each finds itself) and for texts. These lie elsewhere than
        videos, and need more lists.

        Args:
            embeddings (np.ndarray): All that it holds, of shape [n x e].
            ids (np.ndarray): Their ids, of shape [n].
            texts (np.ndarray, optional): Embeddings of texts to try.
        """
        videos, rows = sample(embeddings, min(len(embeddings), QUERIES))
        kinds = {'videos': (videos, ids[rows])}
        if texts is not None:
            kinds['texts'] = (texts, np.full(len(texts), -1))
        top = min(TOP + 1, len(embeddings))
        wanted = {}
        for kind, (queries, own) in kinds.items():
            _, exact = search_exactly(queries, embeddings, top)
            wanted[kind] = without(ids[exact], own)

        def measure(read: int) -> dict[str, float]:
            self.index.nprobe = read
            return {
                kind: overlap(without(self.search(queries, top)[1], own), wanted[kind])
                for kind, (queries, own) in kinds.items()
            }

        lists = self.settings.lists
        below, read = 0, 1  # too few, and a guess
        while read < lists and min(measure(read).values()) < WANTED_RECALL:
            below, read = read, min(2 * read, lists)
        while read - below > max(1, below // 4):
            middle = (below + read) // 2
            if min(measure(middle).values()) < WANTED_RECALL:
                below = middle
            else:
                read = middle
        self.settings = self.settings._replace(read=read, recall=measure(read))


def sample(embeddings: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Some embeddings, the same each time, and their rows in order."""
    rows = np.random.default_rng(0).choice(len(embeddings), count, replace=False)
    rows.sort()
    return np.ascontiguousarray(embeddings[rows]), rows


def without(found: np.ndarray, own: np.ndarray) -> Iterable[set]:
    """The first ten ids of each query but its own."""
    return [
        set([each for each in ids if each not in (mine, -1)][:TOP])
        for ids, mine in zip(found.tolist(), own.tolist())
    ]


def overlap(found: Iterable[set], wanted: Iterable[set]) -> float:
    """The part of what is wanted that was found."""
    return sum(len(a & b) for a, b in zip(found, wanted)) / max(1, sum(map(len, wanted)))
