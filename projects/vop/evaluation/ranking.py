"""Recall and rank of text-video retrieval, exactly, in bounded memory.

For each query we count how many gallery items score higher than its positive
and how many tie with it. Ties are resolved by expectation: R@k is the
probability of a hit, and a rank the mean rank, if ties are broken at random.
So a collapsed model, whose scores are all the same, scores chance.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .rescoring import Rescored, Rescoring, rescore
from .scores import Scores, finite_rows, sweep


class RankCounts(NamedTuple):
    """How queries stand against their galleries, each of shape [queries].

    Attributes:
        higher (Tensor): Wrong items that score higher than the best right
            one.
        tied (Tensor): Wrong items that score the same.
        right (Tensor): Right items that have this best score, at least 1.
    """

    higher: Tensor
    tied: Tensor
    right: Tensor

    def hit(self, k: int) -> Tensor:
        """Probability that the first right item is among the top k.

        Among t wrong and m right items that tie, broken at random, the first
        right one has j or more wrong ones before it with probability
        C(t + m - j, m) / C(t + m, m), and t / (m + 1) on average.

        Args:
            k (int): Number of places.

        Returns:
            Tensor: Of shape [queries].
        """
        higher, tied, right = (c.double() for c in self)
        within = (k - higher).clamp(min=0)  # tied places that are in the top k
        miss = torch.ones_like(higher)
        for i in range(int(right.max())):
            factor = ((tied + right - within - i) / (tied + right - i)).clamp(min=0)
            miss *= torch.where(i < right, factor, 1.0)
        return 1 - miss

    def rank(self) -> Tensor:
        """Mean rank of the first right item, from 1, of shape [queries]."""
        higher, tied, right = (c.double() for c in self)
        return higher + 1 + tied / (right + 1)


class RankCounter:
    """RankCounts higher and tied items in one direction.

    Args:
        scores (Tensor): Scores of the right pairs, of shape [texts].
        queries (Tensor): Their queries, of shape [texts].
        items (Tensor): Their items, of shape [texts].
        num_queries (int): Number of queries; one without a right pair is not
            counted.
        rescored (Callable, optional): Makes other scores of the scores, given
            indices of queries and items that broadcast to them.
    """

    def __init__(
        self,
        scores: Tensor,
        queries: Tensor,
        items: Tensor,
        num_queries: int,
        rescored: Rescored | None = None,
    ) -> None:
        if rescored is not None:
            scores = rescored(scores, queries, items)
        self.rescored = rescored
        self.best = scores.new_full((num_queries,), -torch.inf).scatter_reduce(
            0, queries, scores, 'amax'
        )
        self.right = torch.zeros(num_queries, dtype=torch.int64, device=scores.device)
        self.right.scatter_add_(0, queries, (scores == self.best[queries]).long())
        self.higher = torch.zeros_like(self.right)
        self.tied = -self.right  # they will be counted as ties, too

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        """RankCounter in a tile of scores, of shape [queries x items]."""
        if self.rescored is not None:
            index = torch.arange(queries.start, queries.stop, device=tile.device)
            tile = self.rescored(tile, index[:, None], items)
        best = self.best[queries, None]
        self.higher[queries] += _count_where(torch.gt, tile, best)
        self.tied[queries] += _count_where(torch.eq, tile, best)

    def result(self) -> RankCounts:
        """The counts of the queries that have a right pair."""
        is_query = self.right > 0
        return RankCounts(
            *(count[is_query].cpu() for count in (self.higher, self.tied, self.right))
        )


def rank_counters(
    scores: Scores, rescored: tuple[Rescored | None, Rescored | None] = (None, None)
) -> tuple[RankCounter, RankCounter]:
    """Those who count text to video and video to text.

    Args:
        scores (Scores): The scores, of shape [texts x videos], with
            ``video_of_text``.
        rescored (tuple): What makes other scores of them, in either
            direction.

    Returns:
        tuple[RankCounter, RankCounter]: For ``text_queries`` and ``video_queries`` of
        :func:`.sweep`.
    """
    texts, videos = scores.shape
    index = torch.arange(texts, device=scores.video_of_text.device)
    return (
        RankCounter(scores.right, index, scores.video_of_text, texts, rescored[0]),
        RankCounter(scores.right, scores.video_of_text, index, videos, rescored[1]),
    )


def _count_where(compare: Callable, tile: Tensor, best: Tensor) -> Tensor:
    # As numbers: Booleans take torch four times as long on a CPU.
    return compare(tile, best, out=torch.empty_like(tile)).sum(1).long()


def summarize(counts: RankCounts, topk: Sequence[int]) -> dict[str, float]:
    """Turn counts into R@k in percent, MdR and MnR.

    Args:
        counts (RankCounts): Of all queries.
        topk (Sequence[int]): The k of R@k.

    Returns:
        dict[str, float]: ``R@k`` for each k, ``MdR`` and ``MnR``.
    """
    result = {f'R@{k}': 100 * counts.hit(k).mean().item() for k in topk}
    rank = counts.rank()
    result['MdR'] = float(np.median(rank.numpy()))
    result['MnR'] = rank.mean().item()
    return result


def evaluate_similarity(
    similarity: Tensor,
    video_of_text: Sequence[int] | None = None,
    topk: Sequence[int] = (1, 5, 10),
    rescoring: Sequence[Rescoring] = (),
) -> dict[str, float]:
    """Score a matrix of similarities in both directions.

    Text to video, each caption looks for its video. Video to text, each
    video looks for its captions, of which the best counts. A video without a
    caption is a distractor: it stands in the gallery and is no query.

    Args:
        similarity (Tensor): Of shape [texts x videos], higher is more
            similar; a NumPy array will do.
        video_of_text (Sequence[int], optional): Index of each caption's
            video. Defaults to one caption a video, in the same order.
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).
        rescoring (Sequence[DSL | QBNorm]): Corrections of the scores, whose
            results are given beside the plain ones. Defaults to none.

    Returns:
        dict[str, float]: ``t2v/R@1``, ``t2v/R@5``, ``t2v/R@10`` (percent),
        ``t2v/MdR``, ``t2v/MnR`` (ranks from 1), and the same under ``v2t/``;
        for each of ``rescoring`` these again under ``dsl/`` or ``qb_norm/``.

    Raises:
        ValueError: If shapes or indices do not fit, or a score is NaN, or,
            with ``rescoring``, infinite.
    """
    similarity = torch.as_tensor(similarity)
    if not similarity.is_floating_point():
        similarity = similarity.double()
    if similarity.dim() != 2 or 0 in similarity.shape:
        raise ValueError(
            f'similarity must be a matrix [texts x videos], got {list(similarity.shape)}.'
        )
    texts, videos = similarity.shape
    if video_of_text is None:
        if texts != videos:
            raise ValueError(
                f'{texts} texts and {videos} videos: say which video each '
                'text belongs to (video_of_text).'
            )
        video_of_text = range(videos)
    video_of_text = _check_video_of_text(video_of_text, texts, videos, similarity.device)
    bad = torch.zeros(2, videos, dtype=torch.bool, device=similarity.device)
    for _, columns, tile in Scores(similarity).tiles():
        bad[0, columns] |= tile.isnan().any(0)
        if rescoring:
            bad[1, columns] |= tile.isinf().any(0)
    for faults, what in zip(bad, ('NaN', 'infinite, which has no softmax')):
        if faults.any():
            raise ValueError(f'The scores of video {int(faults.nonzero()[0])} are {what}.')
    return _evaluate(Scores(similarity, video_of_text=video_of_text), topk, rescoring, (None, None))


def evaluate_embeddings(
    text: Tensor,
    video: Tensor,
    video_of_text: Sequence[int],
    topk: Sequence[int] = (1, 5, 10),
    rescoring: Sequence[Rescoring] = (),
) -> dict[str, float]:
    """Score embeddings by their dot products, never holding all of these.

    It works on the device of the embeddings; see :class:`.Scores`.

    Args:
        text (Tensor): Of shape [texts x e].
        video (Tensor): Of shape [videos x e].
        video_of_text (Sequence[int]): Index of each caption's video.
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).
        rescoring (Sequence[DSL | QBNorm]): As in
            :func:`evaluate_similarity`.

    Returns:
        dict[str, float]: As :func:`evaluate_similarity`.

    Raises:
        ValueError: If shapes or indices do not fit, or an embedding is not
            finite.
    """
    for what, embeddings in dict(text=text, video=video).items():
        if embeddings.dim() != 2 or 0 in embeddings.shape:
            raise ValueError(
                f'{what} must be embeddings [{what}s x e], got {list(embeddings.shape)}.'
            )
        bad = ~finite_rows(embeddings)
        if bad.any():
            raise ValueError(
                f'The embedding of {what} {int(bad.nonzero()[0])} is not '
                'finite, so its scores are NaN.'
            )
    if text.shape[1] != video.shape[1]:
        raise ValueError(
            f'The embeddings of texts have {text.shape[1]} '
            f'numbers, those of videos {video.shape[1]}.'
        )
    video_of_text = _check_video_of_text(video_of_text, len(text), len(video), text.device)
    return _evaluate(Scores(text, video, video_of_text), topk, rescoring, (video, text))


def _check_video_of_text(
    video_of_text: Sequence[int], texts: int, videos: int, device: torch.device
) -> Tensor:
    video_of_text = torch.as_tensor(
        video_of_text if isinstance(video_of_text, (Tensor, np.ndarray)) else list(video_of_text)
    )
    if video_of_text.shape != (texts,):
        raise ValueError(
            f'video_of_text has shape {list(video_of_text.shape)}, but there are {texts} texts.'
        )
    if video_of_text.is_floating_point():
        raise ValueError(f'video_of_text must hold whole numbers, got {video_of_text.dtype}.')
    if not (0 <= video_of_text.min() and video_of_text.max() < videos):
        raise ValueError(
            f'video_of_text names videos {video_of_text.min()} to '
            f'{video_of_text.max()}, but there are only 0 to '
            f'{videos - 1}.'
        )
    return video_of_text.long().to(device)


def _evaluate(
    scores: Scores,
    topk: Sequence[int],
    rescoring: Sequence[Rescoring],
    galleries: tuple[Tensor | None, Tensor | None],
) -> dict[str, float]:
    """Rank text to video and video to text; see ``evaluate_similarity``."""
    video_of_text = scores.video_of_text
    is_query = torch.zeros(scores.shape[1], dtype=torch.bool, device=video_of_text.device)
    is_query[video_of_text] = True
    forms = [('', (None, None))]
    for way, pair in zip(rescoring, rescore(scores, is_query, rescoring, galleries)):
        forms.append((f'{way.name}/', pair))
    t2v, v2t = zip(*(rank_counters(scores, pair) for _, pair in forms))
    sweep(scores, t2v, v2t)
    return {
        f'{prefix}{direction}/{name}': value
        for (prefix, _), *both in zip(forms, t2v, v2t)
        for direction, count in zip(('t2v', 'v2t'), both)
        for name, value in summarize(count.result(), topk).items()
    }
