"""A stand-in for OpenAI's package ``clip``, which is on GitHub alone.

MMAction2's ``CLIPTokenize`` and ``CLIPSimilarity`` import it. Where it is not
installed, importing this module puts what they use in its place, made of
open_clip; where it is, nothing changes. A config asks for it by::

    custom_imports = dict(
        imports=['projects.vop', 'projects.vop.openai_clip'],
        allow_failed_imports=False)
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from open_clip.model import build_model_from_openai_state_dict
from open_clip.pretrained import download_pretrained_from_url, get_pretrained_url
from torch import Tensor, nn


def load(
    name: str, device: str | torch.device = 'cpu', download_root: str | None = None
) -> tuple[nn.Module, Callable]:
    """Open one of OpenAI's CLIPs, with OpenAI's names of parameters.

    Args:
        name (str): OpenAI's name, such as ``'ViT-B/32'``, or the path of its
            archive.
        device (str | torch.device): Where to put it. Defaults to ``'cpu'``.
        download_root (str, optional): Folder of downloads. Defaults to
            open_clip's own choice.

    Returns:
        tuple[nn.Module, Callable]: The model, in float32; and the transform
        that makes its input of a PIL image.

    Raises:
        ConnectionError: If the archive could not be downloaded.
        ValueError: If there is no such model or file, or it is no archive of
            OpenAI's.
    """
    path = name
    if not Path(name).is_file():
        url = get_pretrained_url(name.replace('/', '-').replace('@336px', '-336'), 'openai')
        if not url:
            raise ValueError(
                f"'{name}' is neither a CLIP of OpenAI's, such as 'ViT-B/32', nor a file."
            )
        try:
            path = download_pretrained_from_url(url, cache_dir=download_root)
        except OSError as error:
            raise ConnectionError(
                f'{name} could not be downloaded ({error}). Fetch {url} where '
                'there is a network, and give its path in place of the name.'
            ) from error
    try:
        state = torch.jit.load(path, map_location='cpu').state_dict()
        model = build_model_from_openai_state_dict(state, cast_dtype=torch.float32)
    except Exception as error:
        raise ValueError(f"{path} is no archive of OpenAI's: {error}") from error
    size = model.visual.image_size
    return (model.float().to(device), open_clip.image_transform(size, is_train=False))


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Turn captions into token ids.

    Args:
        texts (str | list[str]): One caption or n.
        context_length (int): Number t of ids. Defaults to 77.
        truncate (bool): Cut captions that are too long. Defaults to False.

    Returns:
        Tensor: int32, of shape [n x t].

    Raises:
        RuntimeError: If a caption is too long, unless ``truncate``.
    """
    texts = [texts] if isinstance(texts, str) else texts
    longer = open_clip.tokenize(texts, context_length + 1)
    too_long = longer[:, context_length].nonzero().flatten().tolist()
    if too_long and not truncate:
        raise RuntimeError(
            f'Input {texts[too_long[0]]} is too long for context length {context_length}'
        )
    return open_clip.tokenize(texts, context_length).int()


if importlib.util.find_spec('clip') is None:
    sys.modules['clip'] = sys.modules[__name__]
