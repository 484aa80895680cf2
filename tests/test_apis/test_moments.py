"""Embedding windows of videos, and pictures."""

import copy

import numpy as np
import pytest
import torch
from helpers import grey, numbered, write_pictures
from mmaction.datasets import DecordDecode
from mmengine.dataset import Compose
from PIL import Image

from projects.vop.apis import VoPInferencer, Windows, reader
from projects.vop.apis.reader import read_videos
from projects.vop.errors import UserError, VideoReadError

pytestmark = pytest.mark.slow
WINDOWS = Windows(2.0, 1.0)


@pytest.fixture(scope='module')
def inferencer(retrieval_config):
    return VoPInferencer(retrieval_config('zero_shot'), None, 'cpu', show_progress=False)


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    """Videos of 7.2, 0.4 and 3.6 s, whose frames differ."""
    folder = tmp_path_factory.mktemp('films')
    for name, first, count in (('a', 0, 180), ('b', 180, 10), ('c', 90, 90)):
        write_pictures(folder / f'{name}.mp4', numbered(190)[first : first + count])
    return [str(folder / f'{name}.mp4') for name in 'abc']


class Noted(DecordDecode):
    """Notes which frames are decoded."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def transform(self, results):
        with open(self.log, 'a') as file:
            print(results['filename'], *results['frame_inds'].ravel(), file=file)
        return super().transform(results)


def noting(pipeline, log):
    steps = [Noted(log) if type(step) is DecordDecode else step for step in pipeline.transforms]
    return Compose(steps)


def alone(pipeline, path, span):
    """The frames of a window, as a data set reads those of an annotation."""
    data = dict(filename=path, start_index=0, modality='RGB', text=[], start=span[0], end=span[1])
    return pipeline(data)['inputs']['imgs'].numpy()


@pytest.mark.parametrize('length, stride', [(10, 5), (10, 10), (10, 1), (7.5, 2.5), (1, 0.3)])
def test_windows_cover_a_video_evenly(length, stride):
    for duration in np.linspace(0.01, 41, 300):
        spans = Windows(length, stride).spans(duration)
        assert spans[0][0] == 0 and spans[-1][1] == duration
        starts, ends = np.array(spans).T
        assert np.allclose(np.diff(starts), stride) and np.allclose((ends - starts)[:-1], length)
        assert starts[-1] < duration and (ends[:-1] < duration + 1e-9).all()
        if len(spans) > 1:
            assert abs(ends[-1] - starts[-1] - length) <= stride / 2 + 1e-9
        else:
            assert duration < length + stride / 2 + 1e-9


@pytest.mark.parametrize('piece', [2, 32])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_windows_are_as_clips_of_a_data_set(
    inferencer, films, tmp_path, monkeypatch, piece, num_workers
):
    """A video is decoded once and in order, but for where two pieces meet."""
    monkeypatch.setattr(reader, 'PIECE', piece)
    pipeline = noting(inferencer.pipeline, tmp_path / 'log')
    read = list(read_videos(films, pipeline, num_workers, ahead=2, windows=WINDOWS))
    assert not any(clip.error for clip in read)
    expected = [
        (path, span) for path, s in zip(films, (7.2, 0.4, 3.6)) for span in WINDOWS.spans(s)
    ]
    assert [(clip.path, clip.start) for clip in read] == [(path, a) for path, (a, _) in expected]
    assert [clip.end for clip in read] == pytest.approx([end for _, (_, end) in expected])
    assert [clip.is_last for clip in read] == [False] * 5 + [True, True] + [False] * 2 + [True]
    for clip in read:
        span = clip.start, clip.end
        assert np.array_equal(clip.frames, alone(inferencer.pipeline, clip.path, span))
    decoded = [line.split() for line in (tmp_path / 'log').read_text().splitlines()]
    first = [int(each) for path, *numbers in decoded for each in numbers if path == films[0]]
    if piece == 32:
        assert first == sorted(set(first)) and len(first) <= 6 * 4
    else:
        assert len(first) > len(set(first))  # so the other is a promise of pieces, not of chance


def test_a_video_that_ends_too_early_fails_after_what_was_read(
    inferencer, films, tmp_path, monkeypatch
):
    """Its header promises more, and what follows is not read any more."""
    monkeypatch.setattr(reader, 'PIECE', 2)

    class Fails(DecordDecode):
        def transform(self, results):
            if results['filename'] == films[0] and max(results['frame_inds']) > 100:
                raise RuntimeError('it is torn')
            return super().transform(results)

    steps = [
        Fails() if type(step) is DecordDecode else step for step in inferencer.pipeline.transforms
    ]
    read = list(read_videos(films, Compose(steps), 1, ahead=1, windows=WINDOWS))
    own = [clip for clip in read if clip.path == films[0]]
    assert [clip.is_last for clip in own] == [False, False, True]
    assert 'it is torn' in own[-1].error and own[-1].frames is None
    assert [clip.error for clip in read[3:]] == [None] * 4


def test_embeddings_of_windows_are_those_of_clips(inferencer, films, tmp_path):
    torn = tmp_path / 'torn.mp4'
    torn.write_bytes(b'no video')
    paths = [films[0], str(torn), *films[1:]]
    batches = list(inferencer.iter_videos(paths, 4, 2, WINDOWS))
    assert [batch.unfinished for batch in batches] == [films[0], None, None]
    assert [len(batch.paths) for batch in batches] == [4, 3, 3]
    assert batches[1].failed.keys() == {str(torn)}
    whole = inferencer.encode_videos(paths, 4, 0, WINDOWS)
    assert whole.paths == [films[0]] * 6 + [films[1]] + [films[2]] * 3
    for path, span, embedding in zip(whole.paths, whole.spans, whole.embeddings):
        frames = torch.from_numpy(alone(inferencer.pipeline, path, span))
        data = inferencer.model.data_preprocessor(dict(inputs=dict(imgs=[frames])))
        with torch.inference_mode():
            expected = inferencer.model.encode_video(data['inputs']['imgs'])[0]
        assert torch.allclose(embedding, expected, atol=1e-5)
    assert torch.allclose(torch.cat([b.embeddings for b in batches]), whole.embeddings, atol=1e-5)
    spans = inferencer.encode_videos(films, num_workers=0).spans
    assert [start for start, _ in spans] == [0, 0, 0]
    assert [end for _, end in spans] == pytest.approx([7.2, 0.4, 3.6], abs=0.05)


@pytest.mark.parametrize('windows', [(0, 1), (2, 3), (-1, -1), (float('inf'), 1), (2, 0)])
def test_windows_that_cannot_be_are_refused(inferencer, films, windows):
    with pytest.raises(UserError, match='Windows'):
        next(inferencer.iter_videos(films, windows=Windows(*windows)))


def test_other_pipelines_cannot_read_windows(inferencer, films):
    steps = [step for step in inferencer.pipeline.transforms if type(step).__name__ != 'TimeWindow']
    with pytest.raises(UserError, match='vop.TimeWindow after DecordInit'):
        next(read_videos(films, Compose(steps), 0, windows=WINDOWS))


def test_a_picture_is_a_video_in_which_nothing_moves(inferencer, tmp_path):
    picture = numbered(100)[77]
    Image.fromarray(picture).save(tmp_path / 'a.png')
    Image.fromarray(grey(200)).convert('L').save(tmp_path / 'b.jpg')
    write_pictures(tmp_path / 'still.mkv', [picture] * 20, options=dict(qp='0'))
    found = inferencer.encode_images([tmp_path / 'a.png', tmp_path / 'b.jpg'])
    still = inferencer.encode_videos([tmp_path / 'still.mkv'], num_workers=0).embeddings
    similar = torch.nn.functional.cosine_similarity(found, still)
    assert found.shape == (2, still.shape[1]) and similar[0] > 0.999 > similar[1]


def test_what_is_no_picture_is_named(inferencer, tmp_path, monkeypatch):
    (tmp_path / 'text.png').write_text('no picture')
    Image.fromarray(grey(1, 2000, 2000)).save(tmp_path / 'large.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    (tmp_path / 'code.eps').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
    for name in ('text.png', 'none.png', 'large.png', 'code.eps'):
        with pytest.raises(VideoReadError, match=name):
            inferencer.encode_images([tmp_path / name])


def test_windows_leave_the_pipeline_as_it_was(inferencer, films):
    before = copy.deepcopy(inferencer.encode_videos(films[:1], num_workers=0))
    inferencer.encode_videos(films[:1], num_workers=0, windows=WINDOWS)
    after = inferencer.encode_videos(films[:1], num_workers=0)
    assert torch.equal(before.embeddings, after.embeddings)
