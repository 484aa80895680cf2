"""The kinds of transformer blocks that can be prompted, each as the steps that prompts need."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as ViTBlock
from torch import Tensor, nn

Adapter = Callable[[Tensor], Tensor]


class BlockSteps:
    r"""What a transformer block computes, step by step.

    A block of whatever kind is

    .. math::
        x &\leftarrow x + attn\_out(attention(q, k, v)), \quad
        q, k, v = query(n), key\_value(n), \quad n = attn\_norm(x) \\
        x &\leftarrow x + mlp(mlp\_norm(x))

    where ``rotate`` brings rotary positions into q and k. A new kind of CLIP brings these steps,
    and a line in :data:`BLOCK_KINDS`.

    Args:
        block (nn.Module): The block of a CLIP's tower.

    Attributes:
        num_heads (int): Number of attention heads.
        activation (str): The class of the MLP's activation, and how it is approximated.

    Example:
        >>> steps = steps_of(towers.visual.transformer.resblocks[0])
        >>> steps.query(steps.attn_norm(torch.randn(2, 50, 768))).shape
        torch.Size([2, 50, 12, 64])
    """

    def __init__(self, block: Any) -> None:
        self.block, self.attn = block, block.attn
        self.num_heads: int = block.attn.num_heads

    @staticmethod
    def why_not(block: Any) -> str | None:
        """Return why such a block cannot be prompted, or None."""
        return None

    @property
    def activation(self) -> str:
        raise NotImplementedError

    def attn_norm(self, x: Tensor) -> Tensor:
        """The tokens [... x d] as the attention reads them."""
        raise NotImplementedError

    def query(self, normed: Tensor, more: Sequence[Adapter] = ()) -> Tensor:
        """Queries, of shape [... x heads x d / heads]; what adapters give is in them."""
        raise NotImplementedError

    def key_value(self, normed: Tensor, more: Sequence[Adapter] = ()) -> tuple[Tensor, Tensor]:
        """Keys and values, of that shape; what adapters give is in the values."""
        raise NotImplementedError

    def rotate(self, heads: Tensor, position: Tensor) -> Tensor:
        """Rotate heads of queries or keys by the positions of their tokens, [n x 2 d / heads]."""
        raise NotImplementedError

    def attn_out(self, x: Tensor) -> Tensor:
        """What the heads that attention gives, joined to [... x d], add to the tokens."""
        raise NotImplementedError

    def mlp_norm(self, x: Tensor) -> Tensor:
        """The tokens as the MLP reads them."""
        raise NotImplementedError

    def mlp(self, normed: Tensor) -> Tensor:
        """What the MLP adds to the tokens."""
        raise NotImplementedError

    def heads(self, x: Tensor, normed: Tensor, more: Sequence[Adapter] = ()) -> Tensor:
        """Split a projection [... x d] into heads, once adapters have added to it."""
        for adapter in more:
            x = x + adapter(normed)
        return x.unflatten(-1, (self.num_heads, -1))


class OpenCLIPSteps(BlockSteps):
    """Steps of open_clip's ``ResidualAttentionBlock``."""

    @property
    def activation(self) -> str:
        gelu = self.block.mlp.gelu
        approximate = getattr(gelu, 'approximate', 'none')
        return ' '.join([type(gelu).__name__, approximate]).removesuffix(' none')

    def attn_norm(self, x: Tensor) -> Tensor:
        return self.block.ln_1(x)

    def query(self, normed: Tensor, more: Sequence[Adapter] = ()) -> Tensor:
        d = normed.shape[-1]
        q = F.linear(normed, self.attn.in_proj_weight[:d], self.attn.in_proj_bias[:d])
        return self.heads(q, normed, more)

    def key_value(self, normed: Tensor, more: Sequence[Adapter] = ()) -> tuple[Tensor, Tensor]:
        d = normed.shape[-1]
        kv = F.linear(normed, self.attn.in_proj_weight[d:], self.attn.in_proj_bias[d:])
        k, v = kv.chunk(2, -1)
        return self.heads(k, normed), self.heads(v, normed, more)

    def attn_out(self, x: Tensor) -> Tensor:
        return self.block.ls_1(self.attn.out_proj(x))

    def mlp_norm(self, x: Tensor) -> Tensor:
        return self.block.ln_2(x)

    def mlp(self, normed: Tensor) -> Tensor:
        r"""As the block's, but keep little for the backward pass.

        QuickGELU, :math:`h \sigma(1.702 h)`, is :math:`silu(1.702 h) / 1.702`, which keeps one
        tensor of the MLP's width where the product keeps two.
        """
        mlp = self.block.mlp
        if isinstance(mlp.gelu, QuickGELU):
            normed = F.silu(mlp.c_fc(normed).mul_(1.702)).div_(1.702)
            return self.block.ls_2(mlp.c_proj(normed))
        return self.block.ls_2(mlp(normed))


class ViTSteps(BlockSteps):
    """Steps of timm's vision transformers, such as those of SigLIP and MobileCLIP."""

    @property
    def activation(self) -> str:
        return type(self.block.mlp.act).__name__

    @staticmethod
    def why_not(block: Any) -> str | None:
        attn = block.attn
        if type(attn) not in (Attention, AttentionRope, EvaAttention):
            return f'its attention is of another kind ({type(attn).__name__})'
        if getattr(attn, 'gate', None) is not None:
            return 'its attention is gated'
        if getattr(attn, 'num_kv_heads', attn.num_heads) != attn.num_heads:
            return 'its heads share keys and values'
        return None

    def attn_norm(self, x: Tensor) -> Tensor:
        return self.block.norm1(x)

    def query(self, normed: Tensor, more: Sequence[Adapter] = ()) -> Tensor:
        attn = self.attn
        if attn.qkv is None:
            q = attn.q_proj(normed)
        else:
            bias = self.qkv_bias()
            d = len(attn.qkv.weight) // 3
            q = F.linear(normed, attn.qkv.weight[:d], None if bias is None else bias[:d])
        return attn.q_norm(self.heads(q, normed, more))

    def key_value(self, normed: Tensor, more: Sequence[Adapter] = ()) -> tuple[Tensor, Tensor]:
        attn = self.attn
        if attn.qkv is None:
            k, v = attn.k_proj(normed), attn.v_proj(normed)
        else:
            bias = self.qkv_bias()
            d = len(attn.qkv.weight) // 3
            kv = F.linear(normed, attn.qkv.weight[d:], None if bias is None else bias[d:])
            k, v = kv.chunk(2, -1)
        return attn.k_norm(self.heads(k, normed)), self.heads(v, normed, more)

    def qkv_bias(self) -> Tensor | None:
        """The bias of the queries, keys and values that one layer makes, [3 d]."""
        return self.attn.qkv.bias

    def attn_out(self, x: Tensor) -> Tensor:
        return self.block.ls1(self.attn.proj(self.attn.norm(x)))

    def mlp_norm(self, x: Tensor) -> Tensor:
        return self.block.norm2(x)

    def mlp(self, normed: Tensor) -> Tensor:
        return self.block.ls2(self.block.mlp(normed))


class EvaSteps(ViTSteps):
    """Steps of timm's Eva: EVA-01, EVA-02 and PE-Core, most with rotary positions."""

    def qkv_bias(self) -> Tensor | None:
        attn = self.attn
        if getattr(attn, 'q_bias', None) is None:
            return attn.qkv.bias
        return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])

    def rotate(self, heads: Tensor, position: Tensor) -> Tensor:
        half = getattr(self.attn, 'rotate_half', False)
        return apply_rot_embed_cat(heads, position[:, None], half=half).type_as(heads)

    def attn_out(self, x: Tensor) -> Tensor:
        return _scale(self.attn.proj(self.attn.norm(x)), self.block.gamma_1)

    def mlp(self, normed: Tensor) -> Tensor:
        return _scale(self.block.mlp(normed), self.block.gamma_2)


class EvaPostNormSteps(EvaSteps):
    """Steps of EVA-02-E, which normalises what a sublayer adds in place of what it reads."""

    def attn_norm(self, x: Tensor) -> Tensor:
        return x

    def attn_out(self, x: Tensor) -> Tensor:
        return self.block.norm1(self.attn.proj(self.attn.norm(x)))

    def mlp_norm(self, x: Tensor) -> Tensor:
        return x

    def mlp(self, normed: Tensor) -> Tensor:
        return self.block.norm2(self.block.mlp(normed))


def _scale(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma


BLOCK_KINDS: dict[type[nn.Module], type[BlockSteps]] = {
    ResidualAttentionBlock: OpenCLIPSteps,
    ViTBlock: ViTSteps,
    EvaBlock: EvaSteps,
    EvaBlockPostNorm: EvaPostNormSteps,
}


def steps_of(block: nn.Module) -> BlockSteps:
    """The steps of a block of a kind in :data:`BLOCK_KINDS`."""
    return BLOCK_KINDS[type(block)](block)


def why_not(blocks: nn.ModuleList) -> str | None:
    """Return why blocks cannot be prompted, or None."""
    for block in blocks:
        kind = BLOCK_KINDS.get(type(block))
        if kind is None:
            return f'its blocks are of another kind ({type(block).__name__})'
        if reason := kind.why_not(block):
            return reason
    return None
