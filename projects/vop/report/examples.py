"""What single queries find: their ranks, and the items in the top places."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..evaluation.embeddings import Embeddings
from ..evaluation.ranking import RankCounter, RankCounts, rank_counters
from ..evaluation.scores import Scores, sweep

BINS = (1, 5, 10, 50, 100)  # the last rank of each bin but the last


class RankedItem(NamedTuple):
    """An item that a query finds."""

    item: int  # its index in the gallery
    score: float
    right: bool  # whether it belongs to the query
    tied: bool  # whether another item has the same score


class Example(NamedTuple):
    """A query with what it finds."""

    query: int  # its index among the texts, or among the videos
    rank: float  # mean rank of its best right item; see RankCounts.rank
    tied: int  # wrong items with the score of this right one
    top: list[RankedItem]  # the best items; of tied ones, the first in the gallery is first
    below: RankedItem | None  # the best right item, if none is in `top`; tied with wrong ones


class Direction(NamedTuple):
    """One direction of retrieval."""

    counts: RankCounts  # of all queries
    items: int  # size of the gallery
    examples: dict[str, list[Example]]  # the worst, the best and random queries

    def histogram(self) -> list[tuple[int, int, float]]:
        """First rank, last rank and number of queries of each bin within the gallery.

        A query with ties is shared out by the probability of each rank if
        these are broken at random. So the first bin holds what R@1 counts,
        the first two what R@5 counts, the first three what R@10 counts.
        """
        last = [*(k for k in BINS if k < self.items), self.items]
        within = [0.0, *(self.counts.hit(k).sum().item() for k in last)]
        return list(zip([1, *(k + 1 for k in last)], last, np.diff(within).tolist()))


def find_examples(
    tested: Embeddings, num_queries: int, topk: int = 5, device: str = 'cpu'
) -> dict[str, Direction]:
    """Rank all queries of a test, and see what some of them find.

    The scores are those of :func:`.evaluate_embeddings`. Memory is that of a
    few tiles (:class:`.Scores`), and of all scores of one query.

    Args:
        tested (Embeddings): Videos and captions.
        num_queries (int): How many queries to choose of the worst, of the
            best, and of all at random (the same ones each time).
        topk (int): How many items of each to show. Defaults to 5.
        device (str): Where to rank. Defaults to ``'cpu'``.

    Returns:
        dict[str, Direction]: ``t2v`` and ``v2t``.
    """
    video, text, videos = (tensor.to(device) for tensor in tested[1:4])
    scores = Scores(text, video, videos)
    t2v, v2t = rank_counters(scores)
    sweep(scores, [t2v], [v2t])
    texts, right = torch.arange(len(text), device=device), scores.right
    return dict(
        t2v=_direction(t2v, text, video, (texts, videos, right), num_queries, topk),
        v2t=_direction(v2t, video, text, (videos, texts, right), num_queries, topk),
    )


def _direction(
    counter: RankCounter, queries: Tensor, gallery: Tensor, pairs: tuple, num: int, topk: int
) -> Direction:
    """Choose examples; ``pairs``: queries, items and scores of the right pairs."""
    counts = counter.result()
    ranks, index = counts.rank(), pairs[0].unique()

    def example(place: int) -> Example:
        query, tied = index[place], int(counts.tied[place])
        _, right, right_scores = (field[pairs[0] == query] for field in pairs)
        tiles = Scores(queries[query][None], gallery).tiles()
        row = torch.cat([tile[0] for *_, tile in tiles])
        row[right] = right_scores  # the very values that were ranked

        def ranked(item: int) -> RankedItem:
            same = int((row == row[item]).sum())
            return RankedItem(item, row[item].item(), item in right, same > 1)

        top = [ranked(i) for i in row.argsort(descending=True, stable=True)[:topk].tolist()]
        below = ranked(int(right[right_scores.argmax()]))._replace(tied=tied > 0)
        is_found = any(hit.right for hit in top)
        return Example(int(query), ranks[place].item(), tied, top, None if is_found else below)

    # By rank, then by score.
    order = np.lexsort((-counter.best[index].cpu().numpy(), ranks.numpy()))
    some = np.random.default_rng(0).permutation(len(index))[:num]
    groups = dict(worst=order[::-1][:num], best=order[:num], random=np.sort(some))
    examples = {name: [example(place) for place in group] for name, group in groups.items()}
    return Direction(counts, len(gallery), examples)
