"""Methods that correct scores by how all queries score an item.

They use more than the one query and its gallery, so results with them are not to be compared with
plain ones.
"""

from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from ..errors import UserError, warn
from ..registry import RESCORINGS
from .embeddings import Embeddings
from .scores import Scores, finite_rows, sweep


class Rescorer(Protocol):
    """One direction of a method: it gathers from all tiles of scores, then corrects scores.

    Example:
        >>> scores = Scores(torch.eye(2), video_of_text=torch.tensor([0, 1]))
        >>> t2v, v2t = DSL().bind(scores)
        >>> sweep(scores, [t2v], [v2t])
        >>> t2v(scores.right, torch.tensor([0, 1]), scores.video_of_text)
        tensor([1., 1.], dtype=torch.float64)
    """

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        """Gather what is needed from a tile, of shape [queries x items]."""

    def __call__(self, scores: Tensor, queries: Tensor, items: slice | Tensor) -> Tensor:
        """Correct scores, given indices of queries and items that broadcast to them."""


class Rescoring:
    """A method of rescoring.

    A subclass that is registered in ``RESCORINGS`` can be listed in ``rescoring`` of
    :class:`.RetrievalMetric`. It has :meth:`bind` and two attributes, and overrides the checks that
    concern it.

    Attributes:
        name (str): Its metrics are called ``NAME/t2v/R@1`` to ``NAME/v2t/MnR``.
        looks_at (str): What it uses besides the query and its gallery.

    Example:
        >>> class Doubled:
        ...     def add(self, queries, items, tile): ...  # gathers nothing
        ...
        ...     def __call__(self, scores, queries, items):
        ...         return 2 * scores
        >>> @RESCORINGS.register_module()
        ... class Doubling(Rescoring):
        ...     name, looks_at = 'doubling', 'nothing'
        ...
        ...     def bind(self, scores):
        ...         return Doubled(), Doubled()
    """

    name: str
    looks_at: str

    def bind(self, scores: Scores) -> tuple[Rescorer, Rescorer]:
        """Prepare both directions.

        Args:
            scores (Scores): Plain scores of shape [texts x videos], with ``video_of_text``. After
                this, one sweep for all methods adds each tile to all rescorers.

        Returns:
            tuple[Rescorer, Rescorer]: Text to video and video to text.
        """
        raise NotImplementedError

    def check_model(self, weights_fingerprint: str) -> None:
        """Raise a UserError if the method does not fit the tested model."""

    def check_width(self, width: int) -> None:
        """Raise a UserError if the method does not fit embeddings of this width."""

    def check_videos(self, video_ids: list[str | None]) -> None:
        """Log a warning if the method has seen some of the tested videos."""


@RESCORINGS.register_module()
class DSL(Rescoring):
    r"""Dual softmax, as in `CAMoE <https://arxiv.org/abs/2109.04290>`_.

    .. math:: s'(q, i) = s(q, i) \frac{\exp(\lambda s(q, i))} {\sum_{p} \exp(\lambda s(p, i))}

    The sum is over all queries p of the test set. From video to text these are the videos that have
    captions; distractors are no queries. It is computed in float64, in which the softmax underflows
    where :math:`\lambda s` is 700 below the largest.

    Args:
        scale (float): :math:`\lambda`. Defaults to 100, CLIP's logit scale.

    Raises:
        UserError: If the scale is not positive.

    Example:
        >>> similarity = torch.tensor([[0.9, 0.1, 0.1], [0.8, 0.7, 0.1], [0.8, 0.1, 0.7]])
        >>> evaluate_similarity(similarity, rescoring=[DSL()])['dsl/t2v/R@1']
        100.0
    """

    name = 'dsl'
    looks_at = 'all queries of the test set at once'

    def __init__(self, scale: float = 100.0) -> None:
        self.scale = _positive('scale of dsl', scale)

    def bind(self, scores: Scores) -> tuple[Rescorer, Rescorer]:  # noqa: D102
        texts, videos = scores.shape
        is_query = torch.zeros(videos, dtype=torch.bool, device=scores.rows.device)
        is_query[scores.video_of_text] = True
        return (
            _DualSoftmax(videos, is_query.new_ones(texts), self.scale),
            _DualSoftmax(texts, is_query, self.scale),
        )


@RESCORINGS.register_module()
class QBNorm(Rescoring):
    r"""`QB-Norm <https://arxiv.org/abs/2112.12777>`_ with the dynamic inverted softmax.

    .. math:: s'(q, i) = \frac{\exp(\beta s(q, i))} {\sum_{b} \exp(\beta s(b, i))}

    The sum is over a bank of training queries b. A query is ranked by s' if its best item is in the
    activation set, the items that are the best of some b; any other query is ranked by s. If items
    tie for the best place, each of them is a best one. What is computed is
    :math:`s(q, i) - \log \sum_b \exp(\beta s(b, i)) / \beta`, which has the order of s' and does
    not underflow.

    Args:
        text (Tensor, optional): Embeddings of training captions, of shape [b x e]; for
            ``evaluate_similarity`` their scores, of shape [b x videos].
        video (Tensor, optional): Embeddings of training videos, of shape [b x e]; or their scores,
            of shape [b x texts].
        beta (float): :math:`\beta`. Defaults to 20.
        bank (str, optional): In place of ``text`` and ``video``, a file of :class:`.Embeddings`, as
            a test of the training set dumps it.

    Raises:
        UserError: If beta is not positive, or the file holds no such embeddings.

    Example:
        >>> method = QBNorm(bank='bank.pt', beta=10.0)
        >>> method = QBNorm(bank_text, bank_video)
    """

    name = 'qb_norm'
    looks_at = 'the training queries of the bank'

    def __init__(
        self,
        text: Tensor | None = None,
        video: Tensor | None = None,
        beta: float = 20.0,
        bank: str | None = None,
    ) -> None:
        self.beta = _positive('beta of qb_norm', beta)
        self.file = bank or 'of QBNorm'
        if bank is not None and text is None and video is None:
            self.bank = Embeddings.load(bank)
        elif bank is None and text is not None and video is not None:
            self.bank = Embeddings([], video, text, torch.empty(0))
        else:
            raise UserError('QBNorm takes either a bank, or text and video.')

    def bind(self, scores: Scores) -> tuple[Rescorer, Rescorer]:  # noqa: D102
        texts, videos = scores.shape
        to_matrix = scores.columns is None  # then the bank holds scores, too
        text = self._scores('text', None if to_matrix else scores.columns, videos, scores.rows)
        video = self._scores('video', None if to_matrix else scores.rows, texts, scores.rows)
        return _InvertedSoftmax(text, texts, self.beta), _InvertedSoftmax(video, videos, self.beta)

    def _scores(self, what: str, gallery: Tensor | None, items: int, like: Tensor) -> Scores:
        queries = getattr(self.bank, what)
        width = items if gallery is None else gallery.shape[1]
        if queries.dim() != 2 or 0 in queries.shape or queries.shape[1] != width:
            raise ValueError(
                f'The {what} queries of the bank must have the shape [queries x {width}], '
                f'got {list(queries.shape)}.'
            )
        if not finite_rows(queries).all():
            raise ValueError(f'The {what} queries of the bank are not finite.')
        return Scores(queries.to(like.device), gallery)

    def check_model(self, weights_fingerprint: str) -> None:  # noqa: D102
        if self.bank.weights_fingerprint not in (None, weights_fingerprint):
            raise UserError(
                f'The bank {self.file} was made with another model than the one that is tested. '
                'Make it anew with this checkpoint.'
            )

    def check_width(self, width: int) -> None:  # noqa: D102
        if self.bank.video.shape[1] != width:
            raise UserError(
                f'The embeddings in the bank {self.file} have {self.bank.video.shape[1]} '
                f'numbers, those of this model {width}. Make it anew with this model.'
            )

    def check_videos(self, video_ids: list[str | None]) -> None:  # noqa: D102
        leaked = {name for name in video_ids if name is not None} & {*self.bank.video_id}
        if leaked:
            warn(
                f'{len(leaked)} test videos are in the bank {self.file}, such as '
                f'{min(map(str, leaked))}: qb_norm/... looks at what is tested.'
            )


def _positive(what: str, value: float) -> float:
    # A Boolean is a number, too: True would be 1.
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 < value < float('inf')):
        raise UserError(f'{what} must be a positive number, got {value!r}.')
    return value


class _LogSumExp:
    """Over queries, the log of the sum of exp(scale * score) of each item."""

    def __init__(self, items: int, is_query: Tensor, scale: float) -> None:
        self.scale = scale
        # Added to scores: 0, or -inf for what is no query.
        self.mask = torch.zeros(is_query.shape, dtype=torch.float64, device=is_query.device)
        self.mask[~is_query] = -torch.inf
        self.sum = torch.full((items,), -torch.inf, dtype=torch.float64, device=is_query.device)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        scaled = torch.add(self.mask[queries, None], tile.double(), alpha=self.scale)
        self.sum[items] = self.sum[items].logaddexp(scaled.logsumexp(0))

    def at(self, items: slice | Tensor) -> Tensor:
        # Rounded, so that equal items tie whatever the order of the sum.
        return self.sum[items].float().double()


class _DualSoftmax(_LogSumExp):
    """One direction of :class:`DSL`."""

    def __call__(self, scores: Tensor, queries: Tensor, items: slice | Tensor) -> Tensor:
        scores = scores.double()
        return (self.scale * scores - self.at(items)).exp_().mul_(scores)


class _InvertedSoftmax:
    """One direction of :class:`QBNorm`; ``bank`` has the shape [bank x items]."""

    def __init__(self, bank: Scores, queries: int, beta: float) -> None:
        self.beta = beta
        size, items = bank.shape
        all_items = torch.ones(items, dtype=torch.bool, device=bank.rows.device)
        self.log_sum = _LogSumExp(items, all_items.new_ones(size), beta)
        best = _BestScore(size, all_items)
        sweep(bank, [self.log_sum, best])
        activation_set = _ActivationSet(best.score, items)
        sweep(bank, [activation_set])
        self.best = _BestScore(queries, all_items)
        self.best_activated = _BestScore(queries, activation_set.items)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        self.best.add(queries, items, tile)
        self.best_activated.add(queries, items, tile)

    def __call__(self, scores: Tensor, queries: Tensor, items: slice | Tensor) -> Tensor:
        scores = scores.double()
        normalize = self.best.score[queries] == self.best_activated.score[queries]
        return torch.where(normalize, scores - self.log_sum.at(items) / self.beta, scores)


class _BestScore:
    """The best score of each query among some items."""

    def __init__(self, queries: int, among: Tensor) -> None:
        self.among = among
        self.score = torch.full((queries,), -torch.inf, dtype=torch.float64, device=among.device)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        best = tile.masked_fill(~self.among[items], -torch.inf).amax(1)
        self.score[queries] = self.score[queries].maximum(best.double())


class _ActivationSet:
    """The items that are the best of some query."""

    def __init__(self, best: Tensor, items: int) -> None:
        self.best = best
        self.items = torch.zeros(items, dtype=torch.bool, device=best.device)

    def add(self, queries: slice, items: slice, tile: Tensor) -> None:
        self.items[items] |= (tile == self.best[queries, None]).any(0)
