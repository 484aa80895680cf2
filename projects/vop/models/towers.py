"""The kinds of towers that can be prompted, each as what an encoder needs of it."""

from types import NoneType
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from .block_kinds import why_not


class Tower:
    """What all towers have.

    Args:
        module (nn.Module): The tower of a CLIP.

    Attributes:
        blocks_name (str): The name of its list of blocks.
        projection (tuple[str, ...]): Name prefixes of the parameters of the output projection.
        width (int): Width of a token.

    Example:
        >>> len(tower_of(towers.text).blocks)
        12
    """

    blocks_name = 'transformer.resblocks'
    projection: tuple[str, ...] = ()
    width: int

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def blocks(self) -> Any:
        """Its blocks, an ``nn.ModuleList``."""
        return self.module.get_submodule(self.blocks_name)

    @classmethod
    def why_not(cls, module: Any) -> str | None:
        """Return why such a tower cannot be prompted, or None."""
        return why_not(module.get_submodule(cls.blocks_name))


class TextTower(Tower):
    """open_clip's text transformer."""

    projection = ('text_projection',)

    def __init__(self, module: TextTransformer) -> None:
        super().__init__(module)
        self.width: int = module.width

    @classmethod
    def why_not(cls, module: TextTransformer) -> str | None:
        if module.cls_emb is not None:
            return 'its text tower appends a [CLS]'
        if module.use_pad_mask:
            return 'its text tower masks padding'
        if module.pool_type not in ('argmax', 'eos', 'last'):
            return 'its text tower reads out neither the [EOT] nor the last token'
        if module.pool_type == 'last' and module.attn_mask is not None:
            return 'its text tower is causal and reads out the last token, which may be padding'
        return super().why_not(module)


class ImageTower(Tower):
    """An image tower: from frames to tokens, and from tokens to embeddings.

    Attributes:
        has_cls (bool): Whether the first token of a frame is a [CLS].
        reads_cls (bool): Whether the embedding is made of the [CLS] alone; if not, of all tokens.
        position (Tensor, optional): The rotary position of each token of a frame, of shape
            [n x 2 r], sines and cosines; a [CLS] is not rotated.
    """

    has_cls = True
    reads_cls = True
    position: Tensor | None = None

    def embed(self, frames: Tensor) -> Tensor:
        """Cut frames [n x 3 x h x w] into tokens, of shape [n x m x d]."""
        raise NotImplementedError

    def pre_norm(self, tokens: Tensor) -> Tensor:
        """What tokens [... x d] pass through before the first layer."""
        raise NotImplementedError

    def read_out(self, tokens: Tensor) -> Tensor:
        """Make embeddings [n x e] of what the last layer gives, [n x m x d]."""
        raise NotImplementedError

    def cls(self, tokens: Tensor) -> Tensor:
        """The [CLS] of each frame [... x m x d], or else the mean of its tokens."""
        return tokens[..., 0, :] if self.has_cls else tokens.mean(-2)


class OpenCLIPImageTower(ImageTower):
    """open_clip's vision transformer, with [CLS]: CLIP's own and CLIPA's."""

    projection = ('proj',)

    def __init__(self, module: VisionTransformer) -> None:
        super().__init__(module)
        self.width = module.transformer.width
        self.reads_cls = module.pool_type == 'tok'

    @classmethod
    def why_not(cls, module: VisionTransformer) -> str | None:
        if module.attn_pool is not None or module.pool_type not in ('tok', 'avg'):
            return 'its image tower neither reads out a [CLS] token nor the mean of its tokens'
        return super().why_not(module)

    def embed(self, frames: Tensor) -> Tensor:
        clip = self.module
        x = clip.conv1(frames).flatten(2).transpose(1, 2)
        cls = clip.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1)
        return self.pre_norm(x + clip.positional_embedding.to(x.dtype))

    def pre_norm(self, tokens: Tensor) -> Tensor:
        return self.module.ln_pre(tokens)

    def read_out(self, tokens: Tensor) -> Tensor:
        clip = self.module
        if self.reads_cls:
            x = clip.ln_post(tokens[:, 0])
        elif clip.final_ln_after_pool:
            x = clip.ln_post(tokens[:, 1:].mean(1))
        else:
            x = clip.ln_post(tokens[:, 1:]).mean(1)
        return x if clip.proj is None else x @ clip.proj


class TimmImageTower(ImageTower):
    """A vision transformer of timm: PE-Core's, SigLIP's, EVA's, MobileCLIP-B's."""

    blocks_name = 'trunk.blocks'
    projection: tuple[str, ...] = ('trunk.head.', 'head.')

    def __init__(self, module: TimmModel) -> None:
        super().__init__(module)
        trunk = self.trunk = module.trunk
        self.width = trunk.embed_dim
        self.has_cls = trunk.cls_token is not None
        self.reads_cls = self.has_cls and trunk.attn_pool is None and trunk.global_pool == 'token'
        if not any(name.startswith(self.projection) for name, _ in module.named_parameters()):
            self.projection = ('trunk.attn_pool.',)  # SigLIP's pooling ends in the joint space

    @classmethod
    def why_not(cls, module: TimmModel) -> str | None:
        trunk = module.trunk
        if type(trunk) not in (TimmViT, Eva):
            return f'its image tower is a {type(trunk).__name__}, no plain transformer of tokens'
        stem = getattr(trunk.patch_embed, 'backbone', None)
        if not isinstance(stem, (ConvStem, NoneType)):
            return f'what makes the tokens of its image tower is a network ({type(stem).__name__})'
        has_cls = trunk.cls_token is not None
        if trunk.num_prefix_tokens != has_cls or trunk.dynamic_img_size:
            return 'its image tower has other tokens than patches and a [CLS]'
        rope = getattr(trunk, 'rope', None)
        is_table = rope is None or hasattr(rope, 'feat_shape')
        if getattr(trunk, 'rope_mixed', False) or not is_table:
            return 'its rotary positions are not one table of its patches'
        return super().why_not(module)

    @property
    def position(self) -> Tensor | None:  # type: ignore[override]
        rope = getattr(self.trunk, 'rope', None)
        if rope is None:
            return None
        table = rope.get_embed()
        if not self.has_cls:
            return table
        sine, cosine = table.new_zeros(1, table.shape[1] // 2).expand(2, -1, -1)
        return torch.cat([torch.cat([sine, cosine + 1], -1), table])

    def embed(self, frames: Tensor) -> Tensor:
        trunk = self.trunk
        x = trunk.patch_embed(frames)
        position = 0 if trunk.pos_embed is None else trunk.pos_embed
        if trunk.no_embed_class:
            x = x + position
        if self.has_cls:
            x = torch.cat([trunk.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if not trunk.no_embed_class:
            x = x + position
        return self.pre_norm(x)

    def pre_norm(self, tokens: Tensor) -> Tensor:
        return self.trunk.norm_pre(tokens)

    def read_out(self, tokens: Tensor) -> Tensor:
        return self.module.head(self.trunk.forward_head(self.trunk.norm(tokens)))


TOWER_KINDS: dict[type[nn.Module], type[Any]] = {
    TextTransformer: TextTower,
    VisionTransformer: OpenCLIPImageTower,
    TimmModel: TimmImageTower,
}


def tower_of(module: nn.Module) -> Any:
    """A tower of a kind in :data:`TOWER_KINDS`."""
    return TOWER_KINDS[type(module)](module)
