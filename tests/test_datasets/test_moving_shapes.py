"""MovingShapes: real clips, and nothing but order between two reverses."""

import json
import runpy
import shutil
from pathlib import Path

import decord
import numpy as np
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.dataset import Compose

from projects.vop.datasets import VideoTextDataset, moving_shapes
from projects.vop.datasets.moving_shapes import Scene, write_moving_shapes
from projects.vop.evaluation import evaluate_embeddings
from projects.vop.models import open_towers

pytestmark = pytest.mark.slow

CONFIGS = ROOT / 'configs'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('moving_shapes')
    write_moving_shapes(folder)
    return folder


def captions_of(root, split):
    return json.loads((root / f'{split}.json').read_text())


def decode(root, name):
    return decord.VideoReader(str(root / 'videos' / name))[:].asnumpy()


def by_caption(root, split):
    return {text: name for name, [text] in captions_of(root, split).items()}


def words_of(caption):
    """Colour, shape, start and end."""
    return [caption.split()[i] for i in (1, 2, 6, 9)]


def test_a_clip_and_its_reverse_have_exactly_the_same_frames(root):
    train, test = by_caption(root, 'train'), by_caption(root, 'test')
    assert train.keys() == test.keys() and len(test) == 2 * len(moving_shapes.scenes()) == 96
    for caption, name in test.items():
        frames = decode(root, name)
        other = decode(root, test[Scene(*words_of(caption)).reverse.caption])
        assert np.array_equal(frames, other[::-1])
        assert not np.array_equal(frames, other)
        assert not np.array_equal(frames, decode(root, train[caption]))


def test_the_shape_is_where_the_caption_says(root):
    for caption, name in by_caption(root, 'test').items():
        frames = decode(root, name).astype(int)
        for frame, place in zip(frames[[0, -1]], words_of(caption)[2:]):
            distance = np.abs(frame - frame[0, 0]).sum(-1) > 60
            y, x = np.argwhere(distance).mean(0) / frame.shape[0]
            assert np.abs(np.subtract((x, y), moving_shapes.PLACES[place])).max() < 0.1


def test_frames_sampled_for_testing_are_the_same_too(root):
    """So a model that averages frames cannot pass 50 %."""
    config = Config.fromfile(CONFIGS / 'moving_shapes/_data_.py')
    dataset = VideoTextDataset(
        ann_file=str(root / 'test.json'),
        data_prefix=dict(video=str(root / 'videos')),
        pipeline=config.test_pipeline,
        test_mode=True,
    )
    frames = torch.stack([dataset[i]['inputs']['imgs'].double() for i in range(len(dataset))])
    assert frames.shape[1:] == (8, 3, 32, 32)
    video = frames.mean(1).flatten(1)
    pairs = (video[:, None] - video).abs().amax(-1) < 1e-9
    assert (pairs.sum(0) == 2).all()
    # Texts that know the mean of their own clip find it as well as can be.
    video = torch.nn.functional.normalize(video - video.mean(0), dim=-1)
    metrics = evaluate_embeddings(video, video, torch.arange(len(video)))
    assert metrics['t2v/R@1'] == 50.0


def test_frames_that_are_kept_are_those_of_the_file(root, tmp_path):
    """Of which the second reading needs nothing."""
    path = shutil.copy(next((root / 'videos').glob('*.mp4')), tmp_path)
    item = dict(filename=path, modality='RGB', start_index=0)
    sample = dict(type='UniformSample', clip_len=8, num_clips=1, test_mode=True)
    plain, kept = (
        Compose([dict(type=first), sample, dict(type=last)])
        for first, last in (('DecordInit', 'DecordDecode'), ('vop.DecordKeep', 'ArrayDecode'))
    )
    wanted, found = plain(dict(item)), kept(dict(item))
    Path(path).unlink()
    for again in (found, kept(dict(item))):
        assert np.array_equal(again['imgs'], wanted['imgs']) and len(again['imgs']) == 8
        assert again['img_shape'] == wanted['img_shape'] == (64, 64)


def test_it_is_drawn_from_the_seed(root, tmp_path, monkeypatch):
    write_moving_shapes(tmp_path / 'again')
    for split in ('train', 'test'):
        assert captions_of(root, split) == captions_of(tmp_path / 'again', split)
    name = next(iter(captions_of(root, 'test')))
    assert np.array_equal(decode(root, name), decode(tmp_path / 'again', name))
    first = moving_shapes.scenes()[:1]
    monkeypatch.setattr(moving_shapes, 'scenes', lambda: first)
    name = next(iter(captions_of(root, 'train')))  # the first that is drawn
    write_moving_shapes(tmp_path / 'same')
    assert np.array_equal(decode(root, name), decode(tmp_path / 'same', name))
    write_moving_shapes(tmp_path / 'other', seed=1)
    assert not np.array_equal(decode(root, name), decode(tmp_path / 'other', name))


def test_stills_know_nothing_of_motion():
    captions = [caption for _, caption in moving_shapes.still_captions()]
    assert len(set(captions)) == len(moving_shapes.COLORS) * len(moving_shapes.SHAPES) * 5
    assert not any('moves' in caption for caption in captions)


def test_labels_are_the_directions_of_the_captions(root):
    classes = (root / 'directions.txt').read_text().splitlines()
    assert len(set(classes)) == len(classes) == 12
    for split in ('train', 'test'):
        lines = (root / f'{split}_directions.txt').read_text().splitlines()
        labels, captions = dict(map(str.split, lines)), captions_of(root, split)
        assert labels.keys() == captions.keys()
        for name, label in labels.items():
            assert captions[name][0].endswith(f' moves {classes[int(label)]}')


def test_what_is_there_is_left_alone(root):
    """Clips that were made before there were lists get the lists."""
    lists = {path: path.read_text() for path in root.glob('*directions.txt')}
    clips = {path: path.stat().st_mtime_ns for path in (root / 'videos').iterdir()}
    assert len(lists) == 3
    for path in lists:
        path.unlink()
    write_moving_shapes(root)
    assert {path: path.read_text() for path in root.glob('*directions.txt')} == lists
    assert {path: path.stat().st_mtime_ns for path in (root / 'videos').iterdir()} == clips
    assert not list(root.glob('*.part'))


def test_a_small_clip_is_saved_if_it_learned_the_stills(monkeypatch, tmp_path):
    path, stills = tmp_path / 'clip.pt', moving_shapes.still_captions()
    monkeypatch.chdir(ROOT)

    def train(stills):
        monkeypatch.setattr(moving_shapes, 'still_captions', lambda: stills)
        tool = runpy.run_path('tools/data/moving_shapes.py')
        return tool['train_clip'](path, steps=1, seed=0)

    assert not train(stills) and not path.exists()
    assert train(stills[:1])  # which cannot be taken for another
    open_towers('configs/moving_shapes/moving-shapes-clip.json', str(path))
