"""What both encoders share: a CLIP tower, prompts, and a small state."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..registry import MODELS
from .blocks import prompted_block
from .spec import TransformerSpec
from .tuning import unfreeze


class PromptedEncoder(nn.Module):
    """A tower of a CLIP with prompts and adapters in its layers.

    The state of an encoder is what was trained. The frozen weights are left
    out of ``state_dict`` (0.5 MB instead of 600 for VoP at ViT-B/32); in
    their place stands a fingerprint of them, and loading a state onto other
    frozen weights than it was trained with is refused.

    Args:
        backbone (nn.Module): A tower as :func:`.clip.open_towers` gives it.
        clip_name (str): The CLIP that it comes from, for messages.
        spec (TransformerSpec): What prompts and adapters have to know of it.
        prompts (Sequence[dict]): Configs of prompts.
        adapters (Sequence[dict]): Configs of adapters.
        tuning (str): Which parameters of the backbone train; see
            :func:`.tuning.unfreeze`.
        with_cp (bool): Compute a layer again in the backward pass instead of
            keeping its activations.
    """

    def __init__(
        self,
        backbone: nn.Module,
        clip_name: str,
        spec: TransformerSpec,
        prompts: Sequence[dict],
        adapters: Sequence[dict],
        tuning: str,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.clip_name = clip_name
        self.backbone = backbone
        unfreeze(backbone, tuning)
        self.prompts, self.adapters = (
            nn.ModuleList(MODELS.build(cfg, default_args=dict(spec=spec)) for cfg in configs)
            for configs in (prompts, adapters)
        )
        self.spec = spec
        self.with_cp = with_cp
        self._register_state_dict_hook(_leave_out_frozen)

    def prompt_tokens(self, layer: int, cls: Tensor | None = None) -> list[Tensor]:
        """The tokens that each prompt has for ``layer``; see Prompt."""
        return [prompt(layer, cls) for prompt in self.prompts if prompt.serves(layer)]

    def run_block(self, layer: int, x: Tensor, prompts: list[Tensor], **kwargs) -> Tensor:
        """Run layer ``layer`` (from 1) on ``x``; see ``prompted_block``."""
        block = partial(prompted_block, self.backbone.transformer.resblocks[layer - 1])
        if self.with_cp and torch.is_grad_enabled():
            block = partial(checkpoint, block, use_reentrant=False)
        adapters = {'attn': [], 'ffn': []}
        for adapter in self.adapters:
            adapters[adapter.parallel_to].append(adapter.layers[layer - 1])
        return block(
            x, prompts, attn_adapters=adapters['attn'], ffn_adapters=adapters['ffn'], **kwargs
        )

    def frozen(self) -> Iterator[tuple[str, Tensor]]:
        """Names (from this module) and values of the frozen weights."""
        return (
            (f'backbone.{name}', parameter)
            for name, parameter in self.backbone.named_parameters()
            if not parameter.requires_grad
        )

    def get_extra_state(self) -> Tensor:
        """The CLIP that the state belongs to, as the bytes of a JSON text.

        A tensor, so that whatever handles state dicts can handle it.
        """
        text = json.dumps({'clip': self.clip_name, 'fingerprint': fingerprint(self.frozen())})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a state that was trained with other frozen weights.

        Raises:
            ValueError: If the fingerprints differ.
        """
        theirs = json.loads(bytes(state.tolist()).decode())
        if theirs['fingerprint'] != fingerprint(self.frozen()):
            raise ValueError(
                f'This checkpoint was trained on the CLIP {theirs["clip"]}, '
                f'but the model holds {self.clip_name} '
                f'({type(self).__name__}), whose frozen weights differ. Set '
                'model.clip in the config to the CLIP of the checkpoint.'
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # What was left out when the state was saved is this model's own.
        for name, parameter in self.frozen():
            state_dict.setdefault(prefix + name, parameter.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)


def _leave_out_frozen(
    module: PromptedEncoder, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    for name, _ in module.frozen():
        state_dict.pop(prefix + name, None)


def fingerprint(weights: Iterator[tuple[str, Tensor]]) -> str:
    """A short name for weights that changes when they do.

    It reads some 256 evenly spaced values of every tensor: any training
    step changes it, and it takes milliseconds where a hash over all of a CLIP
    takes seconds.

    Args:
        weights (Iterator[tuple[str, Tensor]]): Names and values.

    Returns:
        str: 32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in weights:
        digest.update(f'{name}{tuple(value.shape)}'.encode())
        value = value.detach().flatten()
        value = value[:: max(1, value.numel() // 256)].float().cpu()
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
