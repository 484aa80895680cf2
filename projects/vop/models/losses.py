"""The contrastive loss between videos and captions."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from ..registry import MODELS


def gather(x: Tensor) -> Tensor:
    """Concatenate the batches of all ranks, passing gradients back to each.

    Args:
        x (Tensor): Of shape [b x e], with the same b on every rank.

    Returns:
        Tensor: Of shape [(ranks * b) x e]; ``x`` itself with one process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return torch.cat(all_gather(x.contiguous()))


@MODELS.register_module()
class ContrastiveLoss(nn.Module):
    r"""Symmetric cross-entropy over a batch of pairs (Sec. 3.1, Eq. 1).

    With the similarities s_ij of caption i and video j, and CLIP's inverse
    temperature :math:`\lambda`,

    .. math::
        L = -\frac{1}{2B} \sum_i \left(
            \log\frac{e^{\lambda s_{ii}}}{\sum_j e^{\lambda s_{ij}}} +
            \log\frac{e^{\lambda s_{ii}}}{\sum_j e^{\lambda s_{ji}}} \right)

    B counts the pairs of all ranks: N processes with b pairs each have the
    loss, and after data-parallel averaging the gradient, of one process with
    N * b pairs.

    Example:
        >>> loss = ContrastiveLoss()
        >>> video, text = F.normalize(torch.randn(2, 32, 512), dim=-1)
        >>> sorted(loss(video, text, logit_scale=torch.tensor(100.0)))
        ['loss_t2v', 'loss_v2t']
    """

    def forward(self, video: Tensor, text: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
        """Compare pairs.

        Args:
            video (Tensor): Video embeddings, of shape [b x e].
            text (Tensor): Embeddings of their captions, of shape [b x e].
            logit_scale (Tensor): The factor lambda, a scalar.

        Returns:
            dict[str, Tensor]: ``loss_t2v`` and ``loss_v2t``, which sum to L.
        """
        # At least float32: half precision is too coarse for logits.
        dtype = torch.promote_types(video.dtype, torch.float32)
        video, text = gather(video.to(dtype)), gather(text.to(dtype))
        with torch.autocast(video.device.type, enabled=False):
            logits = logit_scale * text @ video.T
        target = torch.arange(len(logits), device=logits.device)
        return dict(
            loss_t2v=F.cross_entropy(logits, target) / 2,
            loss_v2t=F.cross_entropy(logits.T, target) / 2,
        )
