"""The text encoder of the authors' one released model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..registry import MODELS
from .text import TextEncoder


@MODELS.register_module()
class ModelScopeTextEncoder(TextEncoder):
    r"""CLIP's text tower with prompts on both sides of the words.

    This is what ``damo/cv_vit-b32_retrieval_vop`` of ModelScope computes, the
    only model that the authors of the paper (arXiv 2211.12764) released; it
    is not the paper's layout, which :class:`.TextEncoder` has. Layer i
    computes, under CLIP's causal mask over all 77 positions,

    .. math:: [s_i, \_, W_i, \_, z_i] = L_i([s_{i-1}, P_i, W_{i-1}, S_i,
        z_{i-1}])

    with [SOS] s, the words and the zeros after them W, and the token z of
    the last slot. CLIP's positional embedding is added once the prompts of
    the first layer are in. A caption has the slots that the prompts leave; a
    longer one is cut and closed with [EOT] in the last of them.

    The embedding is read from the last layer as many positions after slot
    [EOT] of the caption as there are prompts, while only the prefix moved the
    words up. So for a short caption it is read from the zeros after it; for
    one that nearly fills its slots, at a suffix prompt; and at [EOT] only if
    that is in the last slot.

    Args:
        prompts (Sequence[dict]): Configs of two prompts that serve every
            layer: the prefix P and the suffix S.
        kwargs: As :class:`.TextEncoder` takes them.

    Raises:
        UserError: If there are not two prompts, or one of them leaves out a
            layer.

    Example:
        In a config::

            text=dict(
                type='vop.ModelScopeTextEncoder',
                prompts=[dict(type='vop.LearnedPrompt', length=4),
                         dict(type='vop.LearnedPrompt', length=4)])
    """

    words_at: Tensor
    prompts_at: Tensor

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not self.is_causal:
            raise UserError(
                f'ModelScopeTextEncoder needs a causal text tower, which {self.clip_name} has not. '
                'Use TextEncoder.'
            )
        layers = [(p.first, p.last) for p in self.prompts]
        if layers != [(1, self.spec.layers)] * 2:
            raise UserError(
                'ModelScopeTextEncoder: prompts must be two that serve all '
                f'layers, the prefix and the suffix; got {len(layers)}, of '
                f'layers {layers}. Leave out `layers`, or use TextEncoder.'
            )
        prefix, suffix = (p.length for p in self.prompts)
        last = self.backbone.context_length - 1
        at = torch.arange(last + 1)
        words = at[:1], at[1 + prefix : last - suffix], at[last:]
        prompts = at[1 : 1 + prefix], at[last - suffix : last]
        self.register_buffer('words_at', torch.cat(words), persistent=False)
        self.register_buffer('prompts_at', torch.cat(prompts), persistent=False)

    @property
    def fixed_length(self) -> int:
        return self.slots

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode captions.

        Args:
            tokens (Tensor): Token ids of CLIP's tokenizer, of shape [n x t],
                zeros after [EOT].

        Returns:
            Tensor: Embeddings, of shape [n x e], not normalised.
        """
        cut, end = self.fit(tokens)
        # As released, a caption's slots are all filled: with zeros at its end.
        whole = F.pad(tokens, (0, self.slots - tokens.shape[1]))
        whole = whole.scatter(1, end[:, None], cut.gather(1, end[:, None]))
        return self.encode(whole, end, int(end.max()) + self.first_prompts + 1)

    def encode(self, tokens: Tensor, end: Tensor, length: int | None = None) -> Tensor:
        """Encode captions that fit.

        Args:
            tokens (Tensor): Token ids of all slots, of shape [n x slots].
            end (Tensor): The slot of the [EOT] of each, of shape [n].
            length (int, optional): Positions to compute, up to the last that is read. Defaults to
                all.

        Returns:
            Tensor: Embeddings, of shape [n x e], not normalised.
        """
        clip = self.backbone
        length = length or clip.context_length
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        read = end + self.first_prompts
        ids = tokens.new_zeros(tokens.shape[0], clip.context_length)
        ids[:, self.words_at] = tokens
        x = clip.token_embedding(ids[:, :length])
        at = self.prompts_at
        if length < clip.context_length:
            at = at[at < length]

        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for layer in range(1, self.spec.layers + 1):
            prompts = torch.cat(self.prompt_tokens(layer), dim=2)[0, 0]
            prompts = prompts[: len(at)].expand(x.shape[0], -1, -1)
            x = x.index_copy(1, at, prompts.to(x.dtype))
            if layer == 1:
                x = x + clip.positional_embedding[:length]
            queries = None
            if layer == self.spec.layers:  # one position is read from it
                queries, mask = x[rows, read, None], mask[read][:, None, None]
            x = self.run_block(layer, x, [], queries=queries, mask=mask)
        return self.project(x[:, 0])
