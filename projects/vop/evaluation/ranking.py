"""Recall and rank of text-video retrieval, exactly, in bounded memory.

For each query we count how many gallery items score higher than its positive
and how many tie with it. Ties are resolved by expectation: R@k is the
probability of a hit, and a rank the mean rank, if ties are broken at random.
So a collapsed model, whose scores are all the same, scores chance.
"""
from typing import Callable, Dict, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

# Rows of scores at a time; bounds the memory to CHUNK x gallery.
CHUNK = 256


class Counts(NamedTuple):
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


def count(scores: Callable[[Tensor], Tensor], queries: Tensor, labels: Tensor,
          item_labels: Tensor) -> Counts:
    """Count higher and tied items; an item with the query's label is right.

    Args:
        scores (Callable): Gives for n queries, by their indices, the scores
            of all items, of shape [n x items].
        queries (Tensor): Indices of the queries, of shape [queries].
        labels (Tensor): Their labels, of shape [queries]. Each is the label
            of at least one item.
        item_labels (Tensor): Labels of the items, of shape [items].

    Returns:
        Counts: One entry a query.
    """
    chunks = []
    for rows, label in zip(queries.split(CHUNK), labels.split(CHUNK)):
        chunk = scores(rows)
        right = label[:, None] == item_labels
        best = chunk.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        chunks.append(
            torch.stack([((chunk > best) & ~right).sum(1),
                         ((chunk == best) & ~right).sum(1),
                         ((chunk == best) & right).sum(1)]))
    return Counts(*torch.cat(chunks, dim=1).cpu())


def summarize(counts: Counts, topk: Sequence[int]) -> Dict[str, float]:
    """Turn counts into R@k in percent, MdR and MnR.

    Among t wrong and m right items that tie, broken at random, the first
    right one has j or more wrong ones before it with probability
    C(t + m - j, m) / C(t + m, m), and t / (m + 1) on average.

    Args:
        counts (Counts): Of all queries.
        topk (Sequence[int]): The k of R@k.

    Returns:
        dict[str, float]: ``R@k`` for each k, ``MdR`` and ``MnR``.
    """
    higher, tied, right = (c.double() for c in counts)
    result = {}
    for k in topk:
        within = (k - higher).clamp(min=0)  # tied places that are in the top k
        miss = torch.ones_like(higher)
        for i in range(int(right.max())):
            factor = ((tied + right - within - i) /
                      (tied + right - i)).clamp(min=0)
            miss *= torch.where(i < right, factor, 1.)
        result[f'R@{k}'] = 100 * (1 - miss).mean().item()
    rank = higher + 1 + tied / (right + 1)
    result['MdR'] = float(np.median(rank.numpy()))
    result['MnR'] = rank.mean().item()
    return result


def evaluate_similarity(
    similarity: Tensor,
    video_of_text: Optional[Sequence[int]] = None,
    topk: Sequence[int] = (1, 5, 10)
) -> Dict[str, float]:
    """Score a matrix of similarities in both directions.

    Text to video, each caption looks for its video. Video to text, each
    video looks for its captions, of which the best counts. A video without a
    caption is a distractor: it stands in the gallery and asks nothing.

    Args:
        similarity (Tensor): Of shape [texts x videos], higher is more
            similar; a NumPy array will do.
        video_of_text (Sequence[int], optional): Index of each caption's
            video. Defaults to one caption a video, in the same order.
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).

    Returns:
        dict[str, float]: ``t2v/R@1``, ``t2v/R@5``, ``t2v/R@10`` (percent),
        ``t2v/MdR``, ``t2v/MnR`` (ranks from 1), and the same under ``v2t/``.

    Raises:
        ValueError: If shapes or indices do not fit, or a score is NaN.
    """
    similarity = torch.as_tensor(similarity)
    if not similarity.is_floating_point():
        similarity = similarity.double()
    if similarity.dim() != 2 or 0 in similarity.shape:
        raise ValueError('similarity must be a matrix [texts x videos], got '
                         f'{list(similarity.shape)}.')
    texts, videos = similarity.shape
    if video_of_text is None:
        if texts != videos:
            raise ValueError(
                f'{texts} texts and {videos} videos: say which video each '
                'text belongs to (video_of_text).')
        video_of_text = range(videos)
    video_of_text = torch.as_tensor(
        video_of_text if isinstance(video_of_text, (Tensor, np.ndarray)) else
        list(video_of_text))
    if video_of_text.shape != (texts, ):
        raise ValueError(f'video_of_text has shape '
                         f'{list(video_of_text.shape)}, but there are {texts} '
                         'texts.')
    if video_of_text.is_floating_point():
        raise ValueError('video_of_text must hold whole numbers, got '
                         f'{video_of_text.dtype}.')
    if not (0 <= video_of_text.min() and video_of_text.max() < videos):
        raise ValueError(f'video_of_text names videos {video_of_text.min()} '
                         f'to {video_of_text.max()}, but there are only '
                         f'0 to {videos - 1}.')
    nan = sum(rows.isnan().any(0) for rows in similarity.split(CHUNK))
    if nan.any():
        raise ValueError(
            f'The scores of video {int(nan.nonzero()[0])} are NaN.')
    return rank_both_ways(lambda rows: similarity[rows],
                          lambda rows: similarity.T[rows],
                          video_of_text.to(similarity.device), videos, topk)


def evaluate_embeddings(
    text: Tensor,
    video: Tensor,
    video_of_text: Tensor,
    topk: Sequence[int] = (1, 5, 10)
) -> Dict[str, float]:
    """Score embeddings by their dot products, never holding all of these.

    Products are summed in float64 and rounded to float32, so that equal pairs
    tie whatever order a matrix product sums them in.

    Args:
        text (Tensor): Of shape [texts x e].
        video (Tensor): Of shape [videos x e].
        video_of_text (Tensor): Of shape [texts].
        topk (Sequence[int]): The k of R@k.

    Returns:
        dict[str, float]: As :func:`evaluate_similarity`.
    """
    text, video = text.double(), video.double()
    return rank_both_ways(lambda rows: (text[rows] @ video.T).float(),
                          lambda rows: (video[rows] @ text.T).float(),
                          video_of_text, len(video), topk)


def rank_both_ways(rows_of_texts: Callable, rows_of_videos: Callable,
                   video_of_text: Tensor, videos: int,
                   topk: Sequence[int]) -> Dict[str, float]:
    """Rank text to video and video to text; see ``evaluate_similarity``."""
    device = video_of_text.device
    asking = video_of_text.unique()
    directions = dict(
        t2v=count(rows_of_texts, torch.arange(len(video_of_text),
                                              device=device), video_of_text,
                  torch.arange(videos, device=device)),
        v2t=count(rows_of_videos, asking, asking, video_of_text))
    return {
        f'{direction}/{name}': value
        for direction, counts in directions.items()
        for name, value in summarize(counts, topk).items()
    }
