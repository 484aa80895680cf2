"""The page of a test by MMEngine's own runner."""

import base64
import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from projects.vop.errors import UserError
from projects.vop.evaluation import DSL
from projects.vop.evaluation.embeddings import Embeddings
from projects.vop.registry import DATASETS, HOOKS
from projects.vop.report.examples import find_examples
from projects.vop.report.frames import ShownVideos, draw_strip

LONG = 'a<b & "c" ' * 200
# Names and colours (RGB) of videos, and their captions: as bad as they come.
VIDEOS = {
    'a <b>&amp; "c\' .mp4': ((200, 30, 30), ['<script>alert("1")</script> & </p>', '"red" &lt;']),
    'green.mp4': ((30, 200, 30), ['عشب أخضر (grass)']),
    'blue.mp4': ((30, 30, 200), ['🟦👩‍👩‍👧 blue', LONG, 'blue']),
    'n' * 150 + '.mp4': ((200, 200, 30), ['x' * 1000]),
    'cyan.mp4': ((30, 200, 200), ['cyan', '{{ cyan }}']),
    'magenta.mp4': ((200, 30, 200), ['back to front']),
    'grey.mp4': ((128, 128, 128), ['grey\nof two lines']),
    'black.mp4': ((0, 0, 0), ['black']),
}
PIPELINE = [
    dict(type='DecordInit'),
    dict(type='vop.TimeWindow'),
    dict(type='UniformSample', clip_len=8, num_clips=1, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs', collect_keys=('imgs',), meta_keys=('video_id',)),
]
METRIC = dict(type='vop.RetrievalMetric', rescoring=[dict(type='vop.DSL', scale=50.0)])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Videos of two seconds: a white one, and one of the colour, which alone is used."""
    folder = tmp_path_factory.mktemp('colours')
    for name, (colour, _) in VIDEOS.items():
        with av.open(str(folder / name), 'w') as container:
            stream = container.add_stream('libx264', rate=8)
            stream.height, stream.width, stream.pix_fmt = 32, 64, 'yuv420p'
            for shown in [(255, 255, 255)] * 8 + [colour] * 8:
                frame = np.full((32, 64, 3), shown, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
            container.mux(stream.encode())
    annotations = {name: dict(captions=some, start=1) for name, (_, some) in VIDEOS.items()}
    (folder / 'test.json').write_text(json.dumps(annotations))
    return folder


class Lookup(BaseModel):
    """Embeds a video and its captions as small whole numbers, whose scores often tie."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(5)
        sizes = {name: (1 + len(captions), 4) for name, (_, captions) in VIDEOS.items()}
        self.embeddings = {n: torch.tensor(rng.integers(-2, 3, size)) for n, size in sizes.items()}

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            rows = self.embeddings[sample.video_id].float()
            sample.set_data(dict(video_feature=rows[0], text_feature=rows[1:]))
        return data_samples


class Page:
    """What a page says."""

    def __init__(self, path):
        self.text = path.read_text(encoding='utf-8')
        assert self.text.startswith('<!DOCTYPE html>\n')
        # Well-formed, so that no text breaks out of its place.
        self.root = ElementTree.fromstring(self.text.split('\n', 1)[1])

    def find(self, name):
        return [e for e in self.root.iter() if name in e.get('class', '').split()]

    def queries(self, direction):
        """By group: query, rank and hits, each as (item, score, right, tied)."""
        return {
            group.get('class'): [
                (
                    item_of(article[1]),
                    numbers_of(article[0])[0],
                    [hit_of(e) for e in article.iter() if 'hit' in e.get('class', '').split()],
                )
                for article in group
            ]
            for group in self.root.findall(f".//section[@id='{direction}']/div[@class]")
        }

    def strips(self):
        """The last picture of each video."""
        found = {}
        for img in self.root.iter('img'):
            jpeg = base64.b64decode(img.get('src').removeprefix('data:image/jpeg;base64,'))
            found[img.get('alt').removeprefix('frames of ')] = open_jpeg(jpeg)
        return found


def open_jpeg(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def text_of(element):
    return ''.join(element.itertext())


def numbers_of(element):
    return [float(data.get('value')) for data in element.iter('data')]


def item_of(element):
    """The caption, or the name of the video, that an element shows."""
    for e in element.iter():
        if 'text' in e.get('class', '').split():
            assert e.get('dir') == 'auto'
            return text_of(e).replace(' …', '', 1) if e.tag == 'details' else text_of(e)
    (name,) = element.iter('bdi')
    return text_of(name)


def hit_of(element):
    right = 'right' in element.get('class').split()
    assert right == ('✓ right' in text_of(element[0]))  # colour and word go together
    tied = any(span.text == 'tie' for span in element[0])
    return item_of(element), numbers_of(element[0])[-1], right, tied


class Then(Hook):
    """What happens after the test, before the report."""

    def __init__(self, change):
        self.change = change

    def after_test_epoch(self, runner, metrics=None):
        self.change(runner, metrics)


names = (f'report{number}' for number in itertools.count())


@pytest.fixture(scope='module')
def make_page(folder, tmp_path_factory):
    """Tests a model; gives the page, the tested embeddings, the metrics and the log."""

    def make(*hooks, out_dir=None, num_queries=3, metric=METRIC, **dataset):
        out_dir = out_dir or tmp_path_factory.mktemp('page')
        report = dict(type='vop.ReportHook', out_dir=str(out_dir), num_queries=num_queries)
        data = dict(type='vop.VideoTextDataset', ann_file='test.json', data_root=str(folder))
        runner = Runner(
            model=Lookup(),
            work_dir=str(tmp_path_factory.mktemp('work')),
            test_dataloader=dict(
                batch_size=3,
                dataset=data | dict(pipeline=PIPELINE, test_mode=True) | dataset,
                sampler=dict(type='DefaultSampler', shuffle=True),  # they are known by their names
            ),
            test_evaluator=dict(prefix='msvd', **metric),
            test_cfg=dict(),
            custom_hooks=[report | dict(facts=dict(Changed='half \ud83d')), *hooks],
            default_scope='mmaction',
            randomness=dict(seed=0),
            experiment_name=next(names),
            cfg=Config(dict(load_from='a.pth'), cfg_text='\n', filename='<c> & d.py'),
        )
        metrics = runner.test()
        (log,) = Path(runner.log_dir).glob('*.log')
        tested = runner.test_evaluator.metrics[0].tested
        return Page(out_dir / 'index.html'), tested, metrics, log.read_text()

    return make


@pytest.fixture(scope='module')
def made(make_page):
    return make_page(Then(lambda runner, metrics: metrics.update({'t2v/R@1': 77.0})))  # another's


def test_metrics_are_those_of_the_metric(made):
    page, _, metrics, _ = made
    (table,) = page.find('metrics')
    ours = {key: value for key, value in metrics.items() if key.startswith('msvd/')}
    names = [th.text for th in table.find('thead').iter('th')][1:]
    assert [key.split('/')[-1] for key in ours] == names * 4
    titles = [text_of(row[0]).strip() for row in table.find('tbody')]
    both = ['Text to video', 'Video to text']
    assert titles == [*both, *(f'dsl/ {title}' for title in both)]
    assert numbers_of(table) == list(ours.values())
    assert f'look at {DSL.looks_at}' in page.text


def test_ranks_and_queries_are_those_of_the_examples(made):
    page, tested, *_ = made
    captions = [caption for name in tested.video_id for caption in VIDEOS[name][1]]
    sides = dict(t2v=(captions, tested.video_id), v2t=(tested.video_id, captions))
    found = find_examples(tested, 3)
    for table, (name, (queries, items)) in zip(page.find('ranks'), sides.items()):
        rows = {text_of(row[0]): numbers_of(row)[0] for row in table.find('tbody')}
        assert list(rows) == ['1', '2–5', *(['6–10', '11–12'] if name == 'v2t' else ['6–8'])]
        assert list(rows.values()) == [count for *_, count in found[name].histogram()]
        assert page.queries(name) == {
            f'examples {group}': [
                (
                    queries[example.query],
                    example.rank,
                    [(items[h[0]], *h[1:]) for h in (*example.top, example.below) if h],
                )
                for example in examples
            ]
            for group, examples in found[name].examples.items()
        }
        for example in found[name].examples['worst']:
            assert f'({example.tied} wrong with the same score)' in page.text or not example.tied


def test_the_page_stands_for_itself(made, folder):
    page = made[0]
    elements = list(page.root.iter())
    assert not {e.tag for e in elements} & {'script', 'link', 'iframe', 'base', 'object'}
    assert not [key for e in elements for key in e.keys() if key.startswith('on')]
    assert all(e.get('src').startswith('data:image/jpeg;base64,') for e in page.root.iter('img'))
    ids = {e.get('id') for e in elements}
    assert all(e.get('href').removeprefix('#') in ids for e in page.root.iter('a'))
    (policy,) = (e.get('content') for e in elements if 'http-equiv' in e.keys())
    assert policy.startswith("default-src 'none'; img-src data:")
    assert 'url(' not in page.text and '@import' not in page.text
    assert max(len(text_of(e)) for e in page.root.iter('summary')) < 300
    assert page.root.find('head/title').text == 'Text-video retrieval: <c> & d'
    facts = dict(zip(*([e.text for e in page.root.iter(tag)] for tag in ('dt', 'dd'))))
    assert f'torch {torch.__version__}' in facts.pop('Versions') and facts.pop('Date')
    assert facts == {
        'Config': '<c> & d.py',
        'Changed': 'half ?',
        'Checkpoint': 'a.pth',
        'Data set': str(folder / 'test.json'),
        'Size': '8 videos, 12 captions',
    }


def test_frames_are_those_of_the_video_and_its_window(made):
    strips = made[0].strips()
    assert set(strips) == set(VIDEOS)
    for name, strip in strips.items():
        height, width = strip.shape[:2]
        assert 6 * height <= width < 6.2 * height
        for frame in np.array_split(strip, 6, axis=1):
            middle = frame[height // 3 : -height // 3, height // 3 : -height // 3]
            assert np.abs(middle.mean((0, 1)) - VIDEOS[name][0]).max() < 12


@pytest.mark.parametrize('number, shown', [(20, 6), (2, 2)])
def test_a_strip_spans_the_video(number, shown):
    grey = torch.linspace(0, 240, number)[:, None, None, None].expand(-1, 3, 32, 32)
    frames = np.array_split(open_jpeg(draw_strip(grey.byte())), shown, axis=1)
    middles = [frame[30:-30, 30:-30].mean() for frame in frames]
    assert np.allclose(middles, np.linspace(0, 240, shown), atol=8)
    with pytest.raises(ValueError, match='float32'):
        draw_strip(grey)


@pytest.mark.slow
def test_videos_that_cannot_be_read_any_more(make_page, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def spoil(runner, metrics):
        runner.test_evaluator.metrics[0].tested.text.zero_()  # all find the same five videos
        for name in VIDEOS:
            (tmp_path / name).write_bytes(b'nothing')

    page, *_, log = make_page(Then(spoil), data_root=str(tmp_path), num_queries=1)
    missing = {(e.get('role'), e.get('aria-label')) for e in page.find('missing')}
    assert 0 < len(missing) < len(VIDEOS) and not page.strips()
    # Only what is shown is decoded, and once.
    tried = {('img', f'no picture of {name}'): log.count(f'picture of {name}:') for name in VIDEOS}
    assert tried == {label: int(label in missing) for label in tried}


@pytest.mark.slow
def test_what_the_data_set_does_not_know_is_not_shown(make_page):
    def rename(runner, metrics):
        metric = runner.test_evaluator.metrics[0]
        metric.tested = metric.tested._replace(video_id=list('12345678'))
        runner.hooks[-1].after_train(runner)  # the report's own

    page, *_, log = make_page(Then(rename))
    assert 'as trained in' in page.text and 'a.pth' not in page.text
    assert page.find('ranks') and not page.queries('t2v')
    assert "video_id='1'" in log


@pytest.mark.slow
def test_a_page_that_cannot_be_written_costs_nothing(make_page, tmp_path):
    (tmp_path / 'index.html').write_text('<!DOCTYPE html>\n<before/>')
    (tmp_path / 'index.html.part').mkdir()
    page, _, metrics, log = make_page(out_dir=tmp_path)
    assert page.root.tag == 'before' and 'msvd/t2v/R@1' in metrics
    assert 'There is no report' in log and str(tmp_path / 'index.html') in log


@pytest.mark.slow
def test_items_without_names_are_known_by_their_order(folder, tmp_path):
    """Those of MMAction2's own data set, where each caption is an item."""
    chosen = {name: VIDEOS[name][1] for name in ('cyan.mp4', 'black.mp4', 'blue.mp4')}
    (tmp_path / 'plain.json').write_text(json.dumps(chosen))
    files = dict(ann_file=str(tmp_path / 'plain.json'), data_root=str(folder))
    steps = dict(pipeline=[PIPELINE[0], *PIPELINE[2:]], test_mode=True)
    data = DATASETS.build(
        dict(type='VideoTextDataset', data_prefix=dict(video=''), **files, **steps)
    )
    captions = [(name, text) for name, some in chosen.items() for text in some]
    eye = torch.eye(len(captions))
    tested = Embeddings([None] * len(eye), eye, eye, torch.arange(len(eye)))
    videos = ShownVideos(DataLoader(data), tested)
    assert [(name, videos.caption(i)) for i, name in enumerate(videos.names)] == captions
    assert videos.strip(0) == videos.strip(1) != videos.strip(2)
    with pytest.raises(UserError, match='meta_keys'):
        ShownVideos(DataLoader(data, sampler=DefaultSampler(data, shuffle=True)), tested)


def test_a_page_that_cannot_be_is_an_error_before(tmp_path):
    (tmp_path / 'index.html').mkdir()
    for fault in (dict(out_dir=str(tmp_path)), dict(out_dir='page', num_queries=0)):
        with pytest.raises(UserError, match=str([*fault.values()][-1])):
            HOOKS.build(dict(type='vop.ReportHook') | fault)


def test_another_metric_is_an_error_before(make_page):
    with pytest.raises(UserError, match='vop.RetrievalMetric'):
        make_page(metric=dict(type='AccMetric'))
