"""Scores corrected by how all queries score an item.

Both ways look beyond the one query and its gallery: results with them are
not to be compared with plain ones.
"""

from collections.abc import Sequence
from typing import NamedTuple, Union

import torch
from torch import Tensor

from .scores import Scores, finite_rows, sweep


class DSL(NamedTuple):
    r"""Dual softmax, after CAMoE (`arXiv 2109.04290
    <https://arxiv.org/abs/2109.04290>`_).

    .. math:: s'(q, i) = s(q, i) \frac{\exp(\lambda s(q, i))}
        {\sum_{p} \exp(\lambda s(p, i))}

    The sum runs over all queries p of the test set, so this looks at the
    whole test set at once. From video to text these are the videos that have
    captions; distractors ask nothing. It is computed in float64, in which the
    softmax underflows where :math:`\lambda s` lies 700 below the largest.

    Attributes:
        scale (float): :math:`\lambda`. Defaults to 100, the logit scale of
            CLIP.
    """

    scale: float = 100.0

    name = 'dsl'
    looks_at = 'all queries of the test set at once'


class QBNorm(NamedTuple):
    r"""QB-Norm with the dynamic inverted softmax (`CVPR 2022, arXiv 2112.12777
    <https://arxiv.org/abs/2112.12777>`_).

    .. math:: s'(q, i) = \frac{\exp(\beta s(q, i))}
        {\sum_{b} \exp(\beta s(b, i))}

    where the sum runs over a bank of training queries b. A query is ranked by
    s' if its best item is in the activation set, which are the items that are
    the best of some b; any other is ranked by s. Of items that tie for the
    best place each is a best one. In place of s' stands
    :math:`s(q, i) - \log \sum_b \exp(\beta s(b, i)) / \beta`, which has its
    order and does not underflow.

    Attributes:
        text (Tensor): Embeddings of training captions, of shape [b x e]; for
            ``evaluate_similarity`` their scores, of shape [b x videos].
        video (Tensor): Embeddings of training videos, of shape [b x e]; or
            their scores, of shape [b x texts].
        beta (float): :math:`\beta`. Defaults to 20.
    """

    text: Tensor
    video: Tensor
    beta: float = 20.0

    name = 'qb_norm'
    looks_at = 'the training queries of the bank'


Rescoring = Union[DSL, QBNorm]


def rescore(
    scores: Scores,
    is_query: Tensor,
    rescorings: Sequence[Rescoring],
    galleries: tuple[Tensor | None, Tensor | None],
) -> list[tuple['Rescored', 'Rescored']]:
    """Gather what the formulas need, in one sweep for all of them.

    Args:
        scores (Scores): The scores, of shape [texts x videos].
        is_query (Tensor): Whether a video has captions, of shape [videos].
        rescorings (Sequence[DSL | QBNorm]): The formulas.
        galleries (tuple): Embeddings of videos and of texts, for banks; None
            if banks hold scores.

    Returns:
        list[tuple]: For each formula one for t2v and one for v2t, which give
        ``rescored(scores, queries, items)``.
    """
    texts, videos = scores.shape
    rescored = []
    for rescoring in rescorings:
        if isinstance(rescoring, DSL):
            rescored.append(
                (
                    DualSoftmax(videos, is_query.new_ones(texts), rescoring.scale),
                    DualSoftmax(texts, is_query, rescoring.scale),
                )
            )
        else:
            banks = (
                _bank('text', rescoring.text, galleries[0], videos, is_query.device),
                _bank('video', rescoring.video, galleries[1], texts, is_query.device),
            )
            rescored.append(
                tuple(
                    InvertedSoftmax(bank, queries, rescoring.beta)
                    for bank, queries in zip(banks, scores.shape)
                )
            )
    sweep(scores, *zip(*rescored))
    return rescored


def _bank(
    what: str, queries: Tensor, gallery: Tensor | None, items: int, device: torch.device
) -> Scores:
    width = items if gallery is None else gallery.shape[1]
    if queries.dim() != 2 or 0 in queries.shape or queries.shape[1] != width:
        raise ValueError(
            f'The {what} queries of the bank must have the shape '
            f'[queries x {width}], got {list(queries.shape)}.'
        )
    if not finite_rows(queries).all():
        raise ValueError(f'The {what} queries of the bank are not finite.')
    return Scores(queries.to(device), gallery)


class LogSumExp:
    """Over queries, the log of the sum of exp(scale * score) of each item."""

    def __init__(self, items: int, is_query: Tensor, scale: float) -> None:
        self.scale = scale
        # Added to scores: 0, or -inf for those that do not ask.
        self.mask = torch.zeros(is_query.shape, dtype=torch.float64, device=is_query.device)
        self.mask[~is_query] = -torch.inf
        self.sum = torch.full((items,), -torch.inf, dtype=torch.float64, device=is_query.device)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        scaled = torch.add(self.mask[queries, None], tile.double(), alpha=self.scale)
        self.sum[items] = self.sum[items].logaddexp(scaled.logsumexp(0))

    def at(self, items: slice | Tensor) -> Tensor:
        # Rounded, so that equal items tie whatever the order of the sum.
        return self.sum[items].float().double()


class DualSoftmax:
    """One direction of :class:`DSL`."""

    def __init__(self, items: int, is_query: Tensor, scale: float) -> None:
        self.column = LogSumExp(items, is_query, scale)
        self.scale = scale
        self.add = self.column.add

    def __call__(self, scores: Tensor, queries: Tensor, items: slice | Tensor) -> Tensor:
        scores = scores.double()
        softmax = (self.scale * scores - self.column.at(items)).exp_()
        return softmax.mul_(scores)


class InvertedSoftmax:
    """One direction of :class:`QBNorm`; ``bank``: [bank x items]."""

    def __init__(self, bank: Scores, queries: int, beta: float) -> None:
        size, items = bank.shape
        device = bank.rows.device
        self.beta = beta
        everyone = torch.ones(size, dtype=torch.bool, device=device)
        self.column = LogSumExp(items, everyone, beta)
        best = Best(size, everyone.new_ones(items))
        sweep(bank, [self.column, best])
        activated = Activated(best.score, items)
        sweep(bank, [activated])
        self.best = Best(queries, everyone.new_ones(items))
        self.best_activated = Best(queries, activated.items)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        self.best.add(queries, items, tile)
        self.best_activated.add(queries, items, tile)

    def __call__(self, scores: Tensor, queries: Tensor, items: slice | Tensor) -> Tensor:
        scores = scores.double()
        normalize = self.best.score[queries] == self.best_activated.score[queries]
        return torch.where(normalize, scores - self.column.at(items) / self.beta, scores)


class Best:
    """The best score of each query among some items."""

    def __init__(self, queries: int, among: Tensor) -> None:
        self.among = among
        self.score = torch.full((queries,), -torch.inf, dtype=torch.float64, device=among.device)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        best = tile.masked_fill(~self.among[items], -torch.inf).amax(1)
        self.score[queries] = self.score[queries].maximum(best.double())


class Activated:
    """The items that are the best of some query."""

    def __init__(self, best: Tensor, items: int) -> None:
        self.best = best
        self.items = torch.zeros(items, dtype=torch.bool, device=best.device)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        self.items[items] |= (tile == self.best[queries, None]).any(0)


Rescored = Union[DualSoftmax, InvertedSoftmax]
