"""Opening a CLIP as two towers that can be prompted."""

import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import open_clip
from mmengine.logging import print_log
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, factory
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from ..clip_config import HF_HUB, PAPER_CLIP, own_weights, read_clip_config, short_reason
from ..errors import UserError, warn
from .clip_weights import is_jit_archive, read_weights
from .towers import TOWER_KINDS

CHOOSE = "Choose a ViT, such as 'ViT-B-32-quickgelu', 'PE-Core-B-16' or 'ViT-B-16-SigLIP2'."


@dataclass(frozen=True)
class CLIPTowers:
    """The parts of a CLIP.

    Attributes:
        visual (nn.Module): The image tower, of one of the
            :data:`.towers.TOWER_KINDS`.
        text (TextTransformer): The text tower.
        logit_scale (Tensor): The learned logarithm of the temperature's
            inverse, a scalar.
        embed_dim (int): Width e of an embedding.
        name (str): What the CLIP was opened as, for messages.
        mean (tuple[float, ...]): Mean of the channels that it was trained
            with, of pixels in [0, 1]. OpenAI's where open_clip knows no
            other.
        std (tuple[float, ...]): Standard deviation likewise.
        tokenizer (dict): The arguments of :func:`..clip_config.open_tokenizer`
            for its captions.

    Example:
        >>> towers = open_towers('ViT-B-32-quickgelu', 'openai')
        >>> one, other = (RetrievalRecognizer(towers) for _ in range(2))  # share it in memory
    """

    visual: nn.Module
    text: TextTransformer
    logit_scale: Tensor
    embed_dim: int
    name: str
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    std: tuple[float, ...] = OPENAI_DATASET_STD
    tokenizer: dict = field(default_factory=lambda: dict(name=PAPER_CLIP, cache_dir=None))


def open_towers(
    name: str = PAPER_CLIP,
    pretrained: str | None = None,
    cache_dir: str | None = None,
    load_weights: bool = True,
) -> CLIPTowers:
    """Open a CLIP of open_clip.

    Args:
        name (str): An open_clip model name; or the path of a model config in
            open_clip's JSON format; or, in open_clip's words, what has
            weights of its own: ``'local-dir:FOLDER'`` with
            ``open_clip_config.json`` and a file of weights, or
            ``'hf-hub:ORG/NAME'`` for such a repository of the Hugging Face
            Hub. Defaults to ``'ViT-B-32-quickgelu'``, the paper's.
        pretrained (str, optional): A tag of open_clip's weights such as
            ``'openai'``, or a file of weights; see
            :func:`.clip_weights.read_weights`. Defaults to the weights that
            ``name`` has of its own, and to random ones if it has none.
        cache_dir (str, optional): Where open_clip keeps its downloads.
            Defaults to open_clip's own choice.
        load_weights (bool): False leaves the weights random, and opens and
            downloads none. Defaults to True.

    Returns:
        CLIPTowers: Both towers in float32.

    Raises:
        UserError: If there is no such model, tag or file, if the weights do
            not belong to the model or cannot be downloaded, or if it cannot
            be prompted.

    Example:
        >>> towers = open_towers('ViT-B-32-quickgelu', 'openai')
        >>> towers.embed_dim
        512
    """
    config, mean, std, _ = read_clip_config(name, pretrained, cache_dir)
    _refuse_unpromptable(name, config)
    model = _make(config, name)
    for tower in (model.visual, model.text):
        kind = TOWER_KINDS.get(type(tower))
        if reason := kind.why_not(tower) if kind else 'its towers are of another kind':
            raise UserError(f'{name} cannot be prompted: {reason}. {CHOOSE}')
    source = 'random weights'
    file = None
    if load_weights:
        file = _weights_file(name, pretrained, cache_dir)
        source = pretrained or file or source
        if file is None:
            warn(f'CLIP {name} has random weights (pretrained=None).')
    if file is not None:
        _load_weights(model, config, name, pretrained, file)
    return CLIPTowers(
        model.visual,
        model.text,
        model.logit_scale.detach(),
        config['embed_dim'],
        f'{name} ({source})',
        mean,
        std,
        dict(name=name, cache_dir=cache_dir),
    )


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
    name, pretrained = clip.get('name', PAPER_CLIP), clip.get('pretrained')
    if pretrained is None:
        own_weights(name, clip.get('cache_dir'))
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained in tags or Path(pretrained).is_file():
        return
    hint = f'one of its tags: {", ".join(tags) or "(none)"}'
    if ':' in name:
        hint = 'None to take the weights of its own'
    elif Path(pretrained).is_dir():
        hint = f"set clip.name='local-dir:{pretrained}' if it is a folder that open_clip saved"
    raise UserError(
        f"pretrained='{pretrained}' is neither a file nor a tag of {name}. Let "
        f'model.clip.pretrained name a file, or {hint}.'
    )


def _weights_file(name: str, pretrained: str | None, cache_dir: str | None) -> str | None:
    """Find or download the file of a CLIP's weights; None are to be random."""
    if pretrained is None:
        return own_weights(name, cache_dir)
    check_pretrained(dict(name=name, pretrained=pretrained))
    return pretrained if Path(pretrained).is_file() else _download(name, pretrained, cache_dir)


def _make(config: dict, name: str) -> open_clip.CustomTextCLIP:
    """Make a model with random weights.

    ``CustomTextCLIP`` holds the text tower as one module, which ``CLIP`` does
    not; else they are the same.
    """
    vision = dict(config['vision_cfg'], patch_dropout=0.0)
    if 'timm_model_name' in vision:  # whose own weights are replaced
        vision |= dict(timm_drop=0.0, timm_drop_path=None, timm_model_pretrained=False)
    config = dict(config, vision_cfg=vision)
    # The last two are of SigLIP's loss.
    for key in ('custom_text', 'nonscalar_logit_scale', 'init_logit_bias'):
        config.pop(key, None)
    try:
        return open_clip.CustomTextCLIP(**config)
    except MemoryError:
        raise
    except Exception as error:  # what a config says can be wrong in many ways
        if name in open_clip.list_models():
            raise
        raise UserError(
            f'open_clip cannot make a model of the config of {name}: {short_reason(error)}'
        ) from error


def _refuse_unpromptable(name: str, config: dict) -> None:
    """Refuse, by its config, a CLIP whose towers come from neither open_clip nor timm.

    It is called before the model is made, which may download them.
    """
    vision, text = config['vision_cfg'], config['text_cfg']
    if 'multimodal_cfg' in config:
        reason = 'it is a CoCa, whose pooling has no [CLS] of its own'
    elif isinstance(vision.get('layers'), (list, tuple)):
        reason = 'its image tower is a ResNet, which has no tokens'
    elif 'hf_model_name' in text:
        reason = (
            f"its text tower is Hugging Face's {text['hf_model_name']}, "
            "not open_clip's TextTransformer"
        )
    else:
        return
    raise UserError(f'{name} cannot be prompted: {reason}. {CHOOSE}')


def _load_weights(
    model: open_clip.CustomTextCLIP, config: dict, name: str, pretrained: str | None, file: str
) -> None:
    """Load a file of weights, if they were not trained with another activation."""
    if pretrained is None and name.startswith(HF_HUB) and is_jit_archive(Path(file)):
        raise UserError(
            f'The weights of {name} are TorchScript, which is code, and only tensors are loaded '
            'from the Hub. Choose another repository, or if you trust it, name its file '
            f'{file} by clip.pretrained.'
        )
    weights = read_weights(file, model.state_dict(), name)
    has_quick = bool(config.get('quick_gelu'))
    ours, other = ('QuickGELU', 'GELU') if has_quick else ('GELU', 'QuickGELU')
    in_file = name not in open_clip.list_models()
    if in_file:
        where = name if name.endswith('.json') else f'the open_clip_config.json of {name}'
        fix = f'set "quick_gelu": {str(not has_quick).lower()} in {where}'
    else:
        twin = name.removesuffix('-quickgelu') if has_quick else f'{name}-quickgelu'
        fix = f"set clip.name='{twin}'"
        if twin not in open_clip.list_models():
            fix = f'give its config as a JSON file with "quick_gelu": {str(not has_quick).lower()}'
    is_tag = pretrained not in (None, file)
    tag = open_clip.get_pretrained_cfg(name, pretrained) if is_tag else {}
    if not has_quick and (weights.openai or tag.get('quick_gelu')):
        what = f"The weights '{pretrained}'" if is_tag else f"{file} is OpenAI's, whose models"
        raise UserError(f'{what} were trained with QuickGELU, but {name} has GELU: {fix}.')
    # Of timm's image towers there is one activation; a user's config may name its own.
    is_told = weights.openai or 'timm_model_name' in config['vision_cfg']
    if pretrained == file and not is_told and not (in_file and 'quick_gelu' in config):
        _warn_once(
            f'{file} does not tell its activation: {ours} is assumed, as of {name}. If it was '
            f'trained with {other}, {fix}.'
        )
    model.load_state_dict(weights.state)


@cache
def _warn_once(message: str) -> None:
    print_log(message, 'current', logging.WARNING)


def _download(name: str, tag: str, cache_dir: str | None) -> str:
    """Download the file of weights that open_clip knows by a tag."""
    source = open_clip.get_pretrained_cfg(name, tag)
    try:
        if file := factory.download_pretrained(source, cache_dir=cache_dir):
            return file
        raise OSError('open_clip knows no address')
    except Exception as error:  # of the network, the hub or its package
        where = ' or '.join(
            text
            for text in (
                source.get('url'),
                source.get('hf_hub') and f'{source["hf_hub"]} on the Hugging Face Hub',
            )
            if text
        )
        raise UserError(
            f"The weights '{tag}' of {name} could not be downloaded ({short_reason(error)})."
            f' Fetch them where there is a network, from {where}, put the '
            'file anywhere on this machine, and name it: --cfg-options '
            'model.clip.pretrained=FILE, or in the config.'
        ) from error
