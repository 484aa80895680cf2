"""The metric that MMEngine's loops call."""

import logging
from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ..errors import NotFiniteError
from ..fileio import check_writable
from ..registry import METRICS
from .embeddings import Embeddings
from .ranking import evaluate_embeddings
from .rescoring import DSL, QBNorm


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """Recall and rank in both directions; see :mod:`.ranking`.

    Each data sample is one video with all its captions, as
    ``RetrievalRecognizer`` predicts it: ``video_feature``, of shape [e], and
    ``text_feature``, of shape [captions x e] or [e]; both may stand in a
    field ``features``, where MMAction2's ``CLIPSimilarity`` puts them.
    Similarity is their dot product. A ``video_id`` names the video, where
    there is one.

    Args:
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).
        dsl (float, optional): Rank by dual softmax, too, with this scale
            (100 is usual); see :class:`.DSL`. Adds ``dsl/t2v/R@1`` to
            ``dsl/v2t/MnR``.
        qb_norm (str, optional): Rank by QB-Norm, too, with the bank of
            training queries in this file, which is what ``dump`` writes when
            the training set is tested; see :class:`.QBNorm`. Adds
            ``qb_norm/t2v/R@1`` to ``qb_norm/v2t/MnR``.
        beta (float): The scale of QB-Norm. Defaults to 20.
        dump (str, optional): Write all embeddings to this file; see
            :class:`.Embeddings`.
        device (str): Where to rank, such as ``'cuda'``. Defaults to
            ``'cpu'``.
        collect_device (str): ``'cpu'`` or ``'gpu'``, see MMEngine.
        prefix (str, optional): Prefix of the keys. Defaults to none:
            ``t2v/R@1`` to ``v2t/MnR``.

    Attributes:
        tested (Embeddings, optional): What was ranked last, in the main
            process.

    Raises:
        FileNotFoundError: If there is no file ``qb_norm``.
        ValueError: If it holds no embeddings, if ``dump`` cannot be written,
            or a scale is not positive.
    """

    default_prefix = ''  # the keys say t2v and v2t themselves

    def __init__(
        self,
        topk: Sequence[int] = (1, 5, 10),
        dsl: float | None = None,
        qb_norm: str | None = None,
        beta: float = 20.0,
        dump: str | None = None,
        device: str = 'cpu',
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        for name, scale in dict(dsl=dsl, beta=beta).items():
            # True would be a scale of 1.
            if isinstance(scale, bool) or (scale is not None and not 0 < scale < float('inf')):
                raise ValueError(f'{name} must be a positive number, got {scale}.')
        if dump is not None:
            check_writable(dump)
        try:
            torch.empty(0, device=device)  # else it would fail in the end
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f'There is no device {device}: {error}') from error
        self.topk = tuple(topk)
        self.rescoring = [] if dsl is None else [DSL(dsl)]
        self.bank, self.bank_file = None, qb_norm
        if qb_norm is not None:
            self.bank = Embeddings.load(qb_norm)
            self.rescoring.append(QBNorm(self.bank.text, self.bank.video, beta))
        self.dump = dump
        self.device = device
        self.model = None
        self.tested = None

    def set_model(self, fingerprint: str) -> None:
        """Say which model is tested; ``tools/test.py`` does.

        It is written into a dump, and compared with that of the bank. Without
        it only the width of the bank is checked.

        Args:
            fingerprint (str): Changes when the model's weights do.

        Raises:
            ValueError: If the bank was made with another model.
        """
        self.model = fingerprint
        if self.bank and self.bank.model not in (None, fingerprint):
            raise ValueError(
                f'The bank {self.bank_file} was made with another model than '
                'the one that is tested. Make it anew with this checkpoint.'
            )

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the embeddings of a batch."""
        for sample in data_samples:
            features = sample.get('features', sample)
            text = features['text_feature'].float().cpu()
            video = features['video_feature'].float().cpu()
            if self.bank and self.bank.video.shape[1:] != video.shape:
                raise ValueError(
                    f'The embeddings in the bank {self.bank_file} have '
                    f'{self.bank.video.shape[1]} numbers, those of this model '
                    f'{len(video)}. Make it anew with this model.'
                )
            self.results.append(
                dict(
                    name=sample.get('video_id'),
                    video=video,
                    text=text if text.dim() == 2 else text[None],
                )
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Rank all texts against all videos and the other way.

        Args:
            results (list[dict]): One a video, of all ranks.

        Returns:
            dict[str, float]: See ``evaluate_similarity``.

        Raises:
            NotFiniteError: If an embedding is NaN; the message names the first
                video with one.
        """
        for number, result in enumerate(results):
            for what in ('video', 'text'):
                if not result[what].isfinite().all():
                    name = result['name'] or f'number {number}'
                    raise NotFiniteError(
                        f'The {what} embedding of video {name} is not finite, '
                        'so its scores are NaN. Did training diverge, or '
                        'overflow in fp16?'
                    )
        self.tested = tested = Embeddings(
            [result['name'] for result in results],
            torch.stack([result['video'] for result in results]),
            torch.cat([result['text'] for result in results]),
            torch.arange(len(results)).repeat_interleave(
                torch.tensor([len(result['text']) for result in results])
            ),
            self.model,
        )
        if self.dump:
            self._save(tested)
        self._warn(tested)
        return evaluate_embeddings(
            tested.text.to(self.device),
            tested.video.to(self.device),
            tested.video_of_text,
            self.topk,
            self.rescoring,
        )

    def _save(self, tested: Embeddings) -> None:
        try:
            tested.save(self.dump)
        except (OSError, RuntimeError) as error:  # the metrics are not lost
            print_log(
                f'The embeddings cannot be written to {self.dump}: {error}',
                'current',
                logging.ERROR,
            )
        else:
            print_log(
                f'The embeddings of {len(tested.video)} videos and '
                f'{len(tested.text)} captions are in {self.dump}.',
                'current',
            )

    def _warn(self, tested: Embeddings) -> None:
        if self.rescoring:
            print_log(
                'Not to be compared with plain numbers: '
                + ', '.join(f'{way.name}/... looks at {way.looks_at}' for way in self.rescoring)
                + '.',
                'current',
            )
        if self.bank:
            leaked = set(tested.video_id) & set(self.bank.video_id) - {None}
            if leaked:
                print_log(
                    f'{len(leaked)} test videos are in the bank '
                    f'{self.bank_file}, such as {min(leaked)}: qb_norm/... '
                    'looks at what is tested.',
                    'current',
                    logging.WARNING,
                )
