"""Adapters: small bottlenecks in parallel to parts of the layers of a frozen CLIP."""

from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .spec import TransformerSpec


@MODELS.register_module()
class ParallelAdapter(nn.Module):
    r"""Bottlenecks in parallel to a sublayer of every layer.

    In parallel to the self-attention (Adapter^ATTN of Table 1, after
    `arXiv 2110.04366 <https://arxiv.org/abs/2110.04366>`_) or parallel to the FFN
    (Adapter^FFN, after `arXiv 2205.13535
    <https://arxiv.org/abs/2205.13535>`_) a layer computes

    .. math::
        x \leftarrow x + S(LN(x)) + W_{up}\, relu(W_{down} LN(x))

    with the sublayer S and biases left out. The up-projection starts at
    zero, so training starts from CLIP.

    Args:
        parallel_to (str): ``'attn'`` or ``'ffn'``.
        spec (TransformerSpec): The transformer to adapt. An encoder passes its own.
        hidden (int): Width of the bottleneck. Defaults to 64.

    Raises:
        UserError: If ``parallel_to`` or ``hidden`` has no such value.

    Example:
        In a config, Adapter^FFN::

            visual=dict(adapters=[dict(type='vop.ParallelAdapter', parallel_to='ffn')])
    """

    def __init__(self, parallel_to: str, spec: TransformerSpec, hidden: int = 64) -> None:
        super().__init__()
        if parallel_to not in ('attn', 'ffn'):
            raise UserError(
                f"ParallelAdapter: parallel_to must be 'attn' or 'ffn', got {parallel_to!r}."
            )
        if hidden < 1:
            raise UserError(f'ParallelAdapter: hidden must be at least 1, got {hidden}.')
        self.parallel_to = parallel_to
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(spec.width, hidden), nn.ReLU(), nn.Linear(hidden, spec.width))
            for _ in range(spec.layers)
        )
        for layer in self.layers:
            for parameter in [*layer.parameters()][-2:]:  # of the up-projection
                nn.init.zeros_(parameter)

    def of_layer(self, layer: int) -> dict[str, nn.Module]:
        """Give the bottleneck of layer ``layer`` (from 1), by what it is parallel to."""
        return {self.parallel_to: self.layers[layer - 1]}

    def extra_repr(self) -> str:
        return f'parallel_to={self.parallel_to}'


@MODELS.register_module()
class LoRA(nn.Module):
    r"""Low-rank updates of the projections to queries and values.

    After `arXiv 2106.09685 <https://arxiv.org/abs/2106.09685>`_, a baseline
    that the paper does not have: in every layer

    .. math::
        q = W_q n + b_q + \frac{\alpha}{r} B_q A_q n, \quad
        v = W_v n + b_v + \frac{\alpha}{r} B_v A_v n

    with n as the attention reads it. B starts at zero, so training starts
    from CLIP. Prompts have values by the same projection.

    Args:
        spec (TransformerSpec): The transformer to adapt. An encoder passes its own.
        rank (int): Rank r of an update. Defaults to 8.
        alpha (float, optional): Its scale. Defaults to the rank.

    Raises:
        UserError: If ``rank`` is not 1 to the width of a token.

    Example:
        In a config, for both encoders::

            adapters = [dict(type='vop.LoRA', rank=8)]
            model = dict(visual=dict(adapters=adapters), text=dict(adapters=adapters))
    """

    def __init__(self, spec: TransformerSpec, rank: int = 8, alpha: float | None = None) -> None:
        super().__init__()
        if not 1 <= rank <= spec.width:
            raise UserError(f'LoRA: rank must be 1 to {spec.width}, got {rank}.')
        scale = 1 if alpha is None else alpha / rank
        self.query, self.value = (
            nn.ModuleList(_LowRank(spec.width, rank, scale) for _ in range(spec.layers))
            for _ in range(2)
        )

    def of_layer(self, layer: int) -> dict[str, nn.Module]:
        """Give the updates of layer ``layer`` (from 1), by what they are parallel to."""
        return dict(query=self.query[layer - 1], value=self.value[layer - 1])


class _LowRank(nn.Module):
    def __init__(self, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = (
            nn.Linear(*shape, bias=False) for shape in ((width, rank), (rank, width))
        )
        self.scale = scale
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x)) * self.scale
