"""Nearest neighbours by inner product, by means of FAISS."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import UserError
from ..fileio import atomic_write

TOP = 10  # recall is measured among so many neighbours
WANTED_RECALL = 0.95
POINTS_PER_LIST = 32  # embeddings that each list of an IVF is trained with
QUERIES = 256  # of each kind, to choose nprobe
CANDIDATES = 200  # whose exact scores are computed, if these are enough; see IVF.choose
MOST_CANDIDATES = 20 * CANDIDATES


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
    queries: np.ndarray, blocks: Iterable[np.ndarray], topk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare each query with every embedding.

    Args:
        queries (np.ndarray): float32, of shape [q x e].
        blocks (Iterable[np.ndarray]): The embeddings: float32 arrays of shape [n x e].
        topk (int): How many to find, as many as there are embeddings at most.

    Returns:
        tuple[np.ndarray, np.ndarray]: Inner products, best first, and the
        numbers of the embeddings that they belong to; both of shape [q x topk].
    """
    faiss = open_faiss()
    scores: Any = np.empty((len(queries), 0), np.float32)
    rows: Any = np.empty((len(queries), 0), np.int64)
    start = 0
    for block in blocks:
        found = faiss.knn(queries, block, min(topk, len(block)), faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, found[0]], axis=1)
        rows = np.concatenate([rows, found[1] + start], axis=1)
        best = np.argsort(-scores, axis=1, kind='stable')[:, :topk]
        scores, rows = (np.take_along_axis(each, best, axis=1) for each in (scores, rows))
        start += len(block)
    return scores, rows


@dataclass
class IVF:
    """An inverted file of short codes: a query reads the likeliest lists only.

    The lists hold one bit for each number of an embedding (RaBitQ). By these a query finds
    candidates, whose exact scores are then computed from the embeddings themselves. What is
    missed is what is in a list that is not read, or is not among the candidates. Embeddings can
    be removed from it, which a graph (HNSW) does not allow.

    Example:
        >>> ids = np.arange(len(embeddings))
        >>> ivf = IVF.train(embeddings)
        >>> ivf.add(ids, [embeddings])
        >>> scores, rows = ivf.search(queries, 5, embeddings, ids)
    """

    index: Any  # the lists: a faiss.IndexIVFRaBitQ, trained
    trained_for: int  # how many embeddings there were then
    nprobe: int = 1  # how many lists a query reads
    # Of how many likely embeddings a query computes exact scores; of more, if it wants more than a
    # twentieth of them.
    candidates: int = CANDIDATES

    @property
    def settings(self) -> dict[str, int]:
        """All but the lists, as :meth:`open` takes it."""
        return {name: value for name, value in vars(self).items() if name != 'index'}

    @classmethod
    def train(cls, embeddings: np.ndarray) -> 'IVF':
        """Make the lists, still empty, for embeddings of shape [n x e]."""
        faiss = open_faiss()
        count, width = embeddings.shape
        nlist = max(1, min(round(2 * math.sqrt(count)), count // 8))
        index = faiss.index_factory(width, f'IVF{nlist},RaBitQ', faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # no warning of small samples
        index.train(sample(embeddings, POINTS_PER_LIST * nlist))
        return cls(index, count)

    @classmethod
    def open(cls, path: Path, **settings: int) -> 'IVF':
        """Open a file of :meth:`write`; the settings are those of the class.

        Raises:
            RuntimeError: FAISS's, if the file is damaged.
            ValueError: If it holds another kind of index, or names another file.
        """
        faiss = open_faiss()
        index = faiss.read_index(str(path), faiss.IO_FLAG_READ_ONLY)
        if type(index) is not faiss.IndexIVFRaBitQ:
            raise ValueError(f'it holds an {type(index).__name__}')
        if type(faiss.downcast_index(index.quantizer)) is not faiss.IndexFlatIP:
            raise ValueError('its lists are of another kind')
        # Others are in whichever file this one names.
        if type(faiss.downcast_InvertedLists(index.invlists)) is not faiss.ArrayInvertedLists:
            raise ValueError('its lists are in another file')
        return cls(index, **settings)

    def write(self, path: Path) -> None:
        """Write a file; see :func:`.atomic_write`."""
        faiss = open_faiss()
        # By itself, FAISS would not notice that a disk is full at the end.
        with atomic_write(path) as part, open(part, 'wb') as file:
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write, 1 << 20))

    def remove(self, ids: np.ndarray) -> None:
        """Remove embeddings by their ids, int64 of shape [n]."""
        if len(ids):
            self.index.remove_ids(ids)

    def add(self, ids: np.ndarray, blocks: Iterable[np.ndarray]) -> None:
        """Add n embeddings, float32 arrays of shape [m x e], under int64 ids of shape [n]."""
        start = 0
        for block in blocks:
            self.index.add_with_ids(block, ids[start : start + len(block)])
            start += len(block)

    def search(
        self,
        queries: np.ndarray,
        topk: int,
        embeddings: np.ndarray,
        ids: np.ndarray,
        among: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the embeddings with the highest inner products.

        Args:
            queries (np.ndarray): float32, of shape [q x e].
            topk (int): How many to find.
            embeddings (np.ndarray): All that it holds, of shape [n x e].
            ids (np.ndarray): Their ids, ascending, of shape [n].
            among (np.ndarray, optional): The ids to search among, all by default.

        Returns:
            tuple[np.ndarray, np.ndarray]: Inner products and rows of ``embeddings``, as of
            :func:`search_exactly`. Where the lists that are read hold fewer, rows end with -1.

        Raises:
            ValueError: If it holds what is not among ``ids``.
        """
        faiss = open_faiss()
        selector = None
        if among is not None:
            bits = np.zeros(int(ids[-1]) + 1, bool)
            bits[among] = True
            selector = faiss.IDSelectorBitmap(np.packbits(bits, bitorder='little'))
        params = faiss.IVFSearchParameters(nprobe=self.nprobe, sel=selector)
        count = min(max(self.candidates, self.candidates // 20 * topk), len(ids))
        found = self.index.search(queries, count, params=params)[1]
        candidates = np.searchsorted(ids[:-1], found)
        if not ((ids[candidates] == found) | (found < 0)).all():
            raise ValueError('it holds unknown videos')
        scores = np.full((len(queries), topk), -np.inf, np.float32)
        rows = np.full((len(queries), topk), -1)
        for query, (own, is_there) in enumerate(zip(candidates, found >= 0)):
            own = np.sort(own[is_there])  # which reads a file in its order
            exact = embeddings[own] @ queries[query]
            best = np.argsort(-exact, kind='stable')[:topk]
            scores[query, : len(best)], rows[query, : len(best)] = exact[best], own[best]
        return scores, rows

    def choose(
        self, queries: dict[str, np.ndarray], exact: dict[str, np.ndarray], embeddings, ids
    ) -> dict[str, float]:
        """Choose the smallest ``nprobe`` with the wanted recall for each kind of query.

        Where reading all lists is not enough, as the codes cannot tell the best apart, it
        chooses more ``candidates``, too.

        Args:
            queries (dict[str, np.ndarray]): By kind, of shape [q x e].
            exact (dict[str, np.ndarray]): The scores that exact search finds, of shape [q x k].
            embeddings (np.ndarray): All that it holds, of shape [n x e].
            ids (np.ndarray): Their ids, of shape [n].

        Returns:
            dict[str, float]: The recall of each kind; see :func:`recall_of`.
        """
        self.nprobe, self.candidates = 0, CANDIDATES
        while True:
            self.nprobe = min(self.index.nlist, self.nprobe + 1 + self.nprobe // 4)
            recall = {
                kind: recall_of(self.search(each, TOP + 1, embeddings, ids)[0], exact[kind])
                for kind, each in queries.items()
            }
            reads_all = self.nprobe == self.index.nlist
            enough = self.candidates >= min(len(ids), MOST_CANDIDATES)
            if min(recall.values()) >= WANTED_RECALL or (reads_all and enough):
                return recall
            if reads_all:
                self.nprobe, self.candidates = 0, 2 * self.candidates


def sample(embeddings: np.ndarray, count: int) -> np.ndarray:
    """Some embeddings, the same each time."""
    count = min(count, len(embeddings))
    rows = np.random.default_rng(0).choice(len(embeddings), count, replace=False)
    rows.sort()
    return np.ascontiguousarray(embeddings[rows])


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    """The part of the exact top k that is found, the mean over queries.

    By scores, as of embeddings that are alike each is as good as another.

    Args:
        found (np.ndarray): Scores that were found, of shape [q x n].
        exact (np.ndarray): The k highest there are, best first, of shape [q x k].
    """
    good = (found >= exact[:, -1:] - 1e-6).sum(axis=1)
    return float((good / exact.shape[1]).clip(max=1).mean())
