"""What a prompted block keeps and computes; the encoders' tests hold what it
gives against the paper."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from projects.vop.models import open_towers
from projects.vop.models.block_kinds import steps_of
from projects.vop.models.blocks import prompted_block


@pytest.fixture
def block(tiny_clip):
    block = open_towers(tiny_clip).visual.transformer.resblocks[0]
    return block.requires_grad_(False)


@pytest.fixture
def tokens():
    """Eight sequences of 20 tokens, and 4 prompts that they share."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((8, 20, 64), (1, 4, 64))
    ]


def kept(run, block):
    """Numbers that autograd keeps of a run, the weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run()
    return sum(storages.values())


def test_keeps_no_more_than_the_backward_reads(block, tokens):
    x, prompts = tokens
    sequences, n, d = x.shape
    p = prompts.shape[1]
    # What both LayerNorms and the MLP's activation read, the queries, the
    # keys and values, and the attention's output.
    needed = sequences * d * (n * (1 + 1 + 4 + 1 + 1) + (n + p) * 2) + p * d
    # Means and deviations of LayerNorm, log-sum-exps of the attention.
    small = sequences * n * (2 * 2 + block.attn.num_heads) + 2 * p
    assert kept(lambda: prompted_block(block, x, [prompts]), block) <= needed + small


def test_computes_no_gradient_of_frozen_weights(block, tokens):
    x, prompts = tokens
    with FlopCounterMode(display=False) as counter:
        out = prompted_block(block, x, [prompts])
        linear = counter.flop_counts['Global'][torch.ops.aten.addmm]
        out.sum().backward()
    # addmm is a linear layer forward, mm its gradient by the input.
    assert counter.flop_counts['Global'][torch.ops.aten.mm] == linear > 0


def test_mlp_equals_that_of_open_clip(block, tokens):
    x, _ = tokens
    ours, theirs = steps_of(block).mlp(x), block.mlp(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), x)[0] for out in (ours, theirs)),
        rtol=1e-5,
        atol=1e-5,
    )
