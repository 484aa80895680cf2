"""The text encoder: captions to embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .clip import CLIPTowers, towers_of
from .encoder import PromptedEncoder
from .spec import TransformerSpec
from .towers import tower_of


@MODELS.register_module()
class TextEncoder(PromptedEncoder):
    r"""A CLIP's text tower with prompts after [SOS] (Sec. 3.2).

    Layer i computes, under CLIP's causal mask,

    .. math:: [s_i, \_, W_i] = L_i([s_{i-1}, P_i, W_{i-1}])

    with [SOS] s and words W. CLIP's positional embedding is added once the
    first layer's prompts are in, so they take the positions after [SOS], the
    words move up, and a caption keeps ``context_length`` - P slots. A longer
    one is cut and closed with [EOT] in the last slot. The embedding is read
    at [EOT].

    Some towers have no causal mask: all tokens see each other, prompts and
    padding among them. Those of SigLIP and CLIPA have no [SOS] and are read at
    their last slot: prompts come first, and a caption that is cut keeps the
    last token of its row in the last slot.

    Args:
        clip (dict | CLIPTowers): Towers, or the arguments of
            :func:`.clip.open_towers`.
        prompts (Sequence[dict]): Configs of prompts. Defaults to none.
        adapters (Sequence[dict]): Configs of adapters. Defaults to none.
        tuning (str): Which parameters of CLIP's tower train: ``'frozen'``
            (the default), ``'full'``, ``'bias'``, ``'proj'`` or
            ``'partial'``; see :func:`.tuning.unfreeze`.
        with_cp (bool): Trade time for memory by gradient checkpointing.
            Defaults to False.

    Raises:
        UserError: If a prompt does not fit the tower.

    Example:
        >>> text = TextEncoder(dict(name='ViT-B-32-quickgelu', pretrained='openai'),
        ...                    prompts=[dict(type='vop.LearnedPrompt', length=8)])
        >>> text(open_clip.tokenize(['a dog', 'a cat'])).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        clip: dict | CLIPTowers,
        prompts: Sequence[dict] = (),
        adapters: Sequence[dict] = (),
        tuning: str = 'frozen',
        with_cp: bool = False,
    ) -> None:
        towers = towers_of(clip)
        tower = tower_of(towers.text)
        spec = TransformerSpec(tower.width, len(tower.blocks))
        super().__init__(towers.text, towers.name, spec, prompts, adapters, tuning, with_cp)
        self.first_prompts = sum(prompt.length for prompt in self.prompts if prompt.serves(1))
        self.slots = towers.text.context_length - self.first_prompts
        self.is_causal = towers.text.attn_mask is not None
        self.reads_last = towers.text.pool_type == 'last'
        if self.slots < 2:
            raise UserError(
                f'{self.first_prompts} prompts leave no room for a caption in '
                f'the {towers.text.context_length} positions of '
                f'{towers.name}.'
            )

    @property
    def fixed_length(self) -> int | None:
        """The number of tokens of a row that :meth:`encode` needs; None where any will do."""
        return None if self.is_causal else self.backbone.context_length

    def fit(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Cut captions to the slots that the prompts leave.

        Args:
            tokens (Tensor): Token ids, of shape [n x t].

        Returns:
            tuple[Tensor, Tensor]: The ids, of shape [n x l]; and the slot of
            each that is read out, such as [EOT], of shape [n]. Under the causal mask
            nothing after an [EOT] reaches it, so l is the length of the
            longest caption; else all slots count.

        Raises:
            UserError: If a caption has no [EOT] where the CLIP looks for
                its id; or if a caption is not padded, and the CLIP reads padding.
        """
        clip = self.backbone
        if not self.is_causal and tokens.shape[1] < self.slots:
            raise UserError(
                f'{self.clip_name} reads the padding of captions, too: give all '
                f'{clip.context_length} tokens of each, not {tokens.shape[1]}.'
            )
        if clip.pool_type == 'eos' and not (tokens == clip.eos_id).any(-1).all():
            raise UserError(
                f'A caption has no [EOT] token ({clip.eos_id}). Was it '
                f'tokenised for another CLIP than {self.clip_name}?'
            )
        end = self.find_end(tokens)
        close = tokens.gather(1, end[:, None])
        end = end.clamp(max=self.slots - 1)
        tokens = tokens[:, : end.max() + 1 if self.is_causal else self.slots]
        return tokens.scatter(1, end[:, None], close), end

    def find_end(self, tokens: Tensor) -> Tensor:
        """Find the slot of each caption [n x t] that is read out, such as [EOT], of shape [n]."""
        clip = self.backbone
        if self.reads_last:
            return tokens.new_full(tokens.shape[:1], tokens.shape[1] - 1)
        if clip.pool_type == 'eos':
            return (tokens == clip.eos_id).int().argmax(-1)
        return tokens.argmax(-1)  # [EOT] has the highest id

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode captions.

        Args:
            tokens (Tensor): Token ids of CLIP's tokenizer, of shape [n x t].

        Returns:
            Tensor: Embeddings, of shape [n x e], not normalised.
        """
        return self.encode(*self.fit(tokens))

    def encode(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Encode captions that fit.

        Args:
            tokens (Tensor): Token ids as :meth:`fit` gives them, of shape [n x l].
            end (Tensor): The slot of each that is read out, of shape [n].

        Returns:
            Tensor: Embeddings, of shape [n x e], not normalised.
        """
        clip = self.backbone
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        length = tokens.shape[1]

        table, first = clip.positional_embedding, 0 if self.reads_last else 1
        own, moved = table.split([first + self.first_prompts, self.slots - first])
        x = clip.token_embedding(tokens) + torch.cat([own[:first], moved[: length - first]])

        masks = {}
        for layer in range(1, self.spec.layers + 1):
            prompts = [p[:, 0] for p in self.prompt_tokens(layer)]
            if layer == 1 and prompts:
                prompts = [torch.cat(prompts, dim=1) + own[first:]]
            count = sum(p.shape[1] for p in prompts)
            if self.is_causal and count not in masks:  # most often all layers share one
                masks[count] = self.mask(count, length, x.device)
            mask = masks.get(count)
            queries = None
            if layer == self.spec.layers:  # only [EOT] is read from it
                queries = x[rows, end, None]
                mask = None if mask is None else mask[end][:, None, None]
            x = self.run_block(layer, x, prompts, queries=queries, mask=mask)
        return self.project(x[:, 0])

    def project(self, x: Tensor) -> Tensor:
        """Project read-out tokens [n x d] to embeddings [n x e]."""
        x = self.backbone.ln_final(x)
        project = self.backbone.text_projection
        if project is None:
            return x
        return project(x) if isinstance(project, nn.Linear) else x @ project

    @staticmethod
    def mask(prompts: int, length: int, device: torch.device) -> Tensor:
        """Make the causal mask over [SOS], prompts and words.

        Prompts follow [SOS], so all tokens but [SOS] see them.

        Returns:
            Tensor: True where a token sees a key, of shape
            [length x (prompts + length)], keys of prompts first.
        """
        mask = torch.ones(length, prompts + length, dtype=torch.bool, device=device)
        mask[0, :prompts] = False
        return mask.tril(diagonal=prompts)
