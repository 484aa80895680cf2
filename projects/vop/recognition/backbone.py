"""The visual encoder as backbone of MMAction2's recognizers."""

from torch import Tensor

from ..errors import UserError
from ..models.vision import VideoEncoder
from ..registry import MODELS


@MODELS.register_module()
class VideoBackbone(VideoEncoder):
    """A ``VideoEncoder`` between MMAction2's recognizers and their heads.

    Only the layout of frames and of embeddings differs from the encoder's:

    ================  ====================  ============================
    recognizer        gives                 gets, for its heads
    ================  ====================  ============================
    ``Recognizer2D``  [(n f) x 3 x h x w]   [(n f) x e x 1 x 1]
    ``Recognizer3D``  [n x 3 x f x h x w]   [n x e x f x 1 x 1], or
                                            [n x e] with ``average``
    ================  ====================  ============================

    ``TSNHead`` averages the first over frames, ``I3DHead`` the second;
    ``TimeSformerHead`` and its like take the third.

    ``Recognizer2D`` does not say where a video ends: each ``num_frames``
    frames in a row are one, so a pipeline that samples ``num_frames`` of them
    (in one clip or in as many) fits, and crops may multiply them. With
    ``Recognizer3D`` a video may have any number of frames.

    The recognizer's data preprocessor normalises pixels in [0, 255]: give it
    255 times the mean and standard deviation of the CLIP.

    Args:
        average (bool): With ``Recognizer3D``, give the mean of the frame
            embeddings. Defaults to False.
        kwargs: Arguments of ``VideoEncoder``.

    Example:
        In a config, with ``Recognizer3D`` and ``I3DHead``::

            backbone=dict(
                type='vop.VideoBackbone',
                clip=dict(name='ViT-B-32-quickgelu', pretrained='openai'),
                prompts=[dict(type='vop.LearnedPrompt', length=8)])
    """

    def __init__(self, *args, average: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.average = average

    def forward(self, imgs: Tensor) -> Tensor:
        """Encode the frames of a recognizer.

        Args:
            imgs (Tensor): Normalised frames, of shape [(n f) x 3 x h x w] or
                [n x 3 x f x h x w].

        Returns:
            Tensor: Frame embeddings, not normalised; see the class.

        Raises:
            UserError: If the tensor is of another form, or its frames are
                not whole videos.
        """
        if imgs.dim() == 5 and imgs.shape[1] == 3:
            frames = super().forward(imgs.transpose(1, 2))
            if self.average:
                return frames.mean(dim=1)
            return frames.transpose(1, 2)[..., None, None]
        if imgs.dim() != 4 or self.average:
            raise UserError(
                'VideoBackbone takes frames [(n f) x 3 x h x w] of '
                'Recognizer2D, without average=True, or [n x 3 x f x h x w] '
                f'of Recognizer3D; got {list(imgs.shape)}. FormatShape gives '
                "the first with 'NCHW', the second with 'NCTHW'."
            )
        f = self.num_frames
        if len(imgs) % f:
            raise UserError(
                f'Recognizer2D gives {len(imgs)} frames, which are no whole '
                f'videos of num_frames={f}. Let the pipeline sample {f} '
                'frames per video, or set num_frames of the backbone.'
            )
        frames = super().forward(imgs.unflatten(0, (-1, f)))
        return frames.flatten(0, 1)[..., None, None]
