"""The prompts of the paper.

A prompt answers one question: which tokens does a layer get? All of them
share one call, ``prompt(layer, cls)``, so a method of the paper is a list of
prompts in a config.
"""
from dataclasses import dataclass
from typing import Optional, Tuple, Union

import torch
from torch import Tensor, nn

from ..registry import MODELS


@dataclass(frozen=True)
class Tower:
    """What a prompt has to know of the transformer it prompts.

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
    frame_layers: Optional[int] = None
    num_frames: Optional[int] = None


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


class Prompt(nn.Module):
    """Base of all prompts.

    Args:
        length (int): Number P of tokens in each layer.
        tower (Tower): The transformer to prompt. An encoder passes its own.
        layers (tuple[int, int] | str, optional): First and last layer that
            get the tokens, numbered from 1; or ``'frame'`` for the layers
            that work within a frame, ``'video'`` for those that attend over
            the whole video. Defaults to every layer that this kind of prompt
            can serve.

    Raises:
        ValueError: If the layers do not exist or this prompt cannot serve
            them.
    """
    per_frame = False

    def __init__(self,
                 length: int,
                 tower: Tower,
                 layers: Optional[Union[Tuple[int, int], str]] = None) -> None:
        super().__init__()
        name = type(self).__name__
        if length < 1:
            raise ValueError(f'{name}: length must be at least 1, got '
                             f'{length}. Leave the prompt out instead.')
        if self.per_frame and tower.num_frames is None:
            raise ValueError(f'{name} tells the frames of a video apart; a '
                             'text has none. Use LearnedPrompt.')
        frame_layers = (
            tower.layers if tower.frame_layers is None else tower.frame_layers)
        if layers is None:
            layers = 'frame' if self.per_frame else (1, tower.layers)
        if layers == 'frame':
            layers = (1, frame_layers)
        elif layers == 'video':
            layers = (frame_layers + 1, tower.layers)
        elif isinstance(layers, str):
            raise ValueError(f"{name}: layers must be (first, last), 'frame' "
                             f"or 'video', got {layers!r}.")
        first, last = layers
        if not 1 <= first <= last <= tower.layers:
            raise ValueError(
                f'{name}: there are no layers {first} to {last}; the tower '
                f'has 1 to {tower.layers}, of which 1 to {frame_layers} work '
                'within a frame.')
        if self.per_frame and last > frame_layers:
            raise ValueError(
                f'{name} gives each frame its own tokens, but layers '
                f'{frame_layers + 1} to {tower.layers} attend over the whole '
                f'video: end it at layer {frame_layers}, or lower '
                'temporal_layers.')
        self.length = length
        self.tower = tower
        self.first, self.last = first, last

    def serves(self, layer: int) -> bool:
        """Whether ``layer`` (from 1) gets tokens of this prompt."""
        return self.first <= layer <= self.last

    def forward(self, layer: int, cls: Optional[Tensor] = None) -> Tensor:
        """Give the tokens of a layer.

        Args:
            layer (int): A layer that :meth:`serves` is true for.
            cls (Tensor, optional): The [CLS] tokens entering the layer, of
                shape [b x f x d]. None in a text tower.

        Returns:
            Tensor: Of shape [b or 1 x f or 1 x P x d].
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f'length={self.length}, layers={self.first}-{self.last}'


@MODELS.register_module()
class LearnedPrompt(Prompt):
    """Tokens learned for each layer, the same for all inputs (Sec. 3.2).

    Args:
        init_std (float): Standard deviation of the normal distribution that
            they start from. Defaults to 0.02.
    """

    def __init__(self, *args, init_std: float = 0.02, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.tokens = nn.Parameter(
            torch.empty(self.last - self.first + 1, self.length,
                        self.tower.width).normal_(std=init_std))

    def forward(self, layer: int, cls: Optional[Tensor] = None) -> Tensor:
        return self.tokens[layer - self.first][None, None]


@MODELS.register_module()
class PositionPrompt(Prompt):
    """Position-specific video prompt, VoP^P (Sec. 3.3.1).

    For each layer a table of ``tower.num_frames`` x P tokens; a frame reads
    the row of its position (see :func:`frame_index`).

    Args:
        init_std (float): Standard deviation of the normal distribution that
            they start from. Defaults to 0.02.
    """
    per_frame = True

    def __init__(self, *args, init_std: float = 0.02, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.tokens = nn.Parameter(
            torch.empty(self.last - self.first + 1, self.tower.num_frames,
                        self.length, self.tower.width).normal_(std=init_std))

    def forward(self, layer: int, cls: Tensor) -> Tensor:
        table = self.tokens[layer - self.first]
        index = frame_index(cls.shape[1], len(table)).to(table.device)
        return table[index][None]


@MODELS.register_module()
class ContextPrompt(Prompt):
    """Context-specific video prompt, VoP^C (Sec. 3.3.2).

    The [CLS] tokens c of all F frames entering a layer go through a context
    modelling module (CMM), then one linear layer makes the P tokens of each
    frame:

    .. math:: P_v = FC(CMM([c_1, ..., c_F]))

    CMM and FC are shared by all layers. The modelled [CLS] only makes
    prompts; the layer goes on with the [CLS] it had.

    Args:
        cmm (str): ``'bilstm'`` (one layer, d hidden units each way),
            ``'lstm'`` (one layer) or ``'transformer'`` (four layers and a
            learned embedding of the frame position, without which it could
            not tell the order of frames). Defaults to ``'bilstm'``.
    """
    per_frame = True

    def __init__(self, *args, cmm: str = 'bilstm', **kwargs) -> None:
        super().__init__(*args, **kwargs)
        width = self.tower.width
        if cmm in ('bilstm', 'lstm'):
            self.cmm = nn.LSTM(
                width, width, batch_first=True, bidirectional=cmm == 'bilstm')
        elif cmm == 'transformer':
            self.cmm = FrameTransformer(width, self.tower.num_frames)
        else:
            raise ValueError("ContextPrompt: cmm must be 'bilstm', 'lstm' or "
                             f"'transformer', got {cmm!r}.")
        self.fc = nn.Linear(width * (2 if cmm == 'bilstm' else 1),
                            self.length * width)

    def forward(self, layer: int, cls: Tensor) -> Tensor:
        context = self.cmm(cls)
        if isinstance(context, tuple):  # an LSTM also returns its last state
            context = context[0]
        return self.fc(context).unflatten(-1, (self.length, -1))


class FrameTransformer(nn.Module):
    """Four pre-norm transformer layers over the frames of a video.

    Args:
        width (int): Width d; a head has 64 channels where d allows.
        num_frames (int): Size of the table of frame positions.
        layers (int): Number of layers. Defaults to 4.
    """

    def __init__(self, width: int, num_frames: int, layers: int = 4) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(
            torch.empty(num_frames, width).normal_(std=0.02))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                nhead=max(1, width // 64),
                dim_feedforward=4 * width,
                dropout=0.,
                activation='gelu',
                batch_first=True,
                norm_first=True) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Model the context of frames ``x`` of shape [b x f x d]."""
        table = self.positional_embedding
        x = x + table[frame_index(x.shape[1], len(table)).to(table.device)]
        for layer in self.layers:
            x = layer(x)
        return x
