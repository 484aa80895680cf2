"""Counting trained and frozen parameters."""

from collections import Counter
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode

from ..registry import MODELS

# What the paper calls 100 %: the parameters of CLIP ViT-B/32 whose names end
# in .weight or .bias.
PAPER_CLIP_PARAMETERS = 119_826_432


class ParameterCount(NamedTuple):
    """Numbers of parameters of a part of a model.

    Attributes:
        trained (int): Parameters that get a gradient.
        frozen (int): All others.

    Example:
        >>> parts = count_by_part(model)
        >>> parts['visual.prompts.0']
        ParameterCount(trained=73728, frozen=0)
        >>> sum(part.trained for part in parts.values())
        122880
    """

    trained: int
    frozen: int


def build_without_weights(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device, where it has shapes only.

    Nothing is downloaded, and no memory is allocated.

    Args:
        cfg (Config): The config; it is not changed.

    Returns:
        nn.Module: The model.

    Example:
        >>> model = build_without_weights(open_config('configs/vop_msrvtt.py'))
    """
    scope = cfg.get('default_scope', 'mmaction')
    with torch.device('meta'), _NoValues(), DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(_without_weights(cfg.model))


class _NoValues(TorchFunctionMode):
    """Leaves out what fills tensors, which takes most of the time and changes no shape."""

    fills = frozenset(
        f'{name}_' for name in 'normal uniform erfinv mul add div clamp zero fill copy'.split()
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ in self.fills:
            return args[0] if args else kwargs['tensor']
        return func(*args, **kwargs)


def _without_weights(model: Any) -> Any:
    """A copy of a model's config in which no CLIP, at any depth, loads weights."""
    if isinstance(model, (list, tuple)):
        return [_without_weights(part) for part in model]
    if not isinstance(model, dict):
        return model
    parts = {key: _without_weights(part) for key, part in model.items()}
    if isinstance(parts.get('clip'), dict):
        parts['clip']['load_weights'] = False
    return parts


def count_by_part(model: nn.Module) -> dict[str, ParameterCount]:
    """Count the parameters of each part of a model.

    Args:
        model (nn.Module): A model on any device.

    Returns:
        dict[str, ParameterCount]: Counts of ``visual.backbone``,
        ``visual.prompts.0`` and so on, in the order of the model. Buffers,
        such as the logit scale, are not counted.
    """
    trained, frozen = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        part = _part(name)
        trained[part] += parameter.numel() * parameter.requires_grad
        frozen[part] += parameter.numel() * (not parameter.requires_grad)
    return {part: ParameterCount(trained[part], frozen[part]) for part in trained}


def _part(name: str) -> str:
    """``visual.prompts.0`` for ``visual.prompts.0.fc.weight``."""
    words = name.split('.')
    depth = 3 if words[1:2] in (['prompts'], ['adapters']) else 2
    return '.'.join(words[:depth])


def count_as_paper(model: nn.Module) -> int:
    """Count the trained parameters as Table 1 of the paper does.

    CLIP's own parameters count if their names end in ``.weight`` or ``.bias``,
    which leaves out the input projection of attention; the others count only
    where nothing else of CLIP trains (Proj). Added parameters count, except
    for the frame positional embedding of VoP^F. This gives every row of the
    table except VoP^F+C, where the paper prints less than its parts have.

    Args:
        model (nn.Module): A model on any device.

    Returns:
        int: The number of parameters.
    """
    trained = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.endswith('frame_positional_embedding')
    }
    clip = {name: n for name, n in trained.items() if '.backbone.' in name}
    counted = {name: n for name, n in clip.items() if name.endswith(('.weight', '.bias'))}
    return sum(trained.values()) - sum(clip.values()) + sum((counted or clip).values())
