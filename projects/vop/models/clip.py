"""Opening a CLIP as two towers that can be prompted."""

import difflib
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from mmengine.logging import print_log
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transformer import (
    QuickGELU,
    ResidualAttentionBlock,
    TextTransformer,
    VisionTransformer,
)
from torch import Tensor

from ..errors import UserError
from ..fileio import read_json


@dataclass(frozen=True)
class CLIPTowers:
    """The parts of a CLIP.

    Attributes:
        visual (VisionTransformer): The image tower.
        text (TextTransformer): The text tower.
        logit_scale (Tensor): The learned logarithm of the temperature's
            inverse, a scalar.
        name (str): What the CLIP was opened as, for messages.
        mean (tuple[float, ...]): Mean of the channels that it was trained
            with, of pixels in [0, 1]. OpenAI's where open_clip knows no
            other.
        std (tuple[float, ...]): Standard deviation likewise.

    Example:
        >>> towers = open_towers('ViT-B-32-quickgelu', 'openai')
        >>> one, other = (RetrievalRecognizer(towers) for _ in range(2))  # share it in memory
    """

    visual: VisionTransformer
    text: TextTransformer
    logit_scale: Tensor
    name: str
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    std: tuple[float, ...] = OPENAI_DATASET_STD


def open_towers(
    name: str = 'ViT-B-32-quickgelu',
    pretrained: str | None = None,
    cache_dir: str | None = None,
) -> CLIPTowers:
    """Open a CLIP of open_clip.

    Args:
        name (str): An open_clip model name, or the path of a model config in
            open_clip's JSON format. Defaults to ``'ViT-B-32-quickgelu'``,
            the paper's.
        pretrained (str, optional): A tag of open_clip's weights such as
            ``'openai'``, or the path of a weights file: a state dict of
            open_clip (``.pt``, ``.bin``, ``.safetensors``) or OpenAI's own
            JIT archive (``ViT-B-32.pt``). Defaults to random weights.
        cache_dir (str, optional): Where open_clip keeps its downloads.
            Defaults to open_clip's own choice.

    Returns:
        CLIPTowers: Both towers in float32.

    Raises:
        UserError: If there is no such model, tag or file, if the weights do
            not belong to the model or cannot be downloaded, or if it cannot
            be prompted.

    Example:
        >>> towers = open_towers('ViT-B-32-quickgelu', 'openai')
        >>> towers.visual.output_dim
        512
    """
    config = _model_config(name)
    _refuse_unpromptable(name, config)
    check_pretrained(dict(name=name, pretrained=pretrained))
    if pretrained is None:
        print_log(f'CLIP {name} has random weights (pretrained=None).', 'current', logging.WARNING)
        model = _make(config)
    elif Path(pretrained).is_file():
        model = _make(config)
        _load_weights(model, name, pretrained)
    else:
        model = _download(name, pretrained, cache_dir)
    trained_with = open_clip.get_pretrained_cfg(name, pretrained or '')
    towers = CLIPTowers(
        model.visual,
        model.text,
        model.logit_scale.detach(),
        f'{name} ({pretrained or "random weights"})',
        trained_with.get('mean') or OPENAI_DATASET_MEAN,
        trained_with.get('std') or OPENAI_DATASET_STD,
    )
    _check_towers(towers)
    return towers


def towers_of(clip: dict | CLIPTowers) -> CLIPTowers:
    """Open a CLIP by the arguments of :func:`open_towers`, or return open towers.

    Models that are given the same towers share them in memory.
    """
    return clip if isinstance(clip, CLIPTowers) else open_towers(**clip)


def check_pretrained(clip: dict) -> None:
    """Refuse weights that are not there, before anything is made.

    Args:
        clip (dict): Arguments of :func:`open_towers`.

    Raises:
        UserError: If ``pretrained`` is neither a file nor a tag.
    """
    name, pretrained = clip.get('name', 'ViT-B-32-quickgelu'), clip.get('pretrained')
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and pretrained not in tags and not Path(pretrained).is_file():
        raise UserError(
            f"pretrained='{pretrained}' is neither a file nor a tag of "
            f'{name}. Let model.clip.pretrained name a file, or one of its '
            f'tags: {", ".join(tags) or "(none)"}.'
        )


def _model_config(name: str) -> dict:
    """Read the config of an open_clip model or JSON file."""
    if name.endswith('.json'):
        if not Path(name).is_file():
            raise UserError(f'There is no model config {name}.')
        config = read_json(name)
        missing = {'embed_dim', 'vision_cfg', 'text_cfg'} - set(
            config if isinstance(config, dict) else ()
        )
        if missing:
            raise UserError(
                f'{name} is no open_clip model config: it lacks {", ".join(sorted(missing))}.'
            )
        return config
    config = open_clip.get_model_config(name)
    if config is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), 3)
        hint = f' Did you mean {" or ".join(close)}?' if close else ''
        raise UserError(f"open_clip has no model '{name}'.{hint}")
    return config


def _make(config: dict) -> open_clip.CustomTextCLIP:
    """Make a model with random weights.

    ``CustomTextCLIP`` holds the text tower as one module, which ``CLIP`` does
    not; else they are the same.
    """
    config = dict(config, vision_cfg=dict(config['vision_cfg'], patch_dropout=0.0))
    config.pop('custom_text', None)
    return open_clip.CustomTextCLIP(**config)


def _refuse_unpromptable(name: str, config: dict) -> None:
    """Refuse, by its config, a CLIP whose towers are not plain transformers.

    It is called before the model is made, so that a model of gigabytes is not
    downloaded to be refused.
    """
    vision, text = config['vision_cfg'], config['text_cfg']
    if 'multimodal_cfg' in config:
        reason = 'it is a CoCa, whose pooling has no [CLS] of its own'
    elif 'timm_model_name' in vision:
        reason = (
            f"its image tower is timm's {vision['timm_model_name']}, "
            "not open_clip's VisionTransformer with a [CLS]"
        )
    elif isinstance(vision.get('layers'), (list, tuple)):
        reason = 'its image tower is a ResNet, which has no tokens'
    elif 'hf_model_name' in text:
        reason = (
            f"its text tower is Hugging Face's {text['hf_model_name']}, "
            "not open_clip's TextTransformer"
        )
    else:
        return
    raise UserError(
        f'{name} cannot be prompted: {reason}. Choose a ViT CLIP '
        "such as 'ViT-B-32-quickgelu' or 'ViT-L-14'."
    )


def _check_towers(towers: CLIPTowers) -> None:
    """Refuse, by its modules, a CLIP that the encoders would get wrong."""
    visual, text = towers.visual, towers.text
    blocks = [*visual.transformer.resblocks, *text.transformer.resblocks]
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        reason = 'it has custom attention blocks'
    elif visual.attn_pool is not None or visual.pool_type != 'tok':
        reason = 'its image tower does not read out a [CLS] token'
    elif text.cls_emb is not None or text.attn_mask is None:
        reason = 'its text tower is not causal'
    elif text.pool_type not in ('argmax', 'eos'):
        reason = 'its text tower does not read out the [EOT] token'
    else:
        return
    raise UserError(f'{towers.name} cannot be prompted: {reason}.')


def _load_weights(model: open_clip.CustomTextCLIP, name: str, path: str) -> None:
    """Load a weights file into a freshly made model."""
    jit = _is_jit_archive(path)
    gelu = model.visual.transformer.resblocks[0].mlp.gelu
    if jit and not isinstance(gelu, QuickGELU):
        fix = (
            f'Set "quick_gelu": true in {name}.'
            if name.endswith('.json')
            else f"Set name='{name}-quickgelu'."
        )
        raise UserError(
            f"{path} is an archive of OpenAI's, whose models were trained "
            f'with QuickGELU, but {name} has GELU. {fix}'
        )
    try:
        if jit:
            # Weights in half precision, and three integers.
            state = torch.jit.load(path, map_location='cpu').state_dict()
            state = {k: v for k, v in state.items() if v.dim() or k == 'logit_scale'}
            model.load_state_dict(convert_to_custom_text_state_dict(state))
        else:
            open_clip.load_checkpoint(model, path)
    except Exception as error:
        raise UserError(f'{path} does not hold weights of {name}: {error}') from error


def _is_jit_archive(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(item.endswith('/constants.pkl') for item in archive.namelist())


def _download(name: str, tag: str, cache_dir: str | None) -> open_clip.CustomTextCLIP:
    """Make a model with the weights that open_clip knows by a tag."""
    try:
        return open_clip.create_model(
            name,
            pretrained=tag,
            cache_dir=cache_dir,
            force_custom_text=True,
            force_patch_dropout=0.0,
        )
    except (OSError, RuntimeError) as error:
        source = open_clip.get_pretrained_cfg(name, tag)
        where = ' or '.join(
            text
            for text in (
                source.get('url'),
                source.get('hf_hub') and f'{source["hf_hub"]} on the Hugging Face Hub',
            )
            if text
        )
        raise UserError(
            f"The weights '{tag}' of {name} could not be downloaded ({error})."
            f' Fetch them where there is a network, from {where}, put the '
            'file anywhere on this machine, and name it: --cfg-options '
            'model.clip.pretrained=FILE, or in the config.'
        ) from error
