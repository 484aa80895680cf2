"""The page of a test, held against numbers that are computed naively."""

import base64
import itertools
import json
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from projects.vop.evaluation import DSL, RetrievalMetric, evaluate_similarity, scores
from projects.vop.evaluation.embeddings import Embeddings
from projects.vop.registry import DATASETS
from projects.vop.report.examples import retrieve
from projects.vop.report.frames import draw_strip
from projects.vop.report.render import write_page

LONG = 'a<b & "c" ' * 200
# Names and colours (RGB) of videos, and their captions: as bad as they come.
VIDEOS = {
    'a <b>&amp; "c\' .mp4': (
        (200, 30, 30),
        ['<script>alert("1")</script> & </p>', 'it\'s "red" &lt;', 'red'],
    ),
    'green.mp4': ((30, 200, 30), ['عشب أخضر (grass)']),
    'blue.mp4': ((30, 30, 200), ['🟦👩‍👩‍👧 blue', LONG]),
    'n' * 150 + '.mp4': ((200, 200, 30), ['x' * 1000]),
    'cyan.mp4': ((30, 200, 200), ['cyan', 'cyan']),
    'magenta.mp4': ((200, 30, 200), ['\u202eback to front']),
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


def write_colours(path, *colours):
    """A video of 8 frames of each colour, 8 a second."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=8)
        stream.height, stream.width = 32, 64
        stream.pix_fmt = 'yuv420p'
        for colour in colours:
            frame = np.full((32, 64, 3), colour, np.uint8)
            for _ in range(8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('colours')
    annotations = {}
    for name, (colour, captions) in VIDEOS.items():
        # Only the second second is of this colour, and only that is used.
        write_colours(folder / name, (255, 255, 255), colour)
        annotations[name] = dict(captions=captions, start=1)
    (folder / 'test.json').write_text(json.dumps(annotations))
    return folder


def open_dataset(folder, **changes):
    return DATASETS.build(
        dict(
            type='vop.VideoTextDataset',
            ann_file='test.json',
            data_root=str(folder),
            pipeline=PIPELINE,
            test_mode=True,
        )
        | changes
    )


@pytest.fixture
def dataset(folder):
    return open_dataset(folder)


def load(dataset):
    return DataLoader(dataset, batch_size=None)


def embed():
    """Embeddings of small whole numbers, whose scores often tie, in another
    order than the videos have in the data set."""
    rng = np.random.default_rng(5)
    return [
        dict(
            video_id=name,
            video_feature=torch.tensor(rng.integers(-2, 3, 4), dtype=torch.float32),
            text_feature=torch.tensor(
                rng.integers(-2, 3, (len(VIDEOS[name][1]), 4)), dtype=torch.float32
            ),
        )
        for name in reversed(VIDEOS)
    ]


def measure(samples, **kwargs):
    metric = RetrievalMetric(**kwargs)
    metric.process({}, samples)
    return metric, metric.evaluate(len(samples))


class Page:
    """What a page says."""

    def __init__(self, path):
        text = path.read_text(encoding='utf-8')
        assert text.startswith('<!DOCTYPE html>\n')
        # Well-formed, so that no text breaks out of its place.
        self.root = ElementTree.fromstring(text.split('\n', 1)[1])
        self.text = text

    def find(self, *classes):
        return [e for e in self.root.iter() if set(classes) <= set(e.get('class', '').split())]

    def section(self, name):
        return self.root.find(f".//section[@id='{name}']")

    def rows(self, table):
        """First cell and exact numbers of the rows of a table's body."""
        return {
            ''.join(row[0].itertext()).strip(): [
                float(data.get('value')) for data in row.iter('data')
            ]
            for row in table.find('tbody')
        }

    def queries(self, way):
        """The queries by group: text or video, rank, tied, top and below."""
        return {
            group.get('class').split()[-1]: [self._query(article) for article in group]
            for group in self.section(way).findall('div[@class]')
        }

    def _query(self, article):
        head = article.find('h4')
        below = article.find("div[@class='below']")
        return dict(
            query=item_of(article[1]),
            head=''.join(head.itertext()),
            rank=float(head.find('data').get('value')),
            top=[hit_of(li) for li in article.find('ol')],
            below=None if below is None else hit_of(below[0]),
        )


def item_of(element):
    """The caption, or the name of the video, that an element shows."""
    for e in element.iter():
        if 'text' in e.get('class', '').split():
            shown = ''.join(e.itertext())
            if e.tag == 'details':
                assert len(''.join(e[0].itertext())) < 300
                shown = shown.replace(' …', '', 1)
            return shown
    (name,) = (e for e in element.iter('bdi'))
    return ''.join(name.itertext())


def hit_of(element):
    classes = element.get('class').split()
    line = ' '.join(element[0].itertext())
    # Colour and word go together.
    assert ('right' in classes) == ('✓ right' in line)
    *_, score = element[0].iter('data')
    return (item_of(element), float(score.get('value')), 'right' in classes, ' tie' in line)


def right_of(query):
    """The best right hit of a query."""
    return next((hit for hit in query['top'] if hit[2]), None) or query['below']


@pytest.fixture(scope='module')
def tested():
    samples = embed()
    metric, metrics = measure(samples, rescoring=[DSL(50.0)], prefix='msvd')
    return samples, metric, metrics


@pytest.fixture(scope='module')
def page(tested, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('page')
    _, metric, metrics = tested
    write_page(
        str(out),
        'A <title> & more',
        dict(Config='<c>.py'),
        dict(metrics, **{'t2v/R@1': 77.0, 'top1': 1.0}),
        metric,
        load(open_dataset(folder)),
        3,
    )
    assert [path.name for path in out.iterdir()] == ['index.html']
    return Page(out / 'index.html')


class Naive:
    """One direction, one pair of items at a time."""

    def __init__(self, samples, way):
        videos = [(s['video_id'], s['video_feature'].tolist(), s['video_id']) for s in samples]
        texts = [
            (caption, vector.tolist(), s['video_id'])
            for s in samples
            for caption, vector in zip(VIDEOS[s['video_id']][1], s['text_feature'])
        ]
        self.queries, self.items = (texts, videos) if way == 't2v' else (videos, texts)

    def order(self, query):
        """(name, score, right) of all items, the best first."""
        _, vector, video_of_text = query
        items = [
            (name, sum(a * b for a, b in zip(vector, other)), whose == video_of_text)
            for name, other, whose in self.items
        ]
        return sorted(items, key=lambda item: -item[1])

    def probabilities(self, query):
        """Of each rank, trying all orders of the tied items."""
        order = self.order(query)
        best = max(score for _, score, right in order if right)
        higher = sum(score > best for _, score, _ in order)
        tied = [right for _, score, right in order if score == best]
        places = [o.index(True) for o in itertools.permutations(tied)]
        result = np.zeros(len(order))
        for place in places:
            result[higher + place] += 1 / len(places)
        return result, tied.count(False)

    def score(self, query):
        return max(score for _, score, right in self.order(query) if right)

    def rank(self, query):
        return float(self.probabilities(query)[0] @ np.arange(1, len(self.items) + 1))


@pytest.mark.parametrize('way', ['t2v', 'v2t'])
def test_metrics_are_those_of_the_metric(page, tested, way):
    (table,) = page.find('metrics')
    names = [th.text for th in table.find('thead').iter('th')][1:]
    rows = page.rows(table)
    assert len(rows) == 4
    title = dict(t2v='Text to video', v2t='Video to text')[way]
    for row, prefix in ((title, 'msvd/'), (f'dsl/ {title}', 'msvd/dsl/')):
        assert dict(zip((f'{prefix}{way}/{name}' for name in names), rows[row])) == {
            key: value for key, value in tested[2].items() if key.startswith(f'{prefix}{way}/')
        }
    assert f'look at {DSL.looks_at}' in page.text


@pytest.mark.parametrize('way, number', [('t2v', 0), ('v2t', 1)])
def test_ranks_are_shared_out_by_probability(page, tested, way, number):
    naive = Naive(tested[0], way)
    expected = sum(naive.probabilities(query)[0] for query in naive.queries)
    rows = page.rows(page.find('ranks')[number])
    assert list(rows) == ['1', '2–5', *(['6–10', '11–12'] if way == 'v2t' else ['6–8'])]
    for span, (count,) in rows.items():
        first, last = [int(n) for n in (span.split('–') * 2)[:2]]
        assert count == pytest.approx(expected[first - 1 : last].sum())
    assert any(count % 1 > 0.01 for (count,) in rows.values())  # there are ties
    hits = tested[2][f'msvd/{way}/R@1']
    assert rows['1'][0] == pytest.approx(hits / 100 * len(naive.queries))


@pytest.mark.parametrize('way', ['t2v', 'v2t'])
def test_queries_have_their_ranks(page, tested, way):
    naive = Naive(tested[0], way)
    # Captions can be the same; so ranks by caption, not by query.
    ranks = {}
    for query in naive.queries:
        ranks.setdefault(query[0], []).append(naive.rank(query))
    # Of the same rank, that with the higher score is the better one.
    order = sorted((naive.rank(query), -naive.score(query)) for query in naive.queries)
    groups = page.queries(way)
    assert list(groups) == ['worst', 'best', 'random']
    for shown in groups.values():
        assert len(shown) == 3
        for query in shown:
            assert any(query['rank'] == pytest.approx(rank) for rank in ranks[query['query']])
    for name, wanted in (('worst', order[:-4:-1]), ('best', order[:3])):
        assert [(q['rank'], -right_of(q)[1]) for q in groups[name]] == [
            pytest.approx(w) for w in wanted
        ]


@pytest.mark.parametrize('way', ['t2v', 'v2t'])
def test_queries_find_what_scores_highest(page, tested, way):
    naive = Naive(tested[0], way)
    below = tied = several = 0
    for shown in itertools.chain(*page.queries(way).values()):
        candidates = [
            q
            for q in naive.queries
            if q[0] == shown['query'] and naive.rank(q) == pytest.approx(shown['rank'])
        ]
        order = naive.order(candidates[0])
        scored = [score for _, score, _ in order]
        assert [hit[:3] for hit in shown['top']] == order[:5]
        for name, score, _, tie in shown['top']:
            assert tie == (scored.count(score) > 1)
        right = [item for item in order if item[2]]
        if any(hit[2] for hit in shown['top']):
            assert shown['below'] is None
        else:
            assert shown['below'][:3] == right[0]
            assert shown['below'][3] == (naive.probabilities(candidates[0])[1] > 0)
            below += 1
        wrong = naive.probabilities(candidates[0])[1]
        assert (f'({wrong} wrong with the same score)' in shown['head']) == (wrong > 0)
        tied += wrong > 0
        several += len(right) > 1
    assert below and tied
    assert several or way == 't2v'


def test_texts_are_shown_as_they_are(page):
    captions = {c for _, captions in VIDEOS.values() for c in captions}
    shown = {query['query'] for group in page.queries('t2v').values() for query in group}
    shown |= {
        hit[0] for group in page.queries('v2t').values() for query in group for hit in query['top']
    }
    assert shown <= captions
    for caption in (VIDEOS['a <b>&amp; "c\' .mp4'][1][0], 'x' * 1000, '\u202eback to front', LONG):
        assert caption in shown
    for e in page.find('text'):
        assert e.get('dir') == 'auto'
    alts = {img.get('alt') for img in page.root.iter('img')}
    assert alts <= {f'frames of {name}' for name in VIDEOS}
    assert 'frames of a <b>&amp; "c\' .mp4' in alts


def test_the_page_stands_for_itself(page):
    tags = {e.tag for e in page.root.iter()}
    assert not tags & {'script', 'link', 'iframe', 'base', 'object'}
    for e in page.root.iter():
        assert not any(key.startswith('on') for key in e.keys())
        if 'src' in e.keys():
            assert e.get('src').startswith('data:image/jpeg;base64,')
        if 'href' in e.keys():
            name = e.get('href').removeprefix('#')
            assert page.root.find(f".//*[@id='{name}']") is not None
    (policy,) = (e.get('content') for e in page.root.iter('meta') if 'http-equiv' in e.keys())
    assert policy.startswith("default-src 'none'; img-src data:")
    assert 'url(' not in page.text and '@import' not in page.text
    title = 'A <title> & more'
    assert page.root.find('head/title').text == title
    facts = dict(zip(*([e.text for e in page.root.iter(tag)] for tag in ('dt', 'dd'))))
    assert facts['Config'] == '<c>.py'
    assert facts['Size'] == '8 videos, 12 captions'
    assert f'torch {torch.__version__}' in facts['Versions']


def strips(page):
    """The pictures of each video, as arrays."""
    found = {}
    for img in page.root.iter('img'):
        data = base64.b64decode(img.get('src').split(',')[1])
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        found.setdefault(img.get('alt').removeprefix('frames of '), []).append(picture[..., ::-1])
    return found


def test_frames_are_those_of_the_video_and_its_window(page):
    found = strips(page)
    assert len(found) == len(VIDEOS)
    for name, pictures in found.items():
        for picture in pictures:
            height, width = picture.shape[:2]
            assert 6 * height <= width < 6.2 * height
            for frame in np.array_split(picture, 6, axis=1):
                middle = frame[height // 3 : -height // 3, height // 3 : -height // 3]
                assert np.abs(middle.mean((0, 1)) - VIDEOS[name][0]).max() < 12


def test_a_strip_spans_the_video():
    for number, shown in ((20, 6), (2, 2)):
        grey = torch.linspace(0, 240, number)
        imgs = grey.byte()[:, None, None, None].expand(-1, 3, 32, 32)
        strip = cv2.imdecode(np.frombuffer(draw_strip(imgs), np.uint8), cv2.IMREAD_GRAYSCALE)
        middles = [frame[30:-30, 30:-30].mean() for frame in np.array_split(strip, shown, axis=1)]
        assert np.allclose(middles, np.linspace(0, 240, shown), atol=8)
    with pytest.raises(ValueError, match='can be drawn, not .*float32'):
        draw_strip(imgs.float())


def test_only_what_is_shown_is_decoded_and_once(dataset, tmp_path, monkeypatch):
    read = []
    prepare = dataset.prepare_data
    monkeypatch.setattr(dataset, 'prepare_data', lambda i: read.append(i) or prepare(i))
    samples = embed()
    # Every caption and its video alone have all of a dimension of their own.
    for number, sample in enumerate(samples):
        sample['video_feature'] = torch.eye(8)[number] + number / 100
        sample['text_feature'] = sample['video_feature'][None].repeat(
            len(sample['text_feature']), 1
        )
    metric, metrics = measure(samples)
    write_page(str(tmp_path), 't', {}, metrics, metric, load(dataset), 1)
    page = Page(tmp_path / 'index.html')
    shown = {e.get('alt') for e in page.root.iter('img')}
    assert len(read) == len(set(read)) == len(shown) < 8
    names = list(VIDEOS)
    assert shown == {f'frames of {names[i]}' for i in read}


def test_a_video_that_cannot_be_read_any_more(tested, folder, tmp_path, logged_warnings):
    gone = list(VIDEOS)[0]
    copy = tmp_path / 'copy'
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = open_dataset(copy)
    (copy / gone).write_bytes(b'nothing')
    _, metric, metrics = tested
    write_page(str(tmp_path), 't', {}, metrics, metric, load(data), 3)
    page = Page(tmp_path / 'index.html')
    missing = page.find('missing')
    assert missing
    assert {(e.get('role'), e.get('aria-label')) for e in missing} == {
        ('img', f'no picture of {gone}')
    }
    assert set(strips(page)) == set(VIDEOS) - {gone}
    assert len(page.rows(page.find('metrics')[0])) == 4
    said = [m for m in logged_warnings if 'no picture' in m]
    assert len(said) == 1 and gone in said[0]


def test_a_data_set_that_does_not_know_the_videos(tested, dataset, tmp_path, logged_warnings):
    samples = [dict(s, video_id=f'{i}.mp4') for i, s in enumerate(tested[0])]
    metric, metrics = measure(samples)
    write_page(str(tmp_path), 't', {}, metrics, metric, load(dataset), 3)
    page = Page(tmp_path / 'index.html')
    assert page.section('t2v') is None and page.section('ranks') is not None
    assert any("video_id='0.mp4'" in message for message in logged_warnings)


def test_items_without_video_id_are_known_by_their_order(folder, tmp_path, logged_warnings):
    """Those of MMAction2's own data set, where each caption is an item."""
    chosen = {name: VIDEOS[name][1] for name in ('cyan.mp4', 'black.mp4', 'blue.mp4')}
    ann_file = tmp_path / 'plain.json'
    ann_file.write_text(json.dumps(chosen))
    data = open_dataset(
        folder,
        type='VideoTextDataset',
        ann_file=str(ann_file),
        data_prefix=dict(video=''),
        pipeline=[PIPELINE[0], *PIPELINE[2:]],
    )
    captions = [(name, text) for name, some in chosen.items() for text in some]
    samples = [dict(video_feature=row, text_feature=row[None]) for row in torch.eye(len(captions))]
    metric, metrics = measure(samples)
    write_page(str(tmp_path), 't', {}, metrics, metric, load(data), 5)
    page = Page(tmp_path / 'index.html')
    shown = page.queries('t2v')['random']
    assert [(q['top'][0][0], q['query']) for q in shown] == captions
    for name, pictures in strips(page).items():
        first = pictures[0][:, :90].mean((0, 1))
        # The first half of the video is white, the other of its colour.
        assert first.min() > 240
        assert np.abs(pictures[0][40:60, -60:-30].mean((0, 1)) - VIDEOS[name][0]).max() < 12

    loader = DataLoader(data, sampler=DefaultSampler(data, shuffle=True))
    write_page(str(tmp_path), 't', {}, metrics, metric, loader, 5)
    assert Page(tmp_path / 'index.html').section('t2v') is None
    assert any('meta_keys' in message for message in logged_warnings)


def test_a_page_that_cannot_be_written_costs_nothing(tested, dataset, tmp_path, logged_warnings):
    (tmp_path / 'index.html').write_text('before')
    (tmp_path / 'index.html.part').mkdir()
    _, metric, metrics = tested
    write_page(str(tmp_path), 't', {}, metrics, metric, load(dataset), 1)
    assert (tmp_path / 'index.html').read_text() == 'before'
    assert any('cannot be written' in message for message in logged_warnings)


def test_tiles_change_nothing(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    video_of_text = (
        torch.arange(20).repeat_interleave(3)[torch.randperm(60, generator=rng)].sort()[0]
    )
    video = torch.randn(20, 8, generator=rng).round()
    text = video[video_of_text] + torch.randn(60, 8, generator=rng).round()
    tested = Embeddings([str(i) for i in range(20)], video, text, video_of_text)
    whole = retrieve(tested, 4)
    some = [example.query for example in whole[0].examples['random']]
    assert len(set(some)) == 4 and max(some) > 4
    monkeypatch.setattr(scores, 'TILE', 7)
    for before, after in zip(whole, retrieve(tested, 4)):
        assert before.examples == after.examples
        assert before.histogram() == after.histogram()


def test_a_collapsed_model_has_the_ranks_of_chance():
    """All scores are the same: every rank is as likely."""
    tested = Embeddings([''] * 200, torch.ones(200, 4), torch.ones(200, 4), torch.arange(200))
    for direction in retrieve(tested, 2):
        assert [(first, last) for first, last, _ in direction.histogram()] == [
            (1, 1),
            (2, 5),
            (6, 10),
            (11, 50),
            (51, 100),
            (101, 200),
        ]
        assert [count for *_, count in direction.histogram()] == pytest.approx(
            [1, 4, 5, 40, 50, 100]
        )
        example = direction.examples['worst'][0]
        assert example.rank == 100.5 and example.tied == 199
        assert all(hit.tied for hit in example.top)


def test_a_video_without_captions_asks_nothing():
    tested = Embeddings(['a', 'b', 'c'], torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 2]))
    t2v, v2t = retrieve(tested, 5)
    expected = evaluate_similarity(torch.eye(3)[:2], [0, 2], topk=[1])
    assert {e.query for e in v2t.examples['random']} == {0, 2}
    assert t2v.histogram()[0][2] == expected['t2v/R@1'] / 100 * 2
    assert v2t.items == 2 and t2v.items == 3
