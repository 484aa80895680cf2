"""Score matrices, computed tile by tile."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Rows and columns of a tile, which bounds the memory. Tiles of this size stay in the cache of a
# CPU; with larger ones, counting takes several times as long.
TILE = 1024


class Scores:
    """A score matrix, of which one tile at a time is in memory.

    Dot products are summed in float64 and rounded to float32, so that equal pairs tie whatever the
    order in which a matrix product sums them.

    Args:
        rows (Tensor): Embeddings of texts, of shape [n x e], or, without ``columns``, the scores
            themselves, of shape [n x m].
        columns (Tensor, optional): Embeddings of videos, of shape [m x e].
        video_of_text (Tensor, optional): The right column of each row, of shape [n].

    Attributes:
        shape (tuple[int, int]): (n, m).
        right (Tensor): The scores of the right pairs, of shape [n], if ``video_of_text`` is given.

    Example:
        >>> scores = Scores(torch.eye(2), torch.eye(3, 2), torch.tensor([0, 1]))
        >>> scores.shape, scores.right
        ((2, 3), tensor([1., 1.]))
    """

    def __init__(
        self, rows: Tensor, columns: Tensor | None = None, video_of_text: Tensor | None = None
    ) -> None:
        self.rows, self.columns, self.video_of_text = rows, columns, video_of_text
        self.shape = (len(rows), rows.shape[1] if columns is None else len(columns))
        if video_of_text is None:
            return
        if columns is None:
            self.right = _at_least_float32(rows.gather(1, video_of_text[:, None])[:, 0])
            return
        # Filled, not concatenated: small tensors that are kept between large
        # ones that are freed would hold on to their memory.
        self.right = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        for part in _spans(len(rows)):
            right = columns[video_of_text[part]].double()
            self.right[part] = torch.linalg.vecdot(rows[part].double(), right).float()

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield all scores as ``(rows, columns, tile)``."""
        for rows in _spans(self.shape[0]):
            for columns in _spans(self.shape[1]):
                yield rows, columns, self._tile(rows, columns)

    def _tile(self, rows: slice, columns: slice) -> Tensor:
        if self.columns is None:
            return _at_least_float32(self.rows[rows, columns])
        tile = (self.rows[rows].double() @ self.columns[columns].double().T).float()
        if self.video_of_text is not None:
            # A right pair gets the very value that the others are compared with; otherwise it could
            # count as better than itself.
            column = self.video_of_text[rows, None] - columns.start
            inside = column.clamp(0, tile.shape[1] - 1)
            right = torch.where(inside == column, self.right[rows, None], tile.gather(1, inside))
            tile.scatter_(1, inside, right)
        return tile


def sweep(scores: Scores, text_queries: Sequence = (), video_queries: Sequence = ()) -> None:
    """Compute every tile of a score matrix once, and pass it to all who need it.

    Args:
        scores (Scores): The matrix, of shape [texts x videos].
        text_queries (Sequence): Objects whose ``add(queries, items, tile)`` is called for each
            tile, of shape [queries x items], with rows as queries and columns as items.
        video_queries (Sequence): Likewise, with columns as queries.
    """
    if not text_queries and not video_queries:
        return
    for rows, columns, tile in scores.tiles():
        for visitor in text_queries:
            visitor.add(rows, columns, tile)
        for visitor in video_queries:
            visitor.add(columns, rows, tile.T)


def finite_rows(matrix: Tensor) -> Tensor:
    """Whether each row is finite, without a copy of the matrix."""
    # Both are NaN if the row has one. aminmax, which gives both, makes copies.
    return matrix.amin(1).isfinite() & matrix.amax(1).isfinite()


def _spans(size: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE, size)) for start in range(0, size, TILE))


def _at_least_float32(scores: Tensor) -> Tensor:  # in which ones can be counted
    return scores.float() if scores.element_size() < 4 else scores
