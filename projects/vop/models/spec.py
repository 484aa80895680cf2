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

    Example:
        >>> TransformerSpec(width=768, layers=12, frame_layers=8, num_frames=12)
        TransformerSpec(width=768, layers=12, frame_layers=8, num_frames=12)
    """

    width: int
    layers: int
    frame_layers: int | None = None
    num_frames: int | None = None


def frame_index(
    num_frames: int, table_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Map the frames of a video to the entries of a table of frame positions.

    A video with as many frames as the table has entries reads them in order.
    With any other number, frame i reads the entry at the same relative
    position, floor((i + 1/2) / num_frames * table_size).

    Args:
        num_frames (int): Number of frames of the video.
        table_size (int): Number of entries of the table.
        device (torch.device, optional): That of the table: a copy to a GPU would wait for all that
            it has to do. Defaults to the CPU.

    Returns:
        Tensor: int64, of shape [num_frames].

    Example:
        >>> frame_index(6, 12)
        tensor([ 1,  3,  5,  7,  9, 11])
    """
    positions = torch.arange(num_frames, device=device)
    return (2 * positions + 1) * table_size // (2 * num_frames)
