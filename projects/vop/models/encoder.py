"""What both encoders share: a CLIP tower, prompts, and a small state."""

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..compat import after_state_dict, before_load_state_dict
from ..errors import UserError, warn
from ..registry import MODELS
from .blocks import prompted_block
from .spec import TransformerSpec
from .towers import tower_of
from .tuning import unfreeze


class PromptedEncoder(nn.Module):
    """A tower of a CLIP with prompts and adapters in its layers.

    The state of an encoder is what was trained. The frozen weights are left
    out of ``state_dict`` (0.5 MB instead of 600 for VoP at ViT-B/32); in
    their place is a fingerprint of them, and loading a state onto other
    frozen weights than it was trained with is refused. ``tuning`` decides
    which weights those are, once: setting ``requires_grad`` later, as
    MMEngine's ``EMAHook`` does in its copy, changes no state.

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

    Example:
        Use :class:`.VideoEncoder` or :class:`.TextEncoder`; their state is
        what was trained:

        >>> [name for name in encoder.state_dict() if 'prompts' in name]
        ['prompts.0.tokens']
    """

    # Lists of modules, whose own attributes torch does not type.
    prompts: Any
    adapters: Any

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
        self.backbone: Any = backbone
        self.tower = tower_of(backbone)
        unfreeze(backbone, tuning)
        trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
        self._frozen = backbone.state_dict().keys() - trained
        self.prompts, self.adapters = (
            nn.ModuleList(MODELS.build(cfg, default_args=dict(spec=spec)) for cfg in configs)
            for configs in (prompts, adapters)
        )
        self.spec = spec
        self.with_cp = with_cp
        self.train()
        after_state_dict(self, _leave_out_frozen)
        before_load_state_dict(self, _put_back_frozen)

    def prompt_tokens(
        self, layer: int, cls: Tensor | None = None, num_frames: int | None = None
    ) -> list[Tensor]:
        """Give the tokens of each prompt that serves ``layer``; see ``Prompt.forward``."""
        return [prompt(layer, cls, num_frames) for prompt in self.prompts if prompt.serves(layer)]

    def run_block(self, layer: int, x: Tensor, prompts: list[Tensor], **kwargs) -> Tensor:
        """Run layer ``layer`` (from 1) on ``x``; see ``prompted_block``."""
        block = partial(prompted_block, self.tower.blocks[layer - 1])
        if self.with_cp and torch.is_grad_enabled():
            block = partial(checkpoint, block, use_reentrant=False)
        adapters: dict[str, Any] = defaultdict(list)
        for adapter in self.adapters:
            for place, own in adapter.of_layer(layer).items():
                adapters[f'{place}_adapters'].append(own)
        return block(x, prompts, **adapters, **kwargs)

    def frozen(self) -> Iterator[tuple[str, Tensor]]:
        """Give the names (relative to this module) and values of the frozen weights."""
        weights = itertools.chain(self.backbone.named_parameters(), self.backbone.named_buffers())
        return ((f'backbone.{name}', value) for name, value in weights if name in self._frozen)

    def train(self, mode: bool = True) -> 'PromptedEncoder':
        """Set training mode; the CLIP stays in eval mode, so that batch statistics are frozen."""
        super().train(mode)
        self.backbone.eval()  # which has no dropout
        return self

    def get_extra_state(self) -> Tensor:
        """Name the CLIP that the state belongs to, as the bytes of a JSON text.

        A tensor, so that whatever handles state dicts can handle it.
        """
        text = json.dumps(
            {'clip': self.clip_name, 'fingerprint': weights_fingerprint(self.frozen())}
        )
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a state that was trained with other frozen weights.

        Raises:
            UserError: If the fingerprints differ.
        """
        theirs = json.loads(bytes(state.tolist()).decode())
        if theirs['fingerprint'] != weights_fingerprint(self.frozen()):
            raise UserError(
                f'This checkpoint was trained on the CLIP {theirs["clip"]}, '
                f'but the model holds {self.clip_name} '
                f'({type(self).__name__}), whose frozen weights differ. Set '
                'model.clip in the config to the CLIP of the checkpoint.'
            )


def _leave_out_frozen(
    module: PromptedEncoder, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    for name, _ in module.frozen():
        state_dict.pop(prefix + name, None)
    trains = [prefix + name for name, parameter in module.frozen() if parameter.requires_grad]
    if trains:
        warn(
            f'{trains[0]} has requires_grad=True, but it was frozen when the encoder was made, '
            'so it is not saved: set tuning of the encoder instead.'
        )


def _put_back_frozen(module: PromptedEncoder, state_dict: dict, prefix: str, *args) -> None:
    for name, parameter in module.frozen():
        state_dict.setdefault(prefix + name, parameter.detach())


def weights_fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Make a short name for weights that changes when they do.

    It reads about 256 evenly spaced values of every tensor: any training step
    changes it, and it takes milliseconds where a hash over all of a CLIP
    takes seconds.

    Args:
        weights (Iterable[tuple[str, Tensor]]): Names and values.

    Returns:
        str: 32 hexadecimal digits.

    Example:
        >>> len(weights_fingerprint(model.named_parameters()))
        32
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in weights:
        digest.update(f'{name}{tuple(value.shape)}'.encode())
        value = value.detach().flatten()
        value = value[:: max(1, value.numel() // 256)].float().cpu()
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
