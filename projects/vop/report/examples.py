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
    """An item that a query finds.

    Attributes:
        item (int): Its index in the gallery.
        score (float): Its score.
        right (bool): Whether it belongs to the query.
        tied (bool): Whether a neighbour in the order has the same score.
    """

    item: int
    score: float
    right: bool
    tied: bool


class Example(NamedTuple):
    """A query with what it finds.

    Attributes:
        query (int): Its index among the texts, or among the videos.
        rank (float): Mean rank of its best right item; see
            :meth:`.RankCounts.rank`.
        tied (int): Wrong items that score as this right one.
        top (list[RankedItem]): The best items. Of tied ones, the first in the
            gallery comes first.
        below (RankedItem, optional): The best right item, if none is in ``top``.
    """

    query: int
    rank: float
    tied: int
    top: list[RankedItem]
    below: RankedItem | None


class Direction(NamedTuple):
    """One direction of a retrieval.

    Attributes:
        counts (RankCounts): How all queries stand.
        items (int): Size of the gallery.
        examples (dict[str, list[Example]]): Of ``worst``, ``best`` and
            ``random`` queries.
    """

    counts: RankCounts
    items: int
    examples: dict[str, list[Example]]

    def histogram(self) -> list[tuple[int, int, float]]:
        """How many queries have their best right item at which ranks.

        A query with ties is shared out by the probability of each rank if
        these are broken at random. So the first bin holds what R@1 counts,
        the first two what R@5 counts, the first three what R@10 counts.

        Returns:
            list[tuple]: First rank, last rank and number of queries of each
            bin that begins within the gallery.
        """
        last = [*(k for k in BINS if k < self.items), self.items]
        within = [0.0, *(self.counts.hit(k).sum().item() for k in last)]
        return [
            (first + 1, end, after - before)
            for first, end, before, after in zip([0, *last], last, within, within[1:])
        ]


def retrieve(
    tested: Embeddings, num_examples: int, topk: int = 5, device: str = 'cpu'
) -> tuple[Direction, Direction]:
    """Rank all queries, and see what some of them find.

    The scores are those of :func:`.evaluate_embeddings`, to the last bit.
    Memory is that of a few tiles, see :class:`.Scores`, and of the top items
    of the chosen queries.

    Args:
        tested (Embeddings): Videos and captions.
        num_examples (int): How many queries to show of the worst, of the
            best, and of all at random (the same ones each time).
        topk (int): How many items of each to show. Defaults to 5.
        device (str): Where to rank. Defaults to ``'cpu'``.

    Returns:
        tuple[Direction, Direction]: Text to video and video to text.
    """
    scores = Scores(
        tested.text.to(device), tested.video.to(device), tested.video_of_text.to(device)
    )
    counts = rank_counters(scores)
    sweep(scores, counts[:1], counts[1:])
    chosen = [_choose(count, num_examples) for count in counts]
    # One place more, to see whether the last one is tied.
    tops = [
        Top(sorted({q for group in groups.values() for q in group}), topk + 1, device)
        for groups in chosen
    ]
    sweep(scores, tops[:1], tops[1:])

    texts, videos = torch.arange(len(tested.text)), scores.video_of_text.cpu()
    directions = []
    for count, groups, top, queries, items, size in zip(
        counts, chosen, tops, (texts, videos), (videos, texts), scores.shape[::-1]
    ):
        examples = _examples(count, top, topk, scores.right.cpu(), queries, items)
        directions.append(
            Direction(
                count.result(),
                size,
                {name: [examples[query] for query in group] for name, group in groups.items()},
            )
        )
    return tuple(directions)


class Top:
    """The best items of some queries, in order.

    Args:
        queries (list[int]): The queries.
        places (int): How many items of each.
        device (str): Where the scores are.
    """

    def __init__(self, queries: list[int], places: int, device: str) -> None:
        self.queries = torch.tensor(queries, dtype=torch.int64, device=device)
        self.places = places
        shape = len(queries), places
        self.score = torch.full(shape, -torch.inf, device=device)
        self.item = torch.full(shape, -1, device=device)  # none yet

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        """Look through a tile of scores, of shape [queries x items]."""
        ours = ((self.queries >= queries.start) & (self.queries < queries.stop)).nonzero()[:, 0]
        rows = tile[self.queries[ours] - queries.start]
        item = torch.arange(items.start, items.stop, device=tile.device)
        # Stable: of tied items, the first in the gallery stays first.
        score, order = torch.cat([self.score[ours], rows], 1).sort(
            dim=1, descending=True, stable=True
        )
        item = torch.cat([self.item[ours], item.expand_as(rows)], 1)
        self.score[ours] = score[:, : self.places]
        self.item[ours] = item.gather(1, order[:, : self.places])


def _choose(count: RankCounter, num: int) -> dict[str, list[int]]:
    """The worst and the best queries by rank, then score; and random ones."""
    is_query = (count.right > 0).nonzero()[:, 0]
    order = np.lexsort((-count.best[is_query].cpu().numpy(), count.result().rank().numpy()))
    queries = is_query.cpu().numpy()
    some = np.random.default_rng(0).permutation(len(queries))[:num]
    return dict(
        worst=queries[order[::-1][:num]].tolist(),
        best=queries[order[:num]].tolist(),
        random=queries[np.sort(some)].tolist(),
    )


def _examples(
    count: RankCounter, top: Top, topk: int, scores: Tensor, queries: Tensor, items: Tensor
) -> dict[int, Example]:
    """Put together what ``top`` found; ``scores`` of right pairs, their
    ``queries`` and ``items`` have the shape [texts]."""
    chosen = top.queries.cpu()
    counts = RankCounts(*(c.cpu()[chosen] for c in (count.higher, count.tied, count.right)))
    examples = {}
    for query, rank, tied, score, item in zip(
        chosen.tolist(),
        counts.rank().tolist(),
        counts.tied.tolist(),
        top.score.cpu(),
        top.item.tolist(),
    ):
        pairs = queries == query
        right = items[pairs].tolist()
        same = (score[1:] == score[:-1]).tolist()
        hits = [
            RankedItem(i, s, i in right, before or after)
            for i, s, before, after in zip(item[:topk], score.tolist(), [False, *same], same)
            if i >= 0
        ]
        below = None
        if not any(hit.right for hit in hits):
            best = int(scores[pairs].argmax())
            below = RankedItem(right[best], float(scores[pairs][best]), True, tied > 0)
        examples[query] = Example(query, rank, tied, hits, below)
    return examples
