"""The prompts of the paper.

A prompt answers one question: which tokens does a layer get? All of them
share one call, ``prompt(layer, cls, num_frames)``, so a method of the paper
is a list of prompts in a config.
"""

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .context import make_cmm, run_cmm
from .spec import TransformerSpec, frame_index


class Prompt(nn.Module):
    """Base of all prompts.

    Args:
        length (int): Number P of tokens in each layer.
        spec (TransformerSpec): The transformer to prompt. An encoder passes its own.
        layers (tuple[int, int] | str, optional): First and last layer that
            get the tokens, numbered from 1; or ``'frame'`` for the layers
            that work within a frame, ``'video'`` for those that attend over
            the whole video. Defaults to every layer that this kind of prompt
            can serve.

    Raises:
        UserError: If ``length`` is below 1, or if the layers do not exist or
            this prompt cannot serve them.

    Example:
        >>> spec = TransformerSpec(width=768, layers=12, frame_layers=8, num_frames=12)
        >>> prompt = LearnedPrompt(length=8, spec=spec, layers='frame')
        >>> prompt.serves(9)
        False
        >>> prompt(layer=1).shape
        torch.Size([1, 1, 8, 768])
    """

    per_frame = False

    def __init__(
        self, length: int, spec: TransformerSpec, layers: tuple[int, int] | str | None = None
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if length < 1:
            raise UserError(
                f'{name}: length must be at least 1, got {length}. Leave the prompt out instead.'
            )
        if self.per_frame and spec.num_frames is None:
            raise UserError(
                f'{name} tells the frames of a video apart; a text has none. Use LearnedPrompt.'
            )
        frame_layers = spec.layers if spec.frame_layers is None else spec.frame_layers
        if layers is None:
            layers = 'frame' if self.per_frame else (1, spec.layers)
        if layers == 'frame':
            layers = (1, frame_layers)
        elif layers == 'video':
            layers = (frame_layers + 1, spec.layers)
        elif isinstance(layers, str):
            raise UserError(
                f"{name}: layers must be (first, last), 'frame' or 'video', got {layers!r}."
            )
        first, last = layers
        if not 1 <= first <= last <= spec.layers:
            raise UserError(
                f'{name}: there are no layers {first} to {last}; the tower '
                f'has 1 to {spec.layers}, of which 1 to {frame_layers} work '
                'within a frame.'
            )
        if self.per_frame and last > frame_layers:
            raise UserError(
                f'{name} gives each frame its own tokens, but layers '
                f'{frame_layers + 1} to {spec.layers} attend over the whole '
                f'video: end it at layer {frame_layers}, or lower '
                'temporal_layers.'
            )
        self.length = length
        self.spec = spec
        self.first, self.last = first, last

    def serves(self, layer: int) -> bool:
        """Whether ``layer`` (from 1) gets tokens of this prompt."""
        return self.first <= layer <= self.last

    def forward(
        self, layer: int, cls: Tensor | None = None, num_frames: int | None = None
    ) -> Tensor:
        """Give the tokens of a layer.

        Args:
            layer (int): A layer that :meth:`serves` is true for.
            cls (Tensor, optional): The [CLS] tokens entering the layer, of
                shape [b x f x d]. None in a text tower.
            num_frames (int, optional): Number f of frames of the video. None
                in a text tower.

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

    Example:
        Eight tokens in every layer, VoP::

            visual=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)])
    """

    def __init__(self, *args, init_std: float = 0.02, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.tokens = nn.Parameter(
            torch.empty(self.last - self.first + 1, self.length, self.spec.width).normal_(
                std=init_std
            )
        )

    def forward(
        self, layer: int, cls: Tensor | None = None, num_frames: int | None = None
    ) -> Tensor:
        return self.tokens[layer - self.first][None, None]


@MODELS.register_module()
class PositionPrompt(Prompt):
    """Position-specific video prompt, VoP^P (Sec. 3.3.1).

    For each layer a table of ``spec.num_frames`` x P tokens; a frame reads
    the row of its position (see :func:`frame_index`).

    Args:
        init_std (float): Standard deviation of the normal distribution that
            they start from. Defaults to 0.02.

    Example:
        Four shared tokens and four by the position of the frame, VoP^P::

            visual=dict(prompts=[
                dict(type='vop.LearnedPrompt', length=4),
                dict(type='vop.PositionPrompt', length=4)])
    """

    per_frame = True

    def __init__(self, *args, init_std: float = 0.02, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        assert self.spec.num_frames is not None  # as a per_frame prompt serves videos
        self.tokens = nn.Parameter(
            torch.empty(
                self.last - self.first + 1, self.spec.num_frames, self.length, self.spec.width
            ).normal_(std=init_std)
        )

    def forward(
        self, layer: int, cls: Tensor | None = None, num_frames: int | None = None
    ) -> Tensor:
        assert num_frames is not None  # as a per_frame prompt serves videos
        table = self.tokens[layer - self.first]
        index = frame_index(num_frames, len(table), table.device)
        return table[index][None]


@MODELS.register_module()
class ContextPrompt(Prompt):
    """Context-specific video prompt, VoP^C (Sec. 3.3.2).

    The [CLS] tokens c of all F frames entering a layer go through a context
    modelling module (CMM), then one linear layer makes the P tokens of each
    frame:

    .. math:: P_v = FC(CMM([c_1, ..., c_F]))

    CMM and FC are shared by all layers. The modelled [CLS] only makes
    prompts; the layer keeps the [CLS] that enters it.

    Args:
        cmm (str): ``'bilstm'``, ``'lstm'`` or ``'transformer'``; see
            :func:`.context.make_cmm`. Defaults to ``'bilstm'``.

    Example:
        Four shared tokens and four generated ones, VoP^C::

            visual=dict(prompts=[
                dict(type='vop.LearnedPrompt', length=4),
                dict(type='vop.ContextPrompt', length=4, cmm='bilstm')])
    """

    per_frame = True

    def __init__(self, *args, cmm: str = 'bilstm', **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.cmm, width = make_cmm(cmm, self.spec)
        self.fc = nn.Linear(width, self.length * self.spec.width)

    def forward(
        self, layer: int, cls: Tensor | None = None, num_frames: int | None = None
    ) -> Tensor:
        assert cls is not None  # as a per_frame prompt serves videos
        tokens = self.fc(run_cmm(self.cmm, cls))
        return tokens.unflatten(-1, (self.length, -1))
