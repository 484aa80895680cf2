"""Adapters: small bottlenecks in parallel to the layers of a frozen CLIP."""

from torch import nn

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

    def extra_repr(self) -> str:
        return f'parallel_to={self.parallel_to}'
