"""Tables of scores, made tile by tile."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Rows and columns of a tile, which bounds the memory. Tiles of this size stay
# in the cache of a CPU; larger ones make counting several times as slow.
TILE = 1024


class Scores:
    """Scores of rows and columns, of which one tile at a time is held.

    Products of embeddings are summed in float64 and rounded to float32, so
    that equal pairs tie whatever order a matrix product sums them in.

    Args:
        rows (Tensor): Embeddings, of shape [n x e]; or, without ``columns``,
            the scores themselves, of shape [n x m].
        columns (Tensor, optional): Embeddings, of shape [m x e].
        video_of_text (Tensor, optional): The right column of each row, of shape [n].

    Attributes:
        right (Tensor): The scores of the right pairs, of shape [n], if
            ``video_of_text`` is given.
    """

    def __init__(
        self, rows: Tensor, columns: Tensor | None = None, video_of_text: Tensor | None = None
    ) -> None:
        self.rows, self.columns, self.video_of_text = rows, columns, video_of_text
        self.shape = (len(rows), rows.shape[1] if columns is None else len(columns))
        if video_of_text is not None:
            # Filled, not concatenated: small tensors that are kept between
            # large ones that go would hold on to the memory of these.
            self.right = torch.empty(
                len(rows),
                dtype=_full(rows[:0]).dtype if columns is None else torch.float32,
                device=rows.device,
            )
            for part in _spans(len(rows)):
                self.right[part] = self._pairs(part, video_of_text[part])

    def _pairs(self, rows: slice, columns: Tensor) -> Tensor:
        if self.columns is None:
            pairs = self.rows[rows].gather(1, columns[:, None])[:, 0]
            return _full(pairs)
        return torch.linalg.vecdot(self.rows[rows].double(), self.columns[columns].double()).float()

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Give all scores, as (rows, columns, tile)."""
        for rows in _spans(self.shape[0]):
            for columns in _spans(self.shape[1]):
                yield rows, columns, self._tile(rows, columns)

    def _tile(self, rows: slice, columns: slice) -> Tensor:
        if self.columns is None:
            return _full(self.rows[rows, columns])
        tile = (self.rows[rows].double() @ self.columns[columns].double().T).float()
        if self.video_of_text is not None:
            # Right pairs keep the very value that the others are held
            # against, lest one counts as better than itself.
            column = self.video_of_text[rows, None] - columns.start
            inside = column.clamp(0, tile.shape[1] - 1)
            tile.scatter_(
                1,
                inside,
                torch.where(inside == column, self.right[rows, None], tile.gather(1, inside)),
            )
        return tile


def sweep(scores: Scores, text_queries: Sequence = (), video_queries: Sequence = ()) -> None:
    """Show all scores to those who gather something from them.

    Args:
        scores (Scores): The table.
        text_queries (Sequence): Objects whose ``add(queries, items, tile)`` is
            called for each tile, of shape [queries x items], with rows as
            queries and columns as items.
        video_queries (Sequence): Likewise, with columns as queries.
    """
    if not text_queries and not video_queries:
        return
    for rows, columns, tile in scores.tiles():
        for gatherer in text_queries:
            gatherer.add(rows, columns, tile)
        for gatherer in video_queries:
            gatherer.add(columns, rows, tile.T)


def finite_rows(matrix: Tensor) -> Tensor:
    """Say of each row whether it is finite, without a copy of the matrix."""
    # Both are NaN if there is one. Their joint form, aminmax, makes copies.
    return matrix.amin(1).isfinite() & matrix.amax(1).isfinite()


def _spans(size: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE, size)) for start in range(0, size, TILE))


def _full(scores: Tensor) -> Tensor:
    """At least float32, in which ones can be counted."""
    return scores.float() if scores.element_size() < 4 else scores
