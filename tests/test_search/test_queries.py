"""Indexes of moments, and what a query may say."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.vop.apis import EncodedVideos, VoPInferencer, Windows
from projects.vop.errors import UserError
from projects.vop.search import Hit, VideoIndex, combine, read, update_index
from projects.vop.search.update import BACKGROUND, SCENES, SUBJECTS

POINTS = torch.nn.functional.normalize(
    torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
)


class Drawn(VoPInferencer):
    """Its videos are text files with a number for each moment, which stands for an embedding."""

    encoded: list

    def iter_videos(self, videos, batch_size, num_workers, windows=None):
        rows = []
        for path in videos:
            self.encoded.append(Path(path).name)
            numbers = [*map(int, Path(path).read_text().split())]
            numbers = numbers if windows else numbers[:1]
            length, stride = windows or (10.0 * len(numbers), 0)
            rows += [
                (path, (k * stride, k * stride + length), POINTS[number], k + 1 == len(numbers))
                for k, number in enumerate(numbers)
            ]
        for start in range(0, len(rows), batch_size):
            paths, spans, points, is_last = zip(*rows[start : start + batch_size])
            unfinished = None if is_last[-1] else paths[-1]
            yield EncodedVideos([*paths], torch.stack(points), {}, [*spans], unfinished)


@pytest.fixture(scope='module')
def inferencer(retrieval_config):
    with pytest.MonkeyPatch.context() as patch:  # to lay out a config takes long
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **kwargs: (text, None))
        return Drawn(retrieval_config(), None, 'cpu', show_progress=False)


@pytest.fixture(autouse=True)
def _nothing_encoded_yet(inferencer):
    inferencer.encoded = []


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / 'videos', {'a.mp4': '1 2 3 4', 'b/c.mp4': '5', 'b/d.mp4': '6 7 8 9 10'})
    return tmp_path / 'videos'


def write(folder, videos):
    for name, text in videos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def run(inferencer, folder, windows=(10.0, 5.0), **kwargs):
    summary = update_index(
        inferencer, folder, folder.parent / 'index', batch_size=3, windows=windows, **kwargs
    )
    return summary, VideoIndex.open(folder.parent / 'index')


def held(index):
    """Numbers of the moments of each video, and when they begin."""
    numbers = torch.cdist(torch.tensor(np.array(index.embeddings)), POINTS).argmin(dim=1)
    found = {}
    for moment, number in zip(index.moments, numbers.tolist()):
        assert moment['end'] == moment['start'] + 10
        found.setdefault(index.names[moment['video']], {})[float(moment['start'])] = number
    return found


def test_a_video_has_many_moments(inferencer, folder):
    summary, index = run(inferencer, folder)
    assert summary == (3, 0, 0, 0, {}) and len(index) == 10 and index.window == (10, 5)
    assert held(index) == {
        'a.mp4': {0: 1, 5: 2, 10: 3, 15: 4},
        'b/c.mp4': {0: 5},
        'b/d.mp4': {0: 6, 5: 7, 10: 8, 15: 9, 20: 10},
    }
    assert '10 moments of 10 s, one each 5 s, in 3 videos' in str(index)
    # An update without windows takes those that there are.
    inferencer.encoded.clear()
    write(folder, {'b/d.mp4': '6 17', 'e.mp4': '11 12'})
    (folder / 'b/c.mp4').unlink()
    summary, index = run(inferencer, folder, windows=None)
    assert summary == (1, 1, 1, 1, {}) and sorted(inferencer.encoded) == ['d.mp4', 'e.mp4']
    assert held(index) == {
        'a.mp4': {0: 1, 5: 2, 10: 3, 15: 4},
        'b/d.mp4': {0: 6, 5: 17},
        'e.mp4': {0: 11, 5: 12},
    }
    assert (np.diff(index.ids) > 0).all() and index.ids[-1] == 13


def test_other_windows_mean_to_encode_all_again(inferencer, folder, logged_warnings):
    before = run(inferencer, folder, windows=None)[1]
    assert before.window is None and len(before) == 3
    summary, index = run(inferencer, folder, Windows(10.0, 5.0))
    assert summary.changed == 3 and len(index) == 10
    assert any('other windows' in text for text in logged_warnings)
    assert len(before.search(POINTS[1:2], 5)[0]) == 3  # a reader of the old one has it still


@pytest.mark.parametrize('windows, left', [((10.0, 5.0), 'ac'), ((9.0, 5.0), 'acd'), (None, 'acd')])
def test_a_stopped_run_resumes_with_the_same_windows_alone(
    inferencer, folder, monkeypatch, windows, left, logged_warnings
):
    """What was not encoded to its end was not saved."""
    iter_videos = type(inferencer).iter_videos

    def stop(self, *args):
        for batch in iter_videos(self, *args):
            yield batch
            if batch.unfinished is not None and batch.unfinished.endswith('a.mp4'):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Drawn, 'iter_videos', stop)
        run(inferencer, folder)
    with pytest.raises(UserError, match='is not finished'):
        VideoIndex.open(folder.parent / 'index')
    inferencer.encoded.clear()
    _, index = run(inferencer, folder, windows)
    assert sorted(inferencer.encoded) == [f'{name}.mp4' for name in left]
    is_said = any('they are left out, and removed' in text for text in logged_warnings)
    assert is_said == (windows != (10.0, 5.0))
    assert len(index) == (10 if windows else 3) and index.window == windows
    assert not (index.folder / 'parts').exists()


@pytest.mark.parametrize('exact_below', [1, 100])
def test_of_moments_that_overlap_the_best_is_found(inferencer, folder, monkeypatch, exact_below):
    monkeypatch.setattr(read, 'EXACT_BELOW', 1)
    _, index = run(inferencer, folder, exact_below=exact_below)
    assert (index.ivf is not None) == (exact_below == 1)
    query = POINTS[2:3] + 0.9 * POINTS[3:4] + 0.8 * POINTS[4:5] + 0.5 * POINTS[9:10]
    hits = index.search(query, 4)[0]
    best = [(hit.name, hit.start) for hit in hits[:3]]
    assert best == [('a.mp4', 5), ('a.mp4', 15), ('b/d.mp4', 15)]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].score == pytest.approx(float(query[0] @ POINTS[2]), abs=1e-5)
    for hits in index.search(POINTS[:20], 10):
        assert len(hits) >= 4
        for place, hit in enumerate(hits):
            for other in hits[:place]:
                assert hit.name != other.name or abs(hit.start - other.start) >= 10


@pytest.mark.parametrize('exact_below', [1, 100])
def test_a_query_may_choose_among_videos(inferencer, folder, monkeypatch, exact_below):
    monkeypatch.setattr(read, 'EXACT_BELOW', 1)
    _, index = run(inferencer, folder, exact_below=exact_below)
    for chosen, names in (
        (index.select('b/*'), {'b/c.mp4', 'b/d.mp4'}),
        (index.select('*', min_duration=20), {'a.mp4', 'b/d.mp4'}),
        (index.select('*.mp4', max_duration=25), {'a.mp4', 'b/c.mp4'}),
        (index.select('b/*', 11, 99), {'b/d.mp4'}),
        (index.select('B/*'), set()),
    ):
        hits = index.search(POINTS[1:2], 9, among=chosen)[0]
        assert {hit.name for hit in hits} == names
    scores = [hit.score for hit in index.search(POINTS[1:2], 9)[0]]
    few = index.search(POINTS[1:2], 9, min_score=scores[1])[0]
    assert [hit.score for hit in few] == scores[:2]
    assert index.search(POINTS[1:2], 9, min_score=2)[0] == []
    with pytest.raises(ValueError, match='among'):
        index.search(POINTS[1:2], 9, among=np.ones(10, bool))


def test_a_table_has_a_row_for_each_hit(inferencer, folder):
    pandas = pytest.importorskip('pandas')
    _, index = run(inferencer, folder)
    answers = index.search(POINTS[:2], 3)
    table = answers.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert [*table.columns] == ['query', 'rank', *Hit._fields]
    assert [*table['rank']] == [1, 2, 3] * 2 and [*table['query']] == [0] * 3 + [1] * 3
    assert table.iloc[4, 2:].tolist() == [*answers[1][1]]


def test_several_make_one_query():
    query = combine(POINTS[:3], [1, 2, -0.5])
    expected = POINTS[0] + 2 * POINTS[1] - 0.5 * POINTS[2]
    assert torch.allclose(query[0], expected / expected.norm(), atol=1e-6)
    with pytest.raises(UserError, match='nothing is left'):
        combine(POINTS[[0, 0]], [1, -1])


def test_the_threshold_is_what_few_captions_exceed(inferencer, folder):
    _, index = run(inferencer, folder)
    texts = inferencer.encode_texts([f'{a} {b}' for a in SUBJECTS for b in SCENES])
    scores = (texts @ torch.tensor(np.array(index.embeddings)).T).flatten()
    above = (scores > index.threshold).float().mean()
    assert above == pytest.approx(1 - BACKGROUND, abs=0.01)
    write(folder, {'e.mp4': '11 12 13 14'})
    assert run(inferencer, folder)[1].threshold != index.threshold


def test_a_video_without_a_length_is_found_but_not_by_its_length(inferencer, folder, monkeypatch):
    iter_videos = type(inferencer).iter_videos

    def endless(self, *args):
        for batch in iter_videos(self, *args):
            yield batch._replace(spans=[(0.0, float('nan'))] * len(batch.paths))

    monkeypatch.setattr(Drawn, 'iter_videos', endless)
    _, index = run(inferencer, folder, windows=None)
    assert np.isnan(index.search(POINTS[1:2], 1)[0][0].end)
    assert index.select().all() and not index.select(max_duration=99).any()
    assert os.fspath(index.path('a.mp4')) == str(folder / 'a.mp4')
