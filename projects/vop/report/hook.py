"""A hook that writes a test as a page to look at."""

import logging
from datetime import datetime
from pathlib import Path
from platform import python_version

import mmaction
import mmengine
import open_clip
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from .. import __version__
from ..errors import UserError
from ..evaluation import RetrievalMetric
from ..evaluation.embeddings import Embeddings
from ..fileio import atomic_write, check_writable
from ..registry import HOOKS
from .examples import find_examples
from .frames import FRAMES, ShownVideos
from .page import render

PACKAGES = dict(MMAction2=mmaction, MMEngine=mmengine, open_clip=open_clip, torch=torch)


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes a page after a test: metrics, ranks, and queries with what they find.

    What cannot be shown or written is logged as an error: the test is done by then.

    Args:
        out_dir (str): Folder of the page, ``index.html``.
        num_queries (int): How many queries to show in either direction of the
            worst, of the best, and of all at random. Defaults to 5.
        facts (dict, optional): What to say at the top of the page besides
            config, checkpoint, data set etc., or in place of them.

    Raises:
        UserError: If the page cannot be written, or would show no queries;
            before a test, if not one ``vop.RetrievalMetric`` evaluates it.

    Example:
        >>> custom_hooks = [dict(type='vop.ReportHook', out_dir='work_dirs/report')]
    """

    priority = 'LOWEST'  # the metrics are in MMEngine's log before
    lost: str | None = None  # why the page could not be written

    def __init__(self, out_dir: str, num_queries: int = 5, facts: dict | None = None) -> None:
        if num_queries < 1:
            raise UserError(f'num_queries of vop.ReportHook must be 1 or more, got {num_queries}.')
        self.path = Path(out_dir) / 'index.html'
        check_writable(self.path)
        self.num_queries, self.facts = num_queries, dict(facts or {})

    def after_train(self, runner: Runner) -> None:
        """Remember that the weights are no longer those of a checkpoint."""
        self.facts.setdefault('Checkpoint', f'as trained in {runner.work_dir}')

    def before_test(self, runner: Runner) -> None:
        """Find the metric."""
        metrics = [m for m in runner.test_evaluator.metrics if isinstance(m, RetrievalMetric)]
        if len(metrics) != 1:
            found = f'test_evaluator has {len(metrics)}'
            raise UserError(f'vop.ReportHook needs one vop.RetrievalMetric; {found}.')
        self.metric = metrics[0]

    @master_only
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page of a test that gave these metrics."""
        print_log('The report is being made.', 'current')
        html = self._render(runner, metrics)
        try:
            with atomic_write(self.path) as part:
                # What cannot be encoded, such as half of a surrogate pair, is marked.
                part.write_text(html, encoding='utf-8', errors='replace')
        except UserError as error:
            self.lost = f'There is no report: {error}'
            print_log(self.lost, 'current', logging.ERROR)
        else:
            print_log(f'The report is in {self.path}.', 'current')

    def _render(self, runner: Runner, metrics: dict[str, float] | None) -> str:
        tested = self.metric.tested
        assert tested is not None  # as a test is over
        try:
            videos = ShownVideos(runner.test_dataloader, tested)
        except UserError as error:
            print_log(f'The report shows no queries. {error}', 'current', logging.ERROR)
            videos = None
        return render(
            'report.html.jinja',
            config=Path(runner.cfg.filename or '').stem,
            facts=self._facts(runner, tested),
            metrics=metrics,
            metric=self.metric,
            directions=find_examples(tested, self.num_queries, device=self.metric.device),
            videos=videos,
            max_frames=FRAMES,
        )

    def _facts(self, runner: Runner, tested: Embeddings) -> dict[str, str]:
        dataset = runner.test_dataloader.dataset
        versions = [f'{name} {package.__version__}' for name, package in PACKAGES.items()]
        facts = {
            'Config': runner.cfg.filename,
            'Changed': None,  # a place for what only the command line knows
            'Checkpoint': runner.cfg.get('load_from') or 'none',
            'Data set': getattr(dataset, 'ann_file', type(dataset).__name__),
            'Size': f'{len(tested.video):,} videos, {len(tested.text):,} captions',
            'Date': f'{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}',
            'Versions': ', '.join([f'VoP {__version__}', *versions, f'Python {python_version()}']),
        }
        return {name: value for name, value in (facts | self.facts).items() if value}
