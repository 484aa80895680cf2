"""Captions and frames of tested videos, to be looked at."""

import base64
import io
import logging
import os.path as osp
from typing import cast

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from ..errors import UserError
from ..evaluation.embeddings import Embeddings

FRAMES = 6  # of a strip
HEIGHT, GAP = 96, 2  # of a strip, and between its frames, in pixels
GREY = 128  # of the gap, which is seen on light and on dark ground


class ShownVideos:
    """Names, captions and frames of tested videos, each decoded at most once.

    Args:
        loader (DataLoader): Of the test set. What was tested is known by its
            ``video_id``, in whatever order; without one, as from MMAction2's
            ``VideoTextDataset``, by its order.
        tested (Embeddings): What the metric collected.

    Raises:
        UserError: If it cannot be known which items were tested.

    Example:
        >>> ShownVideos(runner.test_dataloader, metric.tested).caption(0)
        'a blue square moves from the left to the top'
    """

    def __init__(self, loader: DataLoader, tested: Embeddings) -> None:
        self.dataset = cast(BaseDataset, loader.dataset)
        self.video_of_text = tested.video_of_text
        items = [self.dataset.get_data_info(i) for i in range(len(self.dataset))]
        if None in tested.video_id:
            if len(items) != len(tested.video_id) or getattr(loader.sampler, 'shuffle', False):
                raise UserError(
                    "What was tested is not known by 'video_id' (meta_keys of PackActionInputs), "
                    'nor by its order, which the sampler of the test set changes.'
                )
            self.places = list(range(len(items)))
            self.names = [osp.basename(item['filename']) for item in items]
        else:
            place = {item.get('video_id'): i for i, item in enumerate(items)}
            unknown = [name for name in tested.video_id if name not in place]
            if unknown:
                raise UserError(f'The test set has no item with video_id={unknown[0]!r}.')
            self.places = [place[name] for name in tested.video_id]
            self.names = tested.video_id
        self._strips: dict[int, str | None] = {}

    def caption(self, text: int) -> str:
        """A caption, by the index of its embedding."""
        video = self.video_of_text[text]
        captions = self.dataset.get_data_info(self.places[video])['text']
        if isinstance(captions, str):
            return captions
        # Those of a video follow each other.
        return captions[text - int((self.video_of_text == video).nonzero()[0])]

    def strip(self, video: int) -> str | None:
        """Frames of a video as the model saw them, as a JPEG in base64; None if it is gone."""
        if video not in self._strips:
            try:
                jpeg = draw_strip(self.dataset[self.places[video]]['inputs']['imgs'])
                self._strips[video] = base64.b64encode(jpeg).decode()
            except Exception as error:  # whatever a decoder raises
                message = f'There is no picture of {self.names[video]}: {error}'
                print_log(message, 'current', logging.ERROR)
                self._strips[video] = None
        return self._strips[video]


def draw_strip(imgs: Tensor) -> bytes:
    """Put ``FRAMES`` of some frames, RGB of shape [f x 3 x h x w] in uint8, into a JPEG."""
    if imgs.dim() != 4 or imgs.shape[1] != 3 or imgs.element_size() != 1:
        raise ValueError(
            f'imgs must be uint8 of shape [f x 3 x h x w], got {imgs.dtype} {list(imgs.shape)}.'
        )
    chosen = torch.linspace(0, len(imgs) - 1, min(FRAMES, len(imgs))).round().long()
    width = max(1, round(HEIGHT * imgs.shape[3] / imgs.shape[2]))
    frames = F.resize(imgs[chosen], [HEIGHT, width], F.InterpolationMode.BICUBIC)
    strip = F.pad(frames, [0, 0, GAP, 0], fill=GREY).permute(1, 2, 0, 3).flatten(2)
    jpeg = io.BytesIO()
    F.to_pil_image(strip[..., :-GAP]).save(jpeg, 'JPEG', quality=80)
    return jpeg.getvalue()
