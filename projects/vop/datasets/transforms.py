"""Transforms that MMAction2 does not have."""
import open_clip
import torch
from mmcv.transforms import BaseTransform

from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class CLIPTokenize(BaseTransform):
    """Turn captions into token ids.

    A caption longer than CLIP's context is cut and closed with [EOT].

    Required key: ``text``, a caption or a list of n. Modified key: ``text``,
    int64 token ids of shape [t] or [n x t].

    Args:
        name (str): The open_clip model whose tokenizer to use. Defaults to
            ``'ViT-B-32-quickgelu'``, whose byte-pair encoding all of OpenAI's
            and nearly all of LAION's CLIPs share.
    """

    def __init__(self, name: str = 'ViT-B-32-quickgelu') -> None:
        self.tokenizer = open_clip.get_tokenizer(name)
        self.name = name

    def transform(self, results: dict) -> dict:
        """Tokenise ``results['text']``."""
        text = results['text']
        tokens: torch.Tensor = self.tokenizer(text)
        results['text'] = tokens[0] if isinstance(text, str) else tokens
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'
