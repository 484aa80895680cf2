"""The embeddings of a data set, in a file."""

import os.path as osp
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..fileio import save_tensors
from .scores import finite_rows

KIND = 'embeddings of vop.RetrievalMetric'


class Embeddings(NamedTuple):
    """Embeddings of videos and their captions.

    Attributes:
        video_id (list[str | None]): Names of the n videos; None where a video has no name.
        video (Tensor): Of shape [n x e].
        text (Tensor): Of shape [m x e].
        video_of_text (Tensor): Index of each caption's video, of shape [m].
        weights_fingerprint (str, optional): Stands for the model that made them.

    Example:
        >>> video_of_text = torch.tensor([0, 0, 1])
        >>> tested = Embeddings(['a', 'b'], torch.eye(2), torch.ones(3, 2), video_of_text)
        >>> tested.save('embeddings.pt')
        >>> Embeddings.load('embeddings.pt').video_id
        ['a', 'b']
    """

    video_id: list[str | None]
    video: Tensor
    text: Tensor
    video_of_text: Tensor
    weights_fingerprint: str | None = None

    def save(self, path: str) -> None:
        """Write a file that ``torch.load(path, weights_only=True)`` opens.

        Raises:
            UserError: If it cannot be written. What was there before stays.
        """
        save_tensors(path, dict(kind=KIND, **self._asdict()))

    @classmethod
    def load(cls, path: str) -> 'Embeddings':
        """Open such a file, mapped into memory.

        Raises:
            UserError: If there is no such file, or if it is damaged, holds something else, or was
                written by another version of this package.
        """
        how = '`tools/test.py --dump-embeddings FILE.pt` writes such a file.'
        if not osp.isfile(path):
            raise UserError(f'There is no file {path} of embeddings. {how}')
        try:
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        except Exception as error:  # a damaged file can raise nearly anything
            raise UserError(f'{path} is damaged, or holds no embeddings. {how}') from error
        if not isinstance(content, dict) or content.pop('kind', None) != KIND:
            raise UserError(f'{path} holds no embeddings. {how}')
        if content.keys() != set(cls._fields):
            raise UserError(
                f'{path} was written by another version of this package: it has the fields '
                f'{", ".join(sorted(content))}. Make it anew. {how}'
            )
        embeddings = cls(**content)
        if not embeddings._fits():
            raise UserError(f'{path} holds other values than embeddings. {how}')
        for what in ('video', 'text'):
            if not finite_rows(getattr(embeddings, what)).all():
                raise UserError(f'Embeddings of {what}s in {path} are not finite.')
        return embeddings

    def _fits(self) -> bool:
        """Whether the values are of the kinds and shapes that they should be."""
        tensors = self.video, self.text, self.video_of_text
        if not isinstance(self.video_id, list) or not all(isinstance(t, Tensor) for t in tensors):
            return False
        video, text, video_of_text = (tuple(tensor.shape) for tensor in tensors)
        return (
            len(text) == 2
            and 0 not in video + text
            and video == (len(self.video_id), text[1])
            and video_of_text == text[:1]
            and self.video.is_floating_point()
            and self.text.is_floating_point()
            and all(name is None or isinstance(name, str) for name in self.video_id)
        )
