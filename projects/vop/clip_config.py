"""What the name of a CLIP stands for: its config, its weights and its tokenizer.

A name is one of open_clip's models, a JSON file, ``local-dir:FOLDER`` or
``hf-hub:ORG/NAME``. It names no weights if it is one of the first two.
"""

import difflib
import os.path as osp
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, SimpleTokenizer, factory
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from .errors import UserError
from .fileio import ROOT, read_json

LOCAL_DIR, HF_HUB = 'local-dir:', 'hf-hub:'
PAPER_CLIP = 'ViT-B-32-quickgelu'
OPENAI_VOCABULARY = 49408  # words of the tokenizer that most CLIPs share


class CLIPConfig(NamedTuple):
    """What is known of a CLIP without its weights.

    Attributes:
        model (dict): The arguments of open_clip's model.
        mean (tuple[float, ...]): Mean of the channels that it was trained
            with, of pixels in [0, 1]; OpenAI's where nothing else is said.
        std (tuple[float, ...]): Standard deviation likewise.
        interpolation (str): How its pictures were resized; ``'bicubic'``
            where nothing else is said.

    Example:
        >>> read_clip_config('ViT-B-32-quickgelu').size
        (224, 224)
    """

    model: dict
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        size = self.model['vision_cfg'].get('image_size', 224)
        return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def short_reason(error: Exception) -> str:
    """What another package says of an error, in at most 100 characters of a line."""
    text = ' '.join(str(error).split())
    return text if len(text) <= 100 else f'{text[:97]}...'


def read_clip_config(
    name: str, pretrained: str | None = None, cache_dir: str | None = None
) -> CLIPConfig:
    """Read what is known of a CLIP.

    Args:
        name (str): As of :func:`.models.clip.open_towers`.
        pretrained (str, optional): Likewise; a tag says with which mean and
            deviation its weights were trained.
        cache_dir (str, optional): Where downloads are kept.

    Returns:
        CLIPConfig: Its config; it may be changed.

    Raises:
        UserError: If there is no such model, file, folder or repository, or
            what it holds is not a config of open_clip.

    Example:
        >>> read_clip_config('local-dir:downloads/CLIP-ViT-B-32').mean
        (0.48145466, 0.4578275, 0.40821073)
    """
    file = _config_file(name, cache_dir)
    if file is None:
        model = open_clip.get_model_config(name)
        if model is None:
            close = difflib.get_close_matches(name, open_clip.list_models(), 3)
            hint = f' Did you mean {" or ".join(close)}?' if close else ''
            if Path(name).is_dir():
                hint = f" It is a folder: '{LOCAL_DIR}{name}' opens it."
            raise UserError(f"open_clip has no model '{name}'.{hint}")
        pixels = open_clip.get_pretrained_cfg(name, pretrained or '') or _common_pixels(name)
    else:
        if not file.is_file():
            raise UserError(f'There is no model config {file}.')
        whole = read_json(file)
        # As saved with weights; without them it is the inner part alone.
        model = whole.get('model_cfg', whole) if isinstance(whole, dict) else {}
        parts = dict(vision_cfg=dict, text_cfg=dict, embed_dim=int)
        faulty = [k for k, t in parts.items() if not isinstance(_get(model, k), t)]
        if faulty:
            raise UserError(
                f'{file} is no open_clip model config: it lacks {", ".join(sorted(faulty))}.'
            )
        pixels = whole.get('preprocess_cfg') or {}
    mean = _channels(file, pixels, 'mean', OPENAI_DATASET_MEAN)
    std = _channels(file, pixels, 'std', OPENAI_DATASET_STD)
    interpolation = _get(pixels, 'interpolation') or 'bicubic'
    return CLIPConfig(model, mean, std, interpolation)


def _common_pixels(name: str) -> dict:
    """What all weights that open_clip has of a model say of their pictures."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    each = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    keys = 'mean', 'std', 'interpolation'
    same = [key for key in keys if len({str(cfg.get(key)) for cfg in each}) == 1]
    return {key: each[0].get(key) for key in same}


def _channels(file: Path | None, pixels: Any, key: str, default: tuple) -> tuple[float, ...]:
    """Read three numbers; a deviation is above 0."""
    values = _get(pixels, key) or default
    numbers = isinstance(values, (list, tuple)) and len(values) == 3
    if not numbers or not all(
        isinstance(value, (int, float)) and isfinite(value) and (key == 'mean' or value > 0)
        for value in values
    ):
        raise UserError(f'{file}: {key} of preprocess_cfg must be three numbers.')
    return tuple(values)


def absolute_name(name: str) -> str:
    """Make the name of a CLIP, or a file of weights, one that serves in any working directory.

    Example:
        >>> absolute_name('local-dir:downloads/CLIP-ViT-B-32')
        'local-dir:/home/user/downloads/CLIP-ViT-B-32'
    """
    if name.startswith(LOCAL_DIR):
        return LOCAL_DIR + osp.abspath(name.removeprefix(LOCAL_DIR))
    name = _here_or_packaged(name)
    return osp.abspath(name) if osp.isfile(name) else name


def _get(mapping: Any, key: str) -> Any:
    return mapping.get(key) if isinstance(mapping, dict) else None


def _config_file(name: str, cache_dir: str | None) -> Path | None:
    """Where the config of a CLIP lies; None if open_clip has it."""
    if name in (LOCAL_DIR, HF_HUB):
        raise UserError(f"clip.name='{name}' ends where a name is expected.")
    if name.startswith(LOCAL_DIR):
        return Path(name.removeprefix(LOCAL_DIR)) / HF_CONFIG_NAME
    if name.startswith(HF_HUB):
        return Path(_fetch(name, HF_CONFIG_NAME, cache_dir))
    return Path(_here_or_packaged(name)) if name.endswith('.json') else None


def _here_or_packaged(name: str) -> str:
    """The path of a file, which may be one of the package's configs."""
    return str(ROOT / name) if not osp.isfile(name) and osp.isfile(ROOT / name) else name


def _fetch(name: str, filename: str, cache_dir: str | None) -> str:
    """Download a file of a repository, or find it among earlier downloads."""
    repository = name.removeprefix(HF_HUB)
    try:
        return factory.download_pretrained_from_hf(repository, filename, cache_dir=cache_dir)
    except Exception as error:  # of the network, the hub or its package
        raise UserError(
            f'{filename} of {name} could not be downloaded. Check the name. Without a network, '
            f"copy the repository to a folder, and set clip.name='{LOCAL_DIR}FOLDER'."
        ) from error


def own_weights(name: str, cache_dir: str | None = None) -> str | None:
    """Find the weights that the name of a CLIP stands for.

    Args:
        name (str): As of :func:`.models.clip.open_towers`.
        cache_dir (str, optional): Where downloads are kept.

    Returns:
        str | None: Their file; None if the name stands for a config alone.

    Raises:
        UserError: If it stands for weights, and they are not there or not to
            be told from others.

    Example:
        >>> own_weights('local-dir:downloads/CLIP-ViT-B-32')
        'downloads/CLIP-ViT-B-32/open_clip_model.safetensors'
    """
    if name.startswith(HF_HUB):
        return _fetch(name, HF_WEIGHTS_NAME, cache_dir)  # which prefers safetensors
    if not name.startswith(LOCAL_DIR):
        return None
    folder = Path(name.removeprefix(LOCAL_DIR))
    for file in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        if (folder / file).is_file():
            return str(folder / file)
    others = [
        path
        for suffix in ('safetensors', 'bin', 'pt', 'pth')
        for path in sorted(folder.glob(f'*.{suffix}'))
    ]
    if len(others) != 1:
        raise UserError(
            f'{folder} holds {"several files of weights" if others else "no weights"}, and no '
            f'{HF_SAFE_WEIGHTS_NAME} or {HF_WEIGHTS_NAME}. Name a file of weights by '
            'clip.pretrained.'
        )
    return str(others[0])


def open_tokenizer(name: str = PAPER_CLIP, cache_dir: str | None = None) -> Callable[..., Tensor]:
    """Open the tokenizer of a CLIP.

    Args:
        name (str): As of :func:`.models.clip.open_towers`. Defaults to
            ``'ViT-B-32-quickgelu'``.
        cache_dir (str, optional): Where downloads are kept.

    Returns:
        Callable: Takes a caption or a list of n, and optionally
        ``context_length``; returns token ids, of shape [n x context_length].

    Raises:
        UserError: If there is no such CLIP, or its tokenizer cannot be opened.

    Example:
        >>> open_tokenizer()(['a dog', 'a cat']).shape
        torch.Size([2, 77])
    """
    text = read_clip_config(name, cache_dir=cache_dir).model['text_cfg']
    settings = dict(context_length=text.get('context_length', 77))
    settings |= text.get('tokenizer_kwargs') or {}
    source = text.get('hf_tokenizer_name')
    try:
        if not (source or ':' in name or name.endswith('.json')):
            return open_clip.get_tokenizer(name)
        if not source:
            return SimpleTokenizer(**settings)
        if name.startswith(LOCAL_DIR):  # as open_clip saves it
            source = name.removeprefix(LOCAL_DIR)
        # Code that comes with a tokenizer is not run.
        settings |= dict(cache_dir=cache_dir, trust_remote_code=False)
        return HFTokenizer(source, tokenizer_mode=text.get('tokenizer_mode'), **settings)
    except ImportError as error:
        raise UserError(
            f'The tokenizer of {name} needs transformers: pip install transformers.'
        ) from error
    except Exception as error:  # of a damaged file, the network or the hub
        raise UserError(
            f'The tokenizer {source or ""} of {name} cannot be opened: {short_reason(error)}'
        ) from error


def tokenizer_serves(tokenizer: str, name: str = PAPER_CLIP, cache_dir: str | None = None) -> bool:
    """Whether the tokenizer of one CLIP makes the token ids of another.

    Args:
        tokenizer (str): Name of the first.
        name (str): Name of the second. Defaults to ``'ViT-B-32-quickgelu'``.
        cache_dir (str, optional): Where downloads are kept.

    Raises:
        UserError: If there is no such CLIP, or it does not name the tokenizer
            that it needs.

    Example:
        >>> tokenizer_serves('ViT-B-32-quickgelu', 'ViT-H-14-worldwide')
        False
    """
    kinds, lengths = [], []
    for clip in (tokenizer, name):
        text = read_clip_config(clip, cache_dir=cache_dir).model['text_cfg']
        kind = text.get('hf_tokenizer_name')
        if not kind and text.get('vocab_size', OPENAI_VOCABULARY) < OPENAI_VOCABULARY:
            raise UserError(
                f'{clip} has {text["vocab_size"]} words, fewer than the {OPENAI_VOCABULARY} of '
                "CLIP's own tokenizer. Name its tokenizer in text_cfg.hf_tokenizer_name."
            )
        kinds.append((kind or None, text.get('tokenizer_mode'), text.get('tokenizer_kwargs') or {}))
        lengths.append(text.get('context_length', 77))
    # A longer caption is cut where the prompts leave no slot.
    return kinds[0] == kinds[1] and lengths[0] >= lengths[1]
