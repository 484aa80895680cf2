"""Captions and frames of tested videos, to be looked at."""

import logging
import os.path as osp

import cv2
import numpy as np
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader

from ..evaluation.embeddings import Embeddings

FRAMES = 6  # of a strip
HEIGHT = 96  # of a strip, in pixels
GAP = 2  # between frames, in pixels
GREY = 128  # of the gap, which is seen on light and on dark ground


class Footage:
    """What stands behind the names of tested videos.

    Each video is decoded at most once, when it is first asked for.

    Args:
        loader (DataLoader): Of the test set. What was tested is known by its
            ``video_id``, in whatever order; without one, as from MMAction2's
            ``VideoTextDataset``, by its order.
        tested (Embeddings): What the metric collected.

    Attributes:
        names (list[str]): Names of the videos.

    Raises:
        ValueError: If it cannot be known which items were tested.
    """

    def __init__(self, loader: DataLoader, tested: Embeddings) -> None:
        self.dataset, self.video_of_text = loader.dataset, tested.video_of_text
        items = [self.dataset.get_data_info(i) for i in range(len(self.dataset))]
        if None in tested.video_id:
            if len(items) != len(tested.video_id) or getattr(loader.sampler, 'shuffle', False):
                raise ValueError(
                    "What was tested has no 'video_id' (meta_keys of "
                    'PackActionInputs), and it is not known by its order '
                    'either, as the sampler of the test set changes that.'
                )
            self.places = range(len(items))
            self.names = [osp.basename(item['filename']) for item in items]
        else:
            place = {item.get('video_id'): i for i, item in enumerate(items)}
            unknown = [name for name in tested.video_id if name not in place]
            if unknown:
                raise ValueError(f'The test set has no item with video_id={unknown[0]!r}.')
            self.places = [place[name] for name in tested.video_id]
            self.names = tested.video_id
        self._strips: dict[int, bytes | None] = {}

    def caption(self, text: int) -> str:
        """A caption, by the index of its embedding."""
        video = self.video_of_text[text]
        captions = self.dataset.get_data_info(self.places[video])['text']
        # Those of a video stand together.
        if isinstance(captions, str):
            return captions
        return captions[text - int((self.video_of_text == video).nonzero()[0])]

    def strip(self, video: int) -> bytes | None:
        """Frames of a video as the model saw them, side by side.

        Args:
            video (int): Index of the video.

        Returns:
            bytes | None: A JPEG; None if the video cannot be read any more,
            which is logged.
        """
        if video not in self._strips:
            try:
                imgs = self.dataset[self.places[video]]['inputs']['imgs']
                self._strips[video] = draw_strip(imgs)
            except Exception as error:  # whatever a decoder raises
                print_log(
                    f'There is no picture of {self.names[video]}: {error}', 'current', logging.ERROR
                )
                self._strips[video] = None
        return self._strips[video]


def draw_strip(imgs: Tensor) -> bytes:
    """Put up to ``FRAMES`` frames of a video side by side.

    Args:
        imgs (Tensor): RGB frames, uint8, of shape [f x 3 x h x w].

    Returns:
        bytes: A JPEG of ``HEIGHT`` pixels height.

    Raises:
        ValueError: If ``imgs`` are no such frames.
    """
    if imgs.dim() != 4 or imgs.shape[1] != 3 or imgs.element_size() != 1:
        raise ValueError(
            'Frames of shape [f x 3 x h x w] in uint8 can be '
            f'drawn, not {list(imgs.shape)} in {imgs.dtype}.'
        )
    count = min(FRAMES, len(imgs))
    chosen = np.linspace(0, len(imgs) - 1, count).round().astype(int)
    frames = imgs[chosen].permute(0, 2, 3, 1).numpy()
    height, width = frames.shape[1:3]
    size = max(1, round(width * HEIGHT / height)), HEIGHT
    way = cv2.INTER_AREA if height > HEIGHT else cv2.INTER_CUBIC
    gap = np.full((HEIGHT, GAP, 3), GREY, np.uint8)
    parts = []
    for frame in frames:
        parts += [gap, cv2.resize(frame, size, interpolation=way)]
    strip = cv2.cvtColor(np.hstack(parts[1:]), cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', strip, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
