"""Counting what trains and what does not."""

import logging
from collections import Counter
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from ..registry import MODELS

# What the paper calls 100 %: the parameters of ViT-B/32's CLIP whose name
# ends in .weight or .bias.
PAPER_CLIP = 119_826_432


class ParameterCount(NamedTuple):
    """Numbers of parameters of a part of a model."""

    trained: int
    frozen: int


def build_without_weights(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device: shapes alone.

    Nothing is downloaded, and no memory is taken.

    Args:
        cfg (Config): The config. Left as it is.

    Returns:
        nn.Module: The model.
    """
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)  # random weights are meant here
    scope = cfg.get('default_scope', 'mmaction')
    try:
        with torch.device('meta'), DefaultScope.overwrite_default_scope(scope):
            return MODELS.build(_without_weights(cfg.model))
    finally:
        logger.setLevel(level)


def _without_weights(model: dict) -> dict:
    """A copy whose CLIPs, wherever they stand, have random weights."""
    parts = {
        key: _without_weights(part) if isinstance(part, dict) else part
        for key, part in model.items()
    }
    if 'clip' in parts:
        parts['clip']['pretrained'] = None
    return parts


def count_by_part(model: nn.Module) -> dict[str, ParameterCount]:
    """ParameterCount parameters, part by part.

    Args:
        model (nn.Module): A model, on any device.

    Returns:
        dict[str, ParameterCount]: Counts of ``visual.backbone``, ``visual.prompts.0``
        and so on, in the model's order. Parameters only: buffers such as the
        logit scale, and what has no elements, are left out.
    """
    trained, frozen = Counter(), Counter()
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
    """ParameterCount trained parameters as Table 1 of the paper does.

    Of CLIP's own, those whose name ends in ``.weight`` or ``.bias``: not the
    input projection of the attention, and loose tensors only where nothing
    else of CLIP trains (Proj). Of what is added, all but the embedding of
    frame positions of VoP^F. This gives every row but VoP^F+C, where the
    paper prints less than its parts have.

    Args:
        model (nn.Module): A model, on any device.

    Returns:
        int: The number.
    """
    trained = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.endswith('frame_positional_embedding')
    }
    clip = {name: n for name, n in trained.items() if '.backbone.' in name}
    counted = {name: n for name, n in clip.items() if name.endswith(('.weight', '.bias'))}
    return sum(trained.values()) - sum(clip.values()) + sum((counted or clip).values())
