"""The metric that MMEngine's loops call."""
from typing import Dict, List, Optional, Sequence

import torch
from mmengine.evaluator import BaseMetric

from ..registry import METRICS
from .ranking import evaluate_embeddings


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """Recall and rank in both directions; see :mod:`.ranking`.

    Each data sample is one video with all its captions, as
    ``RetrievalRecognizer`` predicts it: ``video_feature``, of shape [e], and
    ``text_feature``, of shape [captions x e] or [e]; both may stand in a
    field ``features``, where MMAction2's ``CLIPSimilarity`` puts them.
    Similarity is their dot product.

    Args:
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).
        collect_device (str): ``'cpu'`` or ``'gpu'``, see MMEngine.
        prefix (str, optional): Prefix of the keys. Defaults to none:
            ``t2v/R@1`` to ``v2t/MnR``.
    """

    default_prefix = ''  # the keys say t2v and v2t themselves

    def __init__(self,
                 topk: Sequence[int] = (1, 5, 10),
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the embeddings of a batch."""
        for sample in data_samples:
            features = sample.get('features', sample)
            text = features['text_feature'].float().cpu()
            self.results.append(
                dict(
                    name=sample.get('video_id', f'{len(self.results)}'),
                    video=features['video_feature'].float().cpu(),
                    text=text if text.dim() == 2 else text[None]))

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Rank all texts against all videos and the other way.

        Args:
            results (list[dict]): One a video, of all ranks.

        Returns:
            dict[str, float]: See ``evaluate_similarity``.

        Raises:
            ValueError: If an embedding is NaN; the message names the first
                video with one.
        """
        for result in results:
            for what in ('video', 'text'):
                if not result[what].isfinite().all():
                    raise ValueError(
                        f"The {what} embedding of video {result['name']} is "
                        'not finite, so its scores are NaN. Did training '
                        'diverge, or overflow in fp16?')
        owner = torch.arange(len(results)).repeat_interleave(
            torch.tensor([len(result['text']) for result in results]))
        return evaluate_embeddings(
            torch.cat([result['text'] for result in results]),
            torch.stack([result['video'] for result in results]), owner,
            self.topk)
