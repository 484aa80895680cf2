"""From a list of samples to a batch on the device."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from ..registry import MODELS


@MODELS.register_module()
class RetrievalDataPreprocessor(BaseDataPreprocessor):
    """Batch videos and captions, and normalise the frames on the device.

    Frames travel as uint8, a quarter of the bytes of float32.

    Args:
        mean (Sequence[float]): Mean of the channels, of pixels in [0, 1].
            Defaults to OpenAI's.
        std (Sequence[float]): Standard deviation likewise.

    Example:
        >>> preprocess = RetrievalDataPreprocessor()
        >>> frames = torch.zeros(2, 12, 3, 224, 224, dtype=torch.uint8)
        >>> preprocess(dict(inputs=dict(imgs=frames)))['inputs']['imgs'].dtype
        torch.float32
    """

    def __init__(
        self, mean: Sequence[float] = OPENAI_DATASET_MEAN, std: Sequence[float] = OPENAI_DATASET_STD
    ) -> None:
        super().__init__(non_blocking=True)  # which pinned memory allows
        for name, value in dict(mean=mean, std=std).items():
            self.register_buffer(name, 255 * torch.tensor(value).view(3, 1, 1), False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Batch the samples of a data loader.

        Args:
            data (dict): ``inputs`` with ``imgs``, b frame tensors
                [f x 3 x h x w], uint8; and ``text``, b tensors of token ids,
                [t] or [captions x t], which may be left out. Both are lists,
                or tensors where the data loader stacks. ``data_samples``
                pass.
            training (bool): Not used.

        Returns:
            dict: ``inputs`` as ``RetrievalRecognizer`` takes them.
        """
        data = self.cast_data(data)
        inputs = data['inputs']
        frames = inputs['imgs']
        if not isinstance(frames, Tensor):
            frames = torch.stack(list(frames))
        data['inputs'] = dict(imgs=(frames - self.mean) / self.std)
        if 'text' in inputs:
            texts = [t if t.dim() == 2 else t[None] for t in inputs['text']]
            data['inputs'].update(
                text=torch.cat(texts), num_texts=torch.tensor([len(t) for t in texts])
            )
        return data
