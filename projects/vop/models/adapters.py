"""Adapters: small bottlenecks beside the layers of a frozen CLIP."""

from torch import nn

from ..registry import MODELS
from .tower import Tower


@MODELS.register_module()
class ParallelAdapter(nn.Module):
    r"""Bottlenecks in parallel to a sublayer of every layer.

    Beside the self-attention (Adapter^ATTN of Table 1, after
    `arXiv 2110.04366 <https://arxiv.org/abs/2110.04366>`_) or beside the FFN
    (Adapter^FFN, after `arXiv 2205.13535
    <https://arxiv.org/abs/2205.13535>`_) a layer computes

    .. math::
        x \leftarrow x + S(LN(x)) + W_{up}\, relu(W_{down} LN(x))

    with the sublayer S and biases left out. The up-projection starts at
    zero, so training starts from CLIP.

    Args:
        beside (str): ``'attn'`` or ``'ffn'``.
        tower (Tower): The transformer to adapt. An encoder passes its own.
        hidden (int): Width of the bottleneck. Defaults to 64.

    Raises:
        ValueError: If ``beside`` or ``hidden`` cannot be.
    """

    def __init__(self, beside: str, tower: Tower, hidden: int = 64) -> None:
        super().__init__()
        if beside not in ('attn', 'ffn'):
            raise ValueError(f"ParallelAdapter: beside must be 'attn' or 'ffn', got {beside!r}.")
        if hidden < 1:
            raise ValueError(f'ParallelAdapter: hidden must be at least 1, got {hidden}.')
        self.beside = beside
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(tower.width, hidden), nn.ReLU(), nn.Linear(hidden, tower.width))
            for _ in range(tower.layers)
        )
        for layer in self.layers:
            nn.init.zeros_(layer[-1].weight)
            nn.init.zeros_(layer[-1].bias)

    def extra_repr(self) -> str:
        return f'beside={self.beside}'
