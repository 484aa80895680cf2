"""The visual encoder: frames to frame embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..registry import MODELS
from .clip import CLIPTowers, towers_of
from .encoder import PromptedEncoder
from .spec import TransformerSpec, frame_index
from .towers import tower_of


@MODELS.register_module()
class VideoEncoder(PromptedEncoder):
    r"""CLIP's image tower, prompted for video (Sec. 3.2 and 3.3).

    Layers 1 to K_s work on each frame alone; with its prompts P_i, layer i
    computes (Eq. 3)

    .. math:: [c_i, \_, E_i] = L_i([c_{i-1}, P_i, E_{i-1}])

    Before layer K_s + 1 a learned embedding of the frame's position is added
    to every token of the frame, and from there on a layer attends over the
    tokens of all frames at once (VoP^F, Sec. 3.3.3). In the first layer the
    prompts pass through CLIP's ``ln_pre`` as the other tokens do. A frame is
    read out by itself, of what the last layer gives for its tokens.

    Args:
        clip (dict | CLIPTowers): Towers, or the arguments of
            :func:`.clip.open_towers`.
        prompts (Sequence[dict]): Configs of prompts. Defaults to none.
        adapters (Sequence[dict]): Configs of adapters. Defaults to none.
        tuning (str): Which parameters of CLIP's tower train: ``'frozen'``
            (the default), ``'full'``, ``'bias'``, ``'proj'`` or
            ``'partial'``; see :func:`.tuning.unfreeze`.
        num_frames (int): Number F of frames that tables of positions are made
            for. A video may have another number; see
            :func:`.spec.frame_index`. Defaults to 12.
        temporal_layers (int): Number K - K_s of last layers that attend over
            the whole video. Defaults to 0.
        cls_update (dict, optional): Config of a ``ContextUpdate``, an
            ablation of the paper. Defaults to none.
        init_std (float): Standard deviation of the normal distribution that
            the embedding of frame positions starts from. Defaults to 0.02.
        with_cp (bool): Trade time for memory by gradient checkpointing.
            Defaults to False.

    Raises:
        UserError: If ``temporal_layers``, ``cls_update`` or a prompt does not
            fit the tower.

    Example:
        >>> visual = VideoEncoder(dict(name='ViT-B-32-quickgelu', pretrained='openai'),
        ...                       prompts=[dict(type='vop.LearnedPrompt', length=8)])
        >>> visual(torch.randn(2, 12, 3, 224, 224)).shape  # 2 videos of 12 frames
        torch.Size([2, 12, 512])
    """

    def __init__(
        self,
        clip: dict | CLIPTowers,
        prompts: Sequence[dict] = (),
        adapters: Sequence[dict] = (),
        tuning: str = 'frozen',
        num_frames: int = 12,
        temporal_layers: int = 0,
        cls_update: dict | None = None,
        init_std: float = 0.02,
        with_cp: bool = False,
    ) -> None:
        towers = towers_of(clip)
        tower = tower_of(towers.visual)
        layers = len(tower.blocks)
        if not 0 <= temporal_layers <= layers:
            raise UserError(f'temporal_layers must be 0 to {layers}, got {temporal_layers}.')
        if num_frames < 1:
            raise UserError(f'num_frames must be positive, got {num_frames}.')
        frame_layers = layers - temporal_layers
        spec = TransformerSpec(tower.width, layers, frame_layers, num_frames)
        if cls_update is not None and not tower.has_cls:
            raise UserError(f'cls_update updates the [CLS], which {towers.name} has not.')
        if cls_update is not None and not frame_layers:
            raise UserError(
                'cls_update acts in layers that work within a '
                f'frame, but temporal_layers={temporal_layers} '
                'leaves none.'
            )
        super().__init__(towers.visual, towers.name, spec, prompts, adapters, tuning, with_cp)
        self.num_frames, self.frame_layers = num_frames, frame_layers
        self.cls_update: nn.Module | None = None
        if cls_update is not None:
            self.cls_update = MODELS.build(cls_update, default_args=dict(spec=spec))
        self.frame_positional_embedding: nn.Parameter | None = None
        if temporal_layers:
            self.frame_positional_embedding = nn.Parameter(
                torch.empty(num_frames, spec.width).normal_(std=init_std)
            )

    @property
    def sees_order(self) -> bool:
        """Whether an embedding can depend on the order of the frames, and not on their set alone.

        It can with prompts that differ between frames, with ``cls_update``, and with layers that
        attend over the whole video.
        """
        per_frame = any(prompt.per_frame for prompt in self.prompts)
        return per_frame or self.cls_update is not None or self.frame_layers < self.spec.layers

    def forward(self, frames: Tensor) -> Tensor:
        """Encode videos.

        Args:
            frames (Tensor): Normalised frames, of shape [b x f x 3 x h x w].

        Returns:
            Tensor: Frame embeddings, of shape [b x f x e], not normalised.

        Raises:
            UserError: If the frames are not of CLIP's size.
        """
        size = tuple(self.backbone.image_size)
        if frames.dim() != 5 or tuple(frames.shape[-2:]) != size:
            raise UserError(
                f'{self.clip_name} takes frames of {size} pixels, '
                'as a tensor [b x f x 3 x h x w]; got '
                f'{list(frames.shape)}. Check Resize and the crop in the '
                'pipeline.'
            )
        b, f = frames.shape[:2]
        tower = self.tower
        x = tower.embed(frames.flatten(0, 1)).unflatten(0, (b, f))
        position = tower.position
        # Of a patch it is that in its frame, whichever frame it is.
        video_position = None if position is None else position.repeat(f, 1)
        table = self.frame_positional_embedding
        for layer in range(1, self.spec.layers + 1):
            if table is not None and layer == self.frame_layers + 1:
                index = frame_index(f, len(table), table.device)
                x = x + table[index][:, None]
            if self.cls_update is not None and layer <= self.frame_layers:
                cls = self.cls_update(x[:, :, 0])
                x = torch.cat([cls[:, :, None], x[:, :, 1:]], dim=2)
            prompts = self.prompt_tokens(layer, tower.cls(x), f)
            if layer == 1:
                prompts = [tower.pre_norm(tokens) for tokens in prompts]
            # Most CLIPs read only the [CLS] tokens from the last layer.
            is_read_out = layer == self.spec.layers and tower.reads_cls
            queries = x[:, :, :1] if is_read_out else None
            if layer <= self.frame_layers:
                x = self.run_block(layer, x, prompts, queries=queries, position=position)
            else:
                x = self.run_block(
                    layer,
                    x.flatten(1, 2),
                    [tokens[:, 0] for tokens in prompts],
                    queries=None if queries is None else queries.flatten(1, 2),
                    position=video_position,
                ).unflatten(1, (f, -1))
        return tower.read_out(x.flatten(0, 1)).unflatten(0, (b, f))
