"""Classes as captions: recognition through CLIP's text tower."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmaction.models.heads import BaseHead
from torch import Tensor

from ..clip_config import open_tokenizer, tokenizer_serves
from ..compat import before_load_state_dict
from ..errors import UserError
from ..fileio import read_text
from ..models.clip import CLIPTowers, towers_of
from ..registry import MODELS


@MODELS.register_module()
class CaptionHead(BaseHead):
    r"""A head of MMAction2 whose classes are captions.

    The score of class c for a video is CLIP's

    .. math:: \lambda \cos(v, t_c)

    with the inverse temperature :math:`\lambda`. v is the mean of the
    normalised frame embeddings, as in ``RetrievalRecognizer``; :math:`t_c`
    the mean of the normalised embeddings of the class name in each template,
    as in CLIP's ensembles. Nothing has to be trained: without prompts this
    is zero-shot recognition.

    Class embeddings are computed once and kept until the model switches
    between training and testing, loads weights or moves to another device or
    dtype. Only a text encoder that trains embeds them at each training step.

    Args:
        classes (str | Sequence[str]): Names of the classes in the order of
            their labels, or a file with one per line, such as MMAction2's
            ``tools/data/kinetics/label_map_k400.txt``.
        clip (dict | CLIPTowers): Towers, or the arguments of
            :func:`..models.clip.open_towers`: the CLIP of the backbone.
        text (dict): Arguments of ``TextEncoder`` (or of another encoder
            named by ``type``).
        templates (Sequence[str]): Captions with ``{}`` for the name.
            Defaults to the name alone.
        tokenizer (str, optional): The CLIP whose tokenizer to use. Defaults
            to the one of ``clip``.
        average_clips (str, optional): How to average several views of a
            video; see MMAction2's ``BaseHead``. Defaults to ``'prob'``.
        kwargs: Other arguments of ``BaseHead``, such as ``loss_cls``.

    Raises:
        UserError: If there is no file of classes, a name or a template
            cannot be used, or the tokenizer is that of another CLIP.

    Example:
        In a config::

            cls_head=dict(
                type='vop.CaptionHead',
                classes='data/kinetics400/label_map_k400.txt',
                clip=dict(name='ViT-B-32-quickgelu', pretrained='openai'),
                templates=['a video of {}'])
    """

    def __init__(
        self,
        classes: str | Sequence[str],
        clip: dict | CLIPTowers,
        text: dict = dict(),
        templates: Sequence[str] = ('{}',),
        tokenizer: str | None = None,
        average_clips: str | None = 'prob',
        **kwargs,
    ) -> None:
        names = read_classes(classes)
        if (
            isinstance(templates, str)
            or not templates
            or any('{}' not in template for template in templates)
        ):
            raise UserError(
                'templates must be a list of captions with {} '
                f'for the class name, got {templates!r}.'
            )
        towers = towers_of(clip)
        super().__init__(
            num_classes=len(names),
            in_channels=towers.embed_dim,
            average_clips=average_clips,
            **kwargs,
        )
        self.text = MODELS.build(dict(type='vop.TextEncoder', clip=towers) | dict(text))
        tokenizer = tokenizer or towers.tokenizer['name']
        if not tokenizer_serves(tokenizer, **towers.tokenizer):
            raise UserError(f'tokenizer={tokenizer!r} is not that of {towers.name}. Leave it out.')
        tokenize = open_tokenizer(tokenizer, towers.tokenizer['cache_dir'])
        self.register_buffer(
            'tokens',  # [templates x classes x t]
            torch.stack(
                [
                    tokenize([template.replace('{}', name) for name in names])
                    for template in templates
                ]
            ),
            persistent=False,
        )
        self.register_buffer('logit_scale', towers.logit_scale.clone(), persistent=False)
        # The embeddings of the classes, with the device and dtype of the model.
        self.kept: tuple[tuple, Tensor] | None = None
        before_load_state_dict(self, CaptionHead.forget)

    def embed_classes(self) -> Tensor:
        """Embed all classes: L2-normalised, of shape [classes x e]."""
        embeddings = [F.normalize(self.text(tokens), dim=-1) for tokens in self.tokens]
        return F.normalize(torch.stack(embeddings).mean(0), dim=-1)

    def class_embeddings(self) -> Tensor:
        """Embed all classes only where their embeddings can have changed."""
        if self.training and any(p.requires_grad for p in self.text.parameters()):
            return self.embed_classes()
        key = self.logit_scale.device, self.logit_scale.dtype
        if self.kept is None or self.kept[0] != key:
            with torch.no_grad():
                self.kept = key, self.embed_classes()
        return self.kept[1]

    def forget(self, *args) -> None:
        """Forget the embeddings of the classes."""
        self.kept = None

    def train(self, mode: bool = True) -> 'CaptionHead':
        """Switch between training and testing; see ``nn.Module.train``."""
        self.forget()
        return super().train(mode)

    def forward(self, x: Tensor, num_segs: int | None = None, **kwargs) -> Tensor:
        """Score the classes.

        Args:
            x (Tensor): Frame embeddings as ``VideoBackbone`` gives them:
                [(n f) x e x 1 x 1] from ``Recognizer2D``, [n x e x f x 1 x 1]
                from ``Recognizer3D``.
            num_segs (int, optional): Frames f of a video, which
                ``Recognizer2D`` says.
            kwargs: Not used.

        Returns:
            Tensor: Of shape [n x classes].

        Raises:
            UserError: If these are not embeddings of the CLIP's joint space.
        """
        if x.dim() == 5:
            frames = x.flatten(2).transpose(1, 2)
        elif x.dim() == 4 and num_segs is not None:
            frames = x.flatten(1).unflatten(0, (-1, num_segs))
        else:
            raise UserError(
                'CaptionHead takes what vop.VideoBackbone gives without '
                f'average=True, got {list(x.shape)}. In the pipeline, '
                "FormatShape is 'NCHW' for Recognizer2D and 'NCTHW' for "
                'Recognizer3D.'
            )
        if frames.shape[-1] != self.in_channels:
            raise UserError(
                f'CaptionHead takes embeddings of {self.in_channels} numbers, '
                f'got {frames.shape[-1]}. Backbone and head need the same '
                'CLIP.'
            )
        video = F.normalize(F.normalize(frames, dim=-1).mean(dim=1), dim=-1)
        classes = self.class_embeddings()
        # At least float32: half precision is too coarse for logits.
        dtype = torch.promote_types(video.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return self.logit_scale.exp() * (video.to(dtype) @ classes.to(dtype).T)


def read_classes(classes: str | Sequence[str]) -> list[str]:
    """Read and check class names.

    Args:
        classes (str | Sequence[str]): The names, or a file with one per line.

    Returns:
        list[str]: The names.

    Raises:
        UserError: If there is no such file, or if a name is empty or listed
            twice, which would shift or confuse the labels.
    """
    source, names = 'classes', classes
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise UserError(
                f'There is no file {classes} of class names. It has one name '
                "per line, in the order of the labels, as MMAction2's "
                'tools/data/kinetics/label_map_k400.txt.'
            )
        source = classes
        names = read_text(classes).splitlines()
    names = [name.strip() for name in names]
    if not names:
        raise UserError(f'{source} names no class.')
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f'{source}: name {number} is empty.')
        if name in names[: number - 1]:
            raise UserError(
                f'{source}: "{name}" is listed twice, as '
                f'number {names.index(name) + 1} and {number}.'
            )
    return names
