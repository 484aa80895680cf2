"""The model that MMEngine's Runner trains and tests."""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .clip import CLIPTowers, towers_of

if TYPE_CHECKING:
    from mmaction.structures import ActionDataSample


@MODELS.register_module()
class RetrievalRecognizer(BaseModel):
    """Text-video retrieval with a prompted CLIP.

    A video's embedding is the mean of its L2-normalised frame embeddings
    (Sec. 3.1), normalised again so that dot products are cosines.

    Args:
        clip (dict | CLIPTowers): Arguments of :func:`.clip.open_towers`, or
            towers, which models can share. CLIP and its logit scale stay
            frozen.
        visual (dict): Arguments of ``VideoEncoder`` (or of another encoder
            named by ``type``).
        text (dict): Arguments of ``TextEncoder`` (likewise).
        loss (dict): Config of the loss. Defaults to ``ContrastiveLoss``.
        normalize_video (bool): Normalise the mean of the frame embeddings.
            The authors' released code does not. Defaults to True.
        adapter (dict, optional): Config of a module that makes one embedding
            [b x e] of frame embeddings [b x f x e] in place of the mean, such
            as MMAction2's ``SimpleMeanAdapter`` and ``TransformerAdapter``.
            It gets them as ``VideoEncoder`` gives them, not normalised, as
            in MMAction2's ``CLIPSimilarity``: ``TransformerAdapter`` adds
            what it computes to its input, so the scale of that says how much
            it changes. Defaults to none.
        data_preprocessor (dict): Config of the data preprocessor. Defaults to
            ``RetrievalDataPreprocessor`` with the mean and standard deviation
            of pixels that the CLIP was trained with.

    Example:
        >>> model = RetrievalRecognizer(
        ...     clip=dict(name='ViT-B-32-quickgelu', pretrained='openai'),
        ...     visual=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]),
        ...     text=dict(prompts=[dict(type='vop.LearnedPrompt', length=8)]))
        >>> model.encode_text(open_clip.tokenize(['a dog'])).shape
        torch.Size([1, 512])
    """

    def __init__(
        self,
        clip: dict | CLIPTowers,
        visual: dict = dict(),
        text: dict = dict(),
        loss: dict = dict(type='vop.ContrastiveLoss'),
        normalize_video: bool = True,
        adapter: dict | None = None,
        data_preprocessor: dict = dict(type='vop.RetrievalDataPreprocessor'),
    ) -> None:
        towers = towers_of(clip)
        super().__init__(
            data_preprocessor=dict(mean=towers.mean, std=towers.std) | dict(data_preprocessor)
        )
        self.visual = MODELS.build(dict(type='vop.VideoEncoder', clip=towers) | dict(visual))
        self.text = MODELS.build(dict(type='vop.TextEncoder', clip=towers) | dict(text))
        self.register_buffer('logit_scale', towers.logit_scale.clone(), persistent=False)
        self.loss = MODELS.build(loss)
        self.normalize_video = normalize_video
        self.adapter: nn.Module | None = None
        if adapter is not None:
            self.adapter = MODELS.build(adapter)

    def encode_video(self, frames: Tensor) -> Tensor:
        """Embed videos.

        Args:
            frames (Tensor): Normalised frames, of shape [b x f x 3 x h x w].

        Returns:
            Tensor: Of shape [b x e].
        """
        video = self.visual(frames)
        if self.adapter is None:
            video = F.normalize(video, dim=-1).mean(dim=1)
        else:
            video = self.adapter(video)
        return F.normalize(video, dim=-1) if self.normalize_video else video

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed captions.

        Args:
            tokens (Tensor): Token ids, of shape [n x t].

        Returns:
            Tensor: L2-normalised, of shape [n x e].
        """
        return F.normalize(self.text(tokens), dim=-1)

    def forward(
        self,
        inputs: dict[str, Tensor],
        data_samples: 'list[ActionDataSample] | None' = None,
        mode: str = 'tensor',
    ) -> 'dict[str, Tensor] | list[ActionDataSample] | tuple[Tensor, Tensor]':
        """Run the model as MMEngine does.

        Args:
            inputs (dict[str, Tensor]): ``imgs``, normalised frames of shape
                [b x f x 3 x h x w]; ``text``, token ids of shape [n x t]; and
                ``num_texts``, of shape [b], how many of the n captions belong
                to each video (one each in training).
            data_samples (list[ActionDataSample], optional): One per video.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'``.

        Returns:
            ``'tensor'``: video embeddings [b x e] and text embeddings
            [n x e]. ``'loss'``: the losses. ``'predict'``: the data samples
            with ``video_feature`` [e] and ``text_feature`` [captions x e].
        """
        # Texts first: they ask for the length of the longest, and a GPU that has to answer is
        # better not asked behind all its work on the frames.
        text = self.encode_text(inputs['text'])
        video = self.encode_video(inputs['imgs'])
        if mode == 'tensor':
            return video, text
        if mode == 'loss':
            if len(video) != len(text):
                raise UserError(
                    f'Training takes one caption per video, got {len(text)} '
                    f'captions for {len(video)} videos. Does the training '
                    'data set have test_mode=True?'
                )
            return self.loss(video, text, self.logit_scale.exp())
        if mode == 'predict':
            assert data_samples is not None  # MMEngine gives them
            texts = text.split(inputs['num_texts'].tolist())
            for sample, v, t in zip(data_samples, video, texts):
                # Copies, or each sample would keep the whole batch in memory.
                sample.video_feature = v.clone()
                sample.text_feature = t.clone()
            return data_samples
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}.")
