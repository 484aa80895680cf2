"""Embeddings of a set of videos and captions as a file."""

import os
import os.path as osp
from typing import NamedTuple

import torch
from torch import Tensor

from .scores import finite_rows

KIND = 'embeddings of vop.RetrievalMetric'


class Embeddings(NamedTuple):
    """Videos and captions as a model embeds them.

    Attributes:
        video_id (list[str | None]): Names of the n videos, where they have
            any.
        video (Tensor): Of shape [n x e].
        text (Tensor): Of shape [m x e].
        video_of_text (Tensor): Index of each caption's video, of shape [m].
        model (str, optional): Fingerprint of the model's weights.
    """

    video_id: list[str | None]
    video: Tensor
    text: Tensor
    video_of_text: Tensor
    model: str | None = None

    def save(self, path: str) -> None:
        """Write a file that ``torch.load(path, weights_only=True)`` opens.

        What stood there before stays until all is written.

        Args:
            path (str): Path of the file.
        """
        part = f'{path}.part'
        try:
            torch.save(dict(kind=KIND, **self._asdict()), part)
            os.replace(part, path)
        finally:
            if osp.exists(part):
                os.remove(part)

    @classmethod
    def load(cls, path: str) -> 'Embeddings':
        """Open such a file. Its tensors stay on the disk until they are read.

        Args:
            path (str): Path of the file.

        Returns:
            Embeddings: What it holds.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file, or damaged.
        """
        how = '`tools/test.py --dump-embeddings FILE.pt` writes such a file.'
        if not osp.isfile(path):
            raise FileNotFoundError(f'There is no file {path} of embeddings. {how}')
        try:
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        except Exception as error:  # a damaged file can raise nearly anything
            raise ValueError(f'{path} is damaged, or holds no embeddings. {how}') from error
        if not isinstance(content, dict) or content.pop('kind', 0) != KIND:
            raise ValueError(f'{path} holds no embeddings. {how}')
        embeddings = cls(**content)
        for what in ('video', 'text'):
            if not finite_rows(getattr(embeddings, what)).all():
                raise ValueError(f'Embeddings of {what}s in {path} are not finite.')
        return embeddings
