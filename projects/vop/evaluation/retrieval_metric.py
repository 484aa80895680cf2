"""The metric that MMEngine's loops call."""

import logging
from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import dump
from mmengine.logging import print_log

from ..errors import NotFiniteError, UserError
from ..fileio import atomic_write, check_writable
from ..registry import METRICS, RESCORINGS
from .embeddings import Embeddings
from .ranking import evaluate_embeddings
from .rescoring import Rescoring


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """Recall and rank in both directions; see :mod:`.ranking`.

    Each data sample is one video with all its captions, as ``RetrievalRecognizer`` predicts it:
    ``video_feature``, of shape [e], and ``text_feature``, of shape [captions x e] or [e]; or both
    in a field ``features``, as MMAction2's ``CLIPSimilarity`` predicts them. Similarity is their
    dot product. ``video_id`` is the name of the video, if it has one.

    Args:
        topk (Sequence[int]): The k of R@k. Defaults to (1, 5, 10).
        rescoring (Sequence[dict | Rescoring]): Methods that correct the scores, whose metrics are
            added to the plain ones: ``vop.DSL`` adds ``dsl/t2v/R@1`` to ``dsl/v2t/MnR``,
            ``vop.QBNorm`` the same under ``qb_norm/``. Defaults to none.
        dump (str, optional): Write all embeddings to this file; see :class:`.Embeddings`.
        device (str): Where to rank, such as ``'cuda'``. Defaults to ``'cpu'``.
        collect_device (str): ``'cpu'`` or ``'gpu'``; see MMEngine.
        prefix (str, optional): Prefix of the keys. Defaults to none: ``t2v/R@1`` to ``v2t/MnR``.

    Attributes:
        tested (Embeddings, optional): What was ranked last, in the main process.
        lost (str, optional): Why the embeddings could not be written after a test.

    Raises:
        UserError: If a method of rescoring is wrong or is listed twice, if ``dump`` cannot be
            written, or if there is no such device.

    Example:
        >>> metric = RetrievalMetric(rescoring=[dict(type='vop.DSL', scale=50.0)])
        >>> samples = [dict(video_feature=row, text_feature=row) for row in torch.eye(20)]
        >>> metric.process({}, samples)
        >>> metric.evaluate(size=20)['dsl/t2v/R@1']
        100.0
    """

    default_prefix = ''  # the keys name the direction themselves

    def __init__(
        self,
        topk: Sequence[int] = (1, 5, 10),
        rescoring: Sequence[dict | Rescoring] = (),
        dump: str | None = None,
        device: str = 'cpu',
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if dump is not None:
            check_writable(dump)
        try:
            torch.empty(0, device=device)  # otherwise it would fail at the end of the test
        except (RuntimeError, AssertionError) as error:
            raise UserError(f'There is no device {device}: {error}') from error
        self.topk = tuple(topk)
        self.rescoring = [RESCORINGS.build(m) if isinstance(m, dict) else m for m in rescoring]
        names = [method.name for method in self.rescoring]
        if len(set(names)) < len(names):
            raise UserError(f'A method is listed twice in rescoring: {", ".join(names)}.')
        self.dump = dump
        self.device = device
        self.weights_fingerprint: str | None = None
        self.tested: Embeddings | None = None
        self.lost: str | None = None

    def set_model(self, weights_fingerprint: str) -> None:
        """Say which model is tested: it is written into a dump, and methods of rescoring check it.

        Raises:
            UserError: If a method does not fit this model.
        """
        self.weights_fingerprint = weights_fingerprint
        for method in self.rescoring:
            method.check_model(weights_fingerprint)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the embeddings of a batch."""
        for sample in data_samples:
            features = sample.get('features', sample)
            text = features['text_feature'].float().cpu()
            video = features['video_feature'].float().cpu()
            for method in self.rescoring:
                method.check_width(len(video))
            text = text if text.dim() == 2 else text[None]
            self.results.append(dict(name=sample.get('video_id'), video=video, text=text))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Rank the videos for each text, and the texts for each video.

        Raises:
            NotFiniteError: If an embedding is not finite; the message names the first such video.
        """
        for number, result in enumerate(results):
            for what in ('video', 'text'):
                if not result[what].isfinite().all():
                    name = result['name'] or f'number {number}'
                    raise NotFiniteError(
                        f'The {what} embedding of video {name} is not finite, so its scores are '
                        'NaN. Did training diverge, or overflow in fp16?'
                    )
        captions = torch.tensor([len(result['text']) for result in results])
        self.tested = tested = Embeddings(
            [result['name'] for result in results],
            torch.stack([result['video'] for result in results]),
            torch.cat([result['text'] for result in results]),
            torch.arange(len(results)).repeat_interleave(captions),
            self.weights_fingerprint,
        )
        if self.dump:
            self._write(tested, self.dump)
        if self.rescoring:
            notes = (f'{method.name}/... looks at {method.looks_at}' for method in self.rescoring)
            print_log(f'Not to be compared with plain numbers: {", ".join(notes)}.', 'current')
        for method in self.rescoring:
            method.check_videos(tested.video_id)
        return evaluate_embeddings(
            tested.text.to(self.device),
            tested.video.to(self.device),
            tested.video_of_text,
            self.topk,
            self.rescoring,
        )

    def _write(self, tested: Embeddings, path: str) -> None:
        try:
            tested.save(path)
        except UserError as error:  # the metrics are not lost
            self.lost = f'The embeddings are lost. {error}'
            print_log(self.lost, 'current', logging.ERROR)
        else:
            print_log(
                f'The embeddings of {len(tested.video)} videos and {len(tested.text)} captions '
                f'are in {self.dump}.',
                'current',
            )


@METRICS.register_module()
class DumpPredictions(DumpResults):
    """MMEngine's ``DumpResults``, but for a file that cannot be written: metrics are not lost.

    Args:
        out_file_path (str): A ``.pkl`` or ``.pickle`` file for all predictions.
        kwargs: As of ``DumpResults``.

    Attributes:
        lost (str, optional): Why it could not be written after a test.

    Raises:
        UserError: If the file cannot be written, as far as can be seen before a test.

    Example:
        >>> test_evaluator = [
        ...     dict(type='vop.RetrievalMetric'),
        ...     dict(type='vop.DumpPredictions', out_file_path='predictions.pkl')]
    """

    lost: str | None = None

    def __init__(self, out_file_path: str, **kwargs) -> None:
        check_writable(out_file_path)
        super().__init__(out_file_path, **kwargs)

    def compute_metrics(self, results: list) -> dict:
        """Write the file, whole or not at all."""
        try:
            with atomic_write(self.out_file_path) as part, part.open('wb') as file:
                dump(results, file, file_format='pkl')
        except UserError as error:
            self.lost = f'The predictions are lost. {error}'
            print_log(self.lost, 'current', logging.ERROR)
        else:
            print_log(f'The predictions are in {self.out_file_path}.', 'current')
        return {}
