"""Context modelling modules (CMM) over the [CLS] tokens of a video."""

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .spec import TransformerSpec, frame_index


class FrameTransformer(nn.Module):
    """Four pre-norm transformer layers over the frames of a video.

    Args:
        width (int): Width d; a head has 64 channels where d allows.
        num_frames (int): Size of the table of frame positions.
        layers (int): Number of layers. Defaults to 4.

    Example:
        >>> FrameTransformer(width=768, num_frames=12)(torch.randn(2, 12, 768)).shape
        torch.Size([2, 12, 768])
    """

    def __init__(self, width: int, num_frames: int, layers: int = 4) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(num_frames, width).normal_(std=0.02))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                nhead=max(1, width // 64),
                dim_feedforward=4 * width,
                dropout=0.0,
                activation='gelu',
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Model frames of shape [b x f x d]; returns the same shape."""
        table = self.positional_embedding
        x = x + table[frame_index(x.shape[1], len(table), table.device)]
        for layer in self.layers:
            x = layer(x)
        return x


def make_cmm(kind: str, spec: TransformerSpec) -> tuple[nn.Module, int]:
    """Make a CMM (Sec. 3.3.2, Table 3).

    Args:
        kind (str): ``'bilstm'`` (one layer, d hidden units in each direction),
            ``'lstm'`` (one layer) or ``'transformer'`` (four layers and a
            learned embedding of the frame position, without which it could
            not tell the order of frames).
        spec (TransformerSpec): The transformer whose [CLS] tokens it reads.

    Returns:
        tuple[nn.Module, int]: The CMM, for :func:`run_cmm`, and the width of
        what it gives.

    Raises:
        UserError: If there is no such kind.
    """
    d = spec.width
    if kind == 'bilstm':
        return nn.LSTM(d, d, batch_first=True, bidirectional=True), 2 * d
    if kind == 'lstm':
        return nn.LSTM(d, d, batch_first=True), d
    if kind == 'transformer':
        assert spec.num_frames is not None  # only videos have a context
        return FrameTransformer(d, spec.num_frames), d
    raise UserError(f"cmm must be 'bilstm', 'lstm' or 'transformer', got {kind!r}.")


def run_cmm(cmm: nn.Module, cls: Tensor) -> Tensor:
    """Run a CMM on the [CLS] tokens [b x f x d] of videos."""
    if not isinstance(cmm, nn.LSTM):
        return cmm(cls)
    # In the type of its weights: autocast knows cuDNN's LSTM in float16 alone, whatever type is
    # asked for, and of bfloat16 torch 2.4 makes many small steps without cuDNN.
    cls = cls.to(next(cmm.parameters()).dtype)
    if not torch.amp.is_autocast_available(cls.device.type):
        return cmm(cls)[0]  # the other is its last state
    with torch.autocast(cls.device.type, enabled=False):
        return cmm(cls)[0]


@MODELS.register_module()
class ContextUpdate(nn.Module):
    r"""The CMM updates the [CLS] tokens instead of making prompts (Table 4).

    Before each layer that works within a frame, with CMM and FC shared by
    all of these layers,

    .. math:: c \leftarrow c + FC(CMM([c_1, ..., c_F]))

    The paper compares this with ``ContextPrompt`` without saying how the
    update enters; here it is added, and FC starts at zero, so that training
    starts from CLIP as all other methods do.

    Args:
        spec (TransformerSpec): The transformer. An encoder passes its own.
        cmm (str): See :func:`make_cmm`. Defaults to ``'bilstm'``.

    Example:
        In a config::

            visual=dict(
                cls_update=dict(type='vop.ContextUpdate', cmm='bilstm'),
                prompts=[dict(type='vop.LearnedPrompt', length=8)])
    """

    def __init__(self, spec: TransformerSpec, cmm: str = 'bilstm') -> None:
        super().__init__()
        self.cmm, width = make_cmm(cmm, spec)
        self.fc = nn.Linear(width, spec.width)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, cls: Tensor) -> Tensor:
        """Update the [CLS] tokens [b x f x d] of videos."""
        return cls + self.fc(run_cmm(self.cmm, cls))
