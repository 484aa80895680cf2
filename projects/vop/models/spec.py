"""What prompts and adapters know of the transformer that they serve."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TransformerSpec:
    """The shape of a transformer, and of the video it reads.

    Attributes:
        width (int): Width of a token, d.
        layers (int): Number of layers K, numbered 1 to K.
        frame_layers (int, optional): Layers 1 to K_s that work within one
            frame; the others attend over the whole video (Sec. 3.3.3). None
            for a text tower.
        num_frames (int, optional): Frames F of a video. None for a text
            tower.
    """

    width: int
    layers: int
    frame_layers: int | None = None
    num_frames: int | None = None


def frame_index(num_frames: int, table_size: int) -> Tensor:
    """Entries of a table of frame positions that a video's frames read.

    A video with as many frames as the table has entries reads them in order.
    With any other number, frame i reads the entry at the same relative
    position, floor((i + 1/2) / num_frames * table_size).

    Returns:
        Tensor: int64, of shape [num_frames].
    """
    positions = torch.arange(num_frames)
    return (2 * positions + 1) * table_size // (2 * num_frames)
