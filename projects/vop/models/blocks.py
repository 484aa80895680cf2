"""One transformer block of a CLIP whose attention sees extra tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block_kinds import Adapter, steps_of


def prompted_block(
    block: nn.Module,
    x: Tensor,
    prompts: Sequence[Tensor] = (),
    queries: Tensor | None = None,
    mask: Tensor | None = None,
    position: Tensor | None = None,
    attn_adapters: Sequence[Adapter] = (),
    ffn_adapters: Sequence[Adapter] = (),
    query_adapters: Sequence[Adapter] = (),
    value_adapters: Sequence[Adapter] = (),
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
        block (nn.Module): A block of one of the :data:`.block_kinds.BLOCK_KINDS`.
        x (Tensor): The tokens, of shape [... x n x d].
        prompts (Sequence[Tensor]): Prompts of shape [... x p x d], whose
            leading dimensions are broadcast against those of ``x``.
        queries (Tensor, optional): Rows of ``x`` to compute, of shape
            [... x m x d], where not all of them are read afterwards.
            Defaults to all.
        mask (Tensor, optional): True where a query may see a key, the keys
            of the prompts first. Broadcast to [s x heads x m x (p + n)] with
            the leading dimensions of ``x`` flattened to s.
        position (Tensor, optional): The rotary position of each token of
            ``x``, of shape [n x 2 r], sines and cosines. Prompts have none,
            nor have ``queries`` that are given.
        attn_adapters (Sequence[Callable]): Adapters in parallel to the
            self-attention, each [... x m x d] to the same shape.
        ffn_adapters (Sequence[Callable]): Adapters in parallel to the MLP.
        query_adapters (Sequence[Callable]): Adapters in parallel to the
            projection that makes the queries.
        value_adapters (Sequence[Callable]): Likewise the values.

    Returns:
        Tensor: The queries after the block, of the shape of ``queries``.
    """
    steps = steps_of(block)
    context = steps.attn_norm(x)
    # Queries are made apart from keys and values, as attention keeps what it
    # reads for the backward pass: of a slice of all three, all three.
    normed = context if queries is None else steps.attn_norm(queries)
    q = steps.query(normed, query_adapters)
    k, v = steps.key_value(context, value_adapters)
    if position is not None:
        k = steps.rotate(k, position)
        q = steps.rotate(q, position) if queries is None else q
    if prompts:
        of_prompts = [steps.key_value(steps.attn_norm(p), value_adapters) for p in prompts]
        k, v = (
            torch.cat([*(e.expand(*x.shape[:-2], -1, -1, -1) for e in extra), own], dim=-3)
            for *extra, own in zip(*of_prompts, (k, v))
        )

    def as_batch(heads: Tensor) -> Tensor:
        return heads.reshape(-1, *heads.shape[-3:]).transpose(1, 2)

    out = F.scaled_dot_product_attention(as_batch(q), as_batch(k), as_batch(v), attn_mask=mask)
    queries = x if queries is None else queries
    x = queries + steps.attn_out(out.transpose(1, 2).reshape(*queries.shape[:-1], -1))
    for adapter in attn_adapters:
        x = x + adapter(normed)
    normed = steps.mlp_norm(x)
    x = x + steps.mlp(normed)
    for adapter in ffn_adapters:
        x = x + adapter(normed)
    return x
