"""One transformer block of a CLIP whose attention sees extra tokens."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor

Adapter = Callable[[Tensor], Tensor]


def prompted_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    prompts: Sequence[Tensor] = (),
    queries: Tensor | None = None,
    mask: Tensor | None = None,
    attn_adapters: Sequence[Adapter] = (),
    ffn_adapters: Sequence[Adapter] = (),
) -> Tensor:
    r"""Run a block on ``x`` with prompts among the keys and values.

    The paper's layer reads ``[c, P, E]`` (Sec. 3.2, Eq. 3) and throws away
    what comes out at the positions of ``P``. So of a prompt only its key and
    its value ever act; its query, its attention output and its MLP are never
    computed here:

    .. math::
        k, v &= W_{kv} LN_1([p; x]), \quad q = W_q LN_1(x) \\
        x &\leftarrow x + W_o\, attn(q, k, v), \quad
        x \leftarrow x + MLP(LN_2(x))

    This equals the paper's layer exactly, and a prompt that all sequences
    share costs one key and one value, not one for each of them.

    Args:
        block (ResidualAttentionBlock): The block of an open_clip tower.
        x (Tensor): The tokens, of shape [... x n x d].
        prompts (Sequence[Tensor]): Prompts of shape [... x p x d], whose
            leading dimensions are broadcast against those of ``x``.
        queries (Tensor, optional): Rows of ``x`` to compute, of shape
            [... x m x d], where not all of them are read afterwards.
            Defaults to all.
        mask (Tensor, optional): True where a query may see a key, the keys
            of the prompts first. Broadcast to [s x heads x m x (p + n)] with
            the leading dimensions of ``x`` flattened to s.
        attn_adapters (Sequence[Callable]): Adapters in parallel to the
            self-attention, each [... x m x d] to the same shape.
        ffn_adapters (Sequence[Callable]): Adapters in parallel to the MLP.

    Returns:
        Tensor: The queries after the block, of the shape of ``queries``.
    """
    attn, d = block.attn, x.shape[-1]
    weight, bias = attn.in_proj_weight, attn.in_proj_bias

    def keys_and_values(normed: Tensor) -> Tensor:
        return F.linear(normed, weight[d:], bias[d:])

    # Queries are made apart from keys and values, as attention keeps what it
    # reads for the backward pass: of a slice of all three, all three.
    context = block.ln_1(x)
    normed = context if queries is None else block.ln_1(queries)
    queries = x if queries is None else queries
    q, kv = F.linear(normed, weight[:d], bias[:d]), keys_and_values(context)
    if prompts:
        kv = torch.cat(
            [*(keys_and_values(block.ln_1(p)).expand(*x.shape[:-2], -1, -1) for p in prompts), kv],
            dim=-2,
        )

    def split_heads(tokens: Tensor) -> Tensor:
        tokens = tokens.reshape(-1, tokens.shape[-2], d)
        return tokens.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)

    k, v = kv.split(d, -1)
    out = F.scaled_dot_product_attention(
        split_heads(q), split_heads(k), split_heads(v), attn_mask=mask
    )
    out = attn.out_proj(out.transpose(1, 2).reshape(queries.shape))
    x = queries + block.ls_1(out)
    for adapter in attn_adapters:
        x = x + adapter(normed)
    normed = block.ln_2(x)
    x = x + block.ls_2(mlp(block, normed))
    for adapter in ffn_adapters:
        x = x + adapter(normed)
    return x


def mlp(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    r"""Run the MLP of a block, keeping little for the backward pass.

    QuickGELU, :math:`h \sigma(1.702 h)`, is :math:`silu(1.702 h) / 1.702`,
    which keeps one tensor of the MLP's width where the product keeps two.
    """
    if not isinstance(block.mlp.gelu, QuickGELU):
        return block.mlp(x)
    h = F.silu(block.mlp.c_fc(x).mul_(1.702)).div_(1.702)
    return block.mlp.c_proj(h)
