"""A test as a page to look at."""

import logging
import os
import os.path as osp
import platform
from datetime import datetime

import mmaction
import mmengine
import open_clip
import torch
from mmengine.logging import print_log
from torch.utils.data import DataLoader

from .. import __version__
from ..evaluation.retrieval_metric import RetrievalMetric
from . import template as markup
from .examples import retrieve
from .frames import Footage
from .template import Section

TOPK = 5  # items that are shown of a query
PAGE = 'index.html'


def write_page(
    folder: str,
    title: str,
    facts: dict[str, str],
    metrics: dict[str, float],
    metric: RetrievalMetric,
    loader: DataLoader,
    num_queries: int,
) -> None:
    """Write ``index.html``: metrics, ranks, and queries with what they find.

    It stands for itself: it needs no other file, no script and no network.
    What cannot be shown or written is logged, as the test itself is done by
    then.

    Args:
        folder (str): Where to write it. A page that is there is replaced when
            the new one is complete.
        title (str): Title of the page.
        facts (dict[str, str]): What was tested, by name. Numbers, date and
            versions are added.
        metrics (dict[str, float]): What the test gave.
        metric (RetrievalMetric): What gave it.
        loader (DataLoader): Of the test set.
        num_queries (int): How many queries to show in either direction of the
            worst, of the best, and of all at random.
    """
    print_log('The report is being made.', 'current')
    tested = metric.tested
    facts = {
        **facts,
        'Size': f'{len(tested.video):,} videos, {len(tested.text):,} captions',
        'Date': f'{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}',
        'Versions': _versions(),
    }
    directions = dict(zip(markup.DIRECTIONS, retrieve(tested, num_queries, TOPK, metric.device)))
    sections = [
        Section(
            'metrics',
            'Metrics',
            markup.metrics_table(
                _metrics_of(metric, metrics), {way.name: way.looks_at for way in metric.rescoring}
            ),
        ),
        Section('ranks', 'Ranks', markup.rank_tables(directions)),
    ]
    try:
        footage = Footage(loader, tested)
    except ValueError as error:
        print_log(f'The report shows no queries. {error}', 'current', logging.ERROR)
    else:
        sections += [
            Section(way, markup.DIRECTIONS[way], markup.examples(way, direction, footage))
            for way, direction in directions.items()
        ]
    path = osp.join(folder, PAGE)
    try:
        _write(path, markup.page(title, facts, sections))
    except OSError as error:
        print_log(f'The report cannot be written to {path}: {error}', 'current', logging.ERROR)
    else:
        print_log(f'The report is in {path}.', 'current')


def _metrics_of(metric: RetrievalMetric, metrics: dict[str, float]) -> dict[str, float]:
    """Those of ``metrics`` that ``metric`` gave, without its prefix."""
    prefix = f'{metric.prefix}/' if metric.prefix else ''
    forms = ['', *(f'{way.name}/' for way in metric.rescoring)]
    starts = tuple(f'{prefix}{form}{way}/' for form in forms for way in markup.DIRECTIONS)
    return {key[len(prefix) :]: value for key, value in metrics.items() if key.startswith(starts)}


def _versions() -> str:
    versions = dict(
        VoP=__version__,
        MMAction2=mmaction.__version__,
        MMEngine=mmengine.__version__,
        open_clip=open_clip.__version__,
        torch=torch.__version__,
        Python=platform.python_version(),
    )
    return ', '.join(f'{name} {version}' for name, version in versions.items())


def _write(path: str, text: str) -> None:
    part = f'{path}.part'
    try:
        # What cannot be encoded, such as half of a surrogate pair, is marked.
        with open(part, 'w', encoding='utf-8', errors='replace') as file:
            file.write(text)
        os.replace(part, path)
    finally:
        if osp.exists(part):
            os.remove(part)
