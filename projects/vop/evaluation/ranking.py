"""Recall and rank of text-video retrieval, exactly, in bounded memory.

For each query we count the wrong items that score higher than its best right item, and those that
tie with it. Ties are resolved by expectation: R@k is the probability of a hit, and a rank the mean
rank, if ties are broken at random. So a collapsed model, whose scores are all the same, scores
chance.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .rescoring import Rescorer, Rescoring
from .scores import Scores, finite_rows, sweep


class RankCounts(NamedTuple):
    """What decides the rank of each query; all are of shape [queries].

    Attributes:
        higher (Tensor): Wrong items that score higher than the best right one.
        tied (Tensor): Wrong items that have the same score as it.
        right (Tensor): Right items that have this best score, at least 1.

    Example:
        >>> counts = RankCounts(torch.tensor([2]), torch.tensor([1]), torch.tensor([1]))
        >>> counts.rank(), counts.hit(3)
        (tensor([3.5000], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """

    higher: Tensor
    tied: Tensor
    right: Tensor

    def hit(self, k: int) -> Tensor:
        """Probability that the first right item is among the top k.

        If t wrong and m right items tie and are ordered at random, j or more wrong ones precede the
        first right one with probability C(t + m - j, m) / C(t + m, m), and t / (m + 1) do on
        average.
        """
        higher, tied, right = (c.double() for c in self)
        within = (k - higher).clamp(min=0)  # tied places in the top k
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
    """Counts the higher and tied items of each query in one direction.

    Args:
        scores (Tensor): Scores of the right pairs, of shape [texts].
        queries (Tensor): Their queries, of shape [texts].
        items (Tensor): Their items, of shape [texts].
        num_queries (int): Number of queries. One without a right pair is left out of the result.
        rescorer (Rescorer, optional): Corrects the scores before they count.

    Example:
        >>> scores = Scores(torch.eye(2), video_of_text=torch.tensor([0, 1]))
        >>> t2v, v2t = rank_counters(scores)
        >>> sweep(scores, [t2v], [v2t])
        >>> t2v.result().rank()
        tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        scores: Tensor,
        queries: Tensor,
        items: Tensor,
        num_queries: int,
        rescorer: Rescorer | None = None,
    ) -> None:
        if rescorer is not None:
            scores = rescorer(scores, queries, items)
        self.rescorer = rescorer
        best = scores.new_full((num_queries,), -torch.inf)
        self.best = best.scatter_reduce(0, queries, scores, 'amax')
        self.right = torch.zeros(num_queries, dtype=torch.int64, device=scores.device)
        self.right.scatter_add_(0, queries, (scores == self.best[queries]).long())
        self.higher = torch.zeros_like(self.right)
        self.tied = -self.right  # they will be counted as ties, too

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        """Count in a tile of scores, of shape [queries x items]."""
        if self.rescorer is not None:
            index = torch.arange(queries.start, queries.stop, device=tile.device)
            tile = self.rescorer(tile, index[:, None], items)
        best = self.best[queries, None]
        self.higher[queries] += _count_where(torch.gt, tile, best)
        self.tied[queries] += _count_where(torch.eq, tile, best)

    def result(self) -> RankCounts:
        """The counts of the queries that have a right pair."""
        is_query = self.right > 0
        counts = self.higher, self.tied, self.right
        return RankCounts(*(count[is_query].cpu() for count in counts))


def rank_counters(
    scores: Scores, rescorers: tuple[Rescorer | None, Rescorer | None] = (None, None)
) -> tuple[RankCounter, RankCounter]:
    """Make the counters of text to video and video to text, for :func:`.sweep`.

    Args:
        scores (Scores): Of shape [texts x videos], with ``video_of_text``.
        rescorers (tuple): What corrects them, in each direction. Defaults to plain scores.
    """
    texts, videos = scores.shape
    video_of_text = scores.video_of_text
    assert video_of_text is not None
    index = torch.arange(texts, device=video_of_text.device)
    return (
        RankCounter(scores.right, index, video_of_text, texts, rescorers[0]),
        RankCounter(scores.right, video_of_text, index, videos, rescorers[1]),
    )


def _count_where(compare: Callable, tile: Tensor, best: Tensor) -> Tensor:
    # As numbers: Booleans take torch four times as long on a CPU.
    return compare(tile, best, out=torch.empty_like(tile)).sum(1).long()


def _summarize(counts: RankCounts, topk: Sequence[int]) -> dict[str, float]:
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
    """Score a similarity matrix in both directions.

    Text to video, each caption is a query for its video. Video to text, each video is a query for
    its captions, of which the best counts. A video without a caption is a distractor: it is in the
    gallery, but is no query.

    Args:
        similarity (Tensor): Of shape [texts x videos], or a NumPy array; more is more similar.
        video_of_text (Sequence[int], optional): Index of each caption's video. Defaults to one
            caption per video, in the same order.
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).
        rescoring (Sequence[Rescoring]): Methods that correct the scores, whose metrics are added to
            the plain ones. Defaults to none.

    Returns:
        dict[str, float]: ``t2v/R@1``, ``t2v/R@5``, ``t2v/R@10`` (percent), ``t2v/MdR``, ``t2v/MnR``
        (ranks from 1), and the same under ``v2t/``; then these ten again for each method, such as
        ``dsl/t2v/R@1``.

    Raises:
        ValueError: If shapes or indices do not fit, or if a score is NaN, or, with ``rescoring``,
            infinite.

    Example:
        >>> evaluate_similarity(torch.tensor([[0.9, 0.2], [0.8, 0.3]]))['t2v/R@1']
        50.0
    """
    similarity = torch.as_tensor(similarity)
    if not similarity.is_floating_point():
        similarity = similarity.double()
    if similarity.dim() != 2 or 0 in similarity.shape:
        shape = list(similarity.shape)
        raise ValueError(f'similarity must be a matrix [texts x videos], got {shape}.')
    low, high = similarity.amin(0), similarity.amax(0)  # both are NaN if a score is
    faults = {'NaN': low.isnan()}
    if rescoring:
        faults['infinite, which has no softmax'] = low.isinf() | high.isinf()
    for what, fault in faults.items():
        if fault.any():
            raise ValueError(f'The scores of video {int(fault.nonzero()[0])} are {what}.')
    texts, videos = similarity.shape
    if video_of_text is None:
        if texts != videos:
            raise ValueError(
                f'{texts} texts and {videos} videos: say which video each text belongs to '
                '(video_of_text).'
            )
        video_of_text = range(videos)
    index = _check_video_of_text(video_of_text, texts, videos, similarity.device)
    return _evaluate(Scores(similarity, video_of_text=index), topk, rescoring)


def evaluate_embeddings(
    text: Tensor,
    video: Tensor,
    video_of_text: Sequence[int] | Tensor,
    topk: Sequence[int] = (1, 5, 10),
    rescoring: Sequence[Rescoring] = (),
) -> dict[str, float]:
    """Score embeddings by their dot products, never holding all of these.

    It works on the device of the embeddings; see :class:`.Scores`.

    Args:
        text (Tensor): Of shape [texts x e].
        video (Tensor): Of shape [videos x e].
        video_of_text (Sequence[int] | Tensor): Index of each caption's video.
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).
        rescoring (Sequence[Rescoring]): As in :func:`evaluate_similarity`.

    Returns:
        dict[str, float]: As :func:`evaluate_similarity`.

    Raises:
        ValueError: If shapes or indices do not fit, or if an embedding is not finite.

    Example:
        >>> evaluate_embeddings(torch.eye(3), torch.eye(3), [0, 1, 2])['v2t/MnR']
        1.0
    """
    for what, embeddings in dict(text=text, video=video).items():
        if embeddings.dim() != 2 or 0 in embeddings.shape:
            shape = list(embeddings.shape)
            raise ValueError(f'{what} must be embeddings [{what}s x e], got {shape}.')
        if not (finite := finite_rows(embeddings)).all():
            first = int((~finite).nonzero()[0])
            raise ValueError(f'The embedding of {what} {first} is not finite: its scores are NaN.')
    if text.shape[1] != video.shape[1]:
        widths = text.shape[1], video.shape[1]
        raise ValueError('Embeddings of texts have {} numbers, those of videos {}.'.format(*widths))
    index = _check_video_of_text(video_of_text, len(text), len(video), text.device)
    return _evaluate(Scores(text, video, index), topk, rescoring)


def _check_video_of_text(
    video_of_text: Sequence[int] | Tensor, texts: int, videos: int, device: torch.device
) -> Tensor:
    # torch takes no range.
    as_list = isinstance(video_of_text, range)
    index = torch.as_tensor(list(video_of_text) if as_list else video_of_text)
    wanted = f'video_of_text must be {texts} integers from 0 to {videos - 1}, one per text'
    if index.shape != (texts,) or index.is_floating_point():
        raise ValueError(f'{wanted}, got {index.dtype} of shape {list(index.shape)}.')
    first, last = int(index.min()), int(index.max())
    if first < 0 or last >= videos:
        raise ValueError(f'{wanted}, got {first} to {last}.')
    return index.long().to(device)


def _evaluate(
    scores: Scores, topk: Sequence[int], rescoring: Sequence[Rescoring]
) -> dict[str, float]:
    bound = [method.bind(scores) for method in rescoring]
    sweep(scores, *zip(*bound))  # one for all methods
    prefixes = ['', *(f'{method.name}/' for method in rescoring)]
    t2v, v2t = zip(*(rank_counters(scores, pair) for pair in [(None, None), *bound]))
    sweep(scores, t2v, v2t)
    return {
        f'{prefix}{direction}/{name}': value
        for prefix, *both in zip(prefixes, t2v, v2t)
        for direction, counter in zip(('t2v', 'v2t'), both)
        for name, value in _summarize(counter.result(), topk).items()
    }
