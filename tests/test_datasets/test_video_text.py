"""Items, bad videos, and items that can be repeated."""

import copy
import gc
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
import unicodedata
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from projects.vop.datasets import VideoTextDataset, explain_data_loader
from projects.vop.errors import UserError, VideoReadError
from projects.vop.registry import DATA_SAMPLERS, DATASETS

CONFIG = Path(__file__).resolve().parents[2] / 'configs/_base_/datasets/_video_text.py'


@cache
def load_config(size, frames):
    text = CONFIG.read_text().replace('224', str(size)).replace('= 12', f'= {frames}')
    return Config.fromstring(text, '.py')


def build(folder, annotations, test_mode=False, size=32, frames=4, **kwargs):
    """A data set of an annotation file in ``folder``, or of annotations."""
    if isinstance(annotations, dict):
        (folder / 'ann.json').write_text(json.dumps(annotations))
        annotations = 'ann.json'
    config = load_config(size, frames)
    loader = config.test_dataloader if test_mode else config.train_dataloader
    paths = dict(ann_file=str(folder / annotations), data_prefix=dict(video=str(folder)))
    return DATASETS.build(dict(loader.dataset, **paths, test_mode=test_mode, **kwargs))


def frames_of(item):
    return item['inputs']['imgs']


def video_of(item):
    return item['data_samples'].video_id


@pytest.fixture
def bad_folder(tmp_path, video_folder):
    """Videos 0 to 3, of which 1 is garbage, with two captions each."""
    for number in (0, 2, 3):
        (tmp_path / f'{number}.mp4').symlink_to(video_folder / f'{number}.mp4')
    (tmp_path / '1.mp4').write_bytes(bytes(range(256)) * 8)
    (tmp_path / 'train.json').write_text(json.dumps({f'{n}.mp4': ['one', 'two'] for n in range(4)}))
    return tmp_path


def test_items_are_pairs_or_videos_with_all_captions(video_folder):
    train, test = build(video_folder, 'train.json'), build(video_folder, 'test.json', True)
    infos = [train.get_data_info(i) for i in range(len(train))]
    assert [(info['video_id'], info['text']) for info in infos] == [
        (f'{n}.mp4', f'caption {i} of {n}') for n in range(5) for i in range(2)
    ]
    assert video_of(train[3]) == '1.mp4' and train[3]['inputs']['text'].shape == (77,)
    assert len(test) == 5
    assert video_of(test[3]) == '3.mp4' and test[3]['inputs']['text'].shape == (3, 77)


def test_names_without_an_extension_are_mp4(video_folder, tmp_path):
    (tmp_path / '0.mp4').symlink_to(video_folder / '0.mp4')
    assert video_of(build(tmp_path, {'0': ['x']})[0]) == '0'


@pytest.mark.parametrize('form, other', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_names_in_another_unicode_form_are_found(video_folder, tmp_path, form, other):
    """macOS writes names in another form than most annotation files."""
    on_disk, told = (unicodedata.normalize(f, 'Übung/é.mp4') for f in (form, other))
    (tmp_path / on_disk).parent.mkdir()
    (tmp_path / on_disk).symlink_to(video_folder / '0.mp4')
    dataset = build(tmp_path, {told: ['x']})
    assert video_of(dataset[0]) == told
    with pytest.raises(UserError, match='1 of the 2 videos .* are missing: .*ö.mp4'):
        build(tmp_path, {told: ['x'], 'ö.mp4': ['y']})


def test_names_that_begin_as_addresses_are_files(video_folder, tmp_path, monkeypatch):
    """FFmpeg would look for the protocol; a folder with such a name is looked into."""
    monkeypatch.chdir(tmp_path)
    Path('my:videos').mkdir()
    for name in ('take:1.mp4', 'my:videos/pipe:0.mp4'):
        Path(name).symlink_to(video_folder / '0.mp4')
    for folder, name in (('.', 'take:1.mp4'), ('', 'take:1.mp4'), ('my:videos', 'pipe:0.mp4')):
        dataset = VideoTextDataset(write_json({name: ['x']}), [], dict(video=folder))
        path = Path(dataset[0]['filename'])
        assert path.is_absolute() and path.samefile(video_folder / '0.mp4')
        with pytest.raises(UserError, match='1 of the 2 videos'):
            VideoTextDataset(write_json({name: ['x'], 'no': ['y']}), [], dict(video=folder))


def write_json(annotations, path=Path('ann.json')):
    path.write_text(json.dumps(annotations))
    return str(path)


ANNOTATIONS = {
    'a.mp4': dict(captions=['ein Mädchen', '猫'], start=1, end=2.5),
    'b.mp4': ['c'],
    os.fsdecode(b'caf\xe9.mp4'): ['d', 'e', 'f'],
}


@pytest.mark.parametrize('test_mode', [False, True])
def test_items_subsets_and_copies(tmp_path, test_mode):
    wanted = []
    for number, (video, value) in enumerate(ANNOTATIONS.items()):
        (tmp_path / video).touch()
        window = dict(value) if isinstance(value, dict) else dict(captions=value)
        texts = window.pop('captions')
        item = dict(filename=str(tmp_path / video), video_id=video, video_number=number, **window)
        item |= dict(modality='RGB', start_index=0)
        wanted += [dict(item, text=text) for text in ([texts] if test_mode else texts)]
    ann_file = write_json(ANNOTATIONS, tmp_path / 'ann.json')

    def make(**kwargs):
        pipeline, prefix = [dict(type='vop.TimeWindow')], dict(video=str(tmp_path))
        return VideoTextDataset(ann_file, pipeline, prefix, test_mode=test_mode, **kwargs)

    def items(dataset):
        found = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert [item.pop('sample_idx') for item in found] == list(range(len(dataset)))
        return found

    assert items(make(serialize_data=True)) == wanted
    dataset = make()
    for each in (dataset, pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert items(each) == wanted
        assert each.get_data_info(-1)['text'] == wanted[-1]['text']
    for part in (2, -2, [2, 0]):
        expected = [wanted[2], wanted[0]] if isinstance(part, list) else None
        expected = expected or (wanted[:part] if part > 0 else wanted[part:])
        assert items(make(indices=part)) == items(dataset.get_subset(part)) == expected
        assert items(make(indices=part).get_subset(1)) == expected[:1]


def test_workers_share_the_items(tmp_path):
    """What they hold of Python's objects does not grow with the captions."""
    sizes = []
    for videos in (10, 1000):
        names = {f'{number}.mp4': ['a caption of it'] * 10 for number in range(videos)}
        for name in names:
            (tmp_path / name).touch()
        ann_file = write_json(names, tmp_path / 'ann.json')
        dataset = VideoTextDataset(ann_file, [], dict(video=str(tmp_path)))
        sizes.append(len(gc.get_referents(*vars(dataset.data_list).values())))
        assert len(dataset) == 10 * videos
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize('num_frames, height, width', [(1, 50, 50), (20, 48, 130)])
def test_short_and_small_videos(tmp_path, write_video, num_frames, height, width, test_mode):
    write_video(tmp_path / 'v.mp4', num_frames, height, width)
    frames = frames_of(build(tmp_path, {'v.mp4': ['x']}, test_mode, size=224, frames=12)[0])
    assert frames.shape == (12, 3, 224, 224) and frames.dtype == torch.uint8
    assert frames.float().std() > 10  # noise, as in the file


@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize('name', ['unordered.mov', 'flipping_a_pancake.mkv'])
def test_real_videos(shared_data, tmp_path, name, test_mode):
    (tmp_path / name).symlink_to(shared_data / 'videos' / name)
    frames = frames_of(build(tmp_path, {name: ['x']}, test_mode, size=224, frames=12)[0])
    assert frames.shape == (12, 3, 224, 224) and frames.dtype == torch.uint8


@pytest.mark.parametrize('test_mode', [False, True])
def test_bad_videos_are_named(bad_folder, test_mode):
    with pytest.raises(UserError) as missing:
        build(bad_folder, {'0.mp4': ['x'], 'gone.mp4': ['y']}, test_mode)
    assert f'1 of the 2 videos of {bad_folder / "ann.json"}' in str(missing.value)
    dataset = build(bad_folder, 'train.json', test_mode)
    with pytest.raises(VideoReadError) as broken:
        dataset[1 if test_mode else 2]
    for name, error in {'gone.mp4': missing, '1.mp4': broken}.items():
        assert str(bad_folder / name) in str(error.value)
        assert ('skip_bad_videos' in str(error.value)) is not test_mode


@pytest.mark.parametrize('test_mode', [False, True])
def test_real_corrupted_video_is_named(shared_data, tmp_path, test_mode):
    (tmp_path / 'corrupted.mp4').symlink_to(shared_data / 'videos' / 'corrupted.mp4')
    with pytest.raises(VideoReadError, match=r'corrupted\.mp4 cannot be read'):
        build(tmp_path, {'corrupted.mp4': ['x']}, test_mode)[0]


def test_skipped_videos_are_replaced_counted_and_named(bad_folder, logged_warnings):
    dataset = build(bad_folder, 'train.json', skip_bad_videos=True)
    assert dataset.skipped_videos == []
    videos = [video_of(dataset[i]) for i in range(len(dataset))]
    assert len(videos) == 8 and set(videos) == {'0.mp4', '2.mp4', '3.mp4'}
    assert dataset.skipped_videos == [str(bad_folder / '1.mp4')]
    [message] = [text for text in logged_warnings if '1.mp4' in text]
    assert '1 of 4 videos skipped' in message

    dataset = build(bad_folder, {'0.mp4': ['x'], 'gone.mp4': ['y']}, skip_bad_videos=True)
    assert dataset.skipped_videos == [str(bad_folder / 'gone.mp4')]
    assert any('gone.mp4' in text for text in logged_warnings)
    assert [video_of(dataset[i]) for i in range(2)] == ['0.mp4', '0.mp4']


@pytest.mark.slow
def test_skipping_in_workers_is_seen_by_the_main_process(bad_folder):
    dataset = build(bad_folder, 'train.json', skip_bad_videos=True)
    batches = list(DataLoader(dataset, 2, num_workers=2, collate_fn=pseudo_collate))
    videos = [s.video_id for batch in batches for s in batch['data_samples']]
    assert len(videos) == 8 and set(videos) == {'0.mp4', '2.mp4', '3.mp4'}
    assert dataset.skipped_videos == [str(bad_folder / '1.mp4')]
    with pytest.raises(VideoReadError, match=r'1\.mp4 cannot be read'):  # not skipped
        dataset = build(bad_folder, 'train.json')
        list(DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate))


def test_neither_test_videos_nor_all_can_be_skipped(bad_folder):
    with pytest.raises(UserError, match='skip_bad_videos=True is for train'):
        build(bad_folder, 'train.json', test_mode=True, skip_bad_videos=True)
    with pytest.raises(UserError, match='2 of the 2 videos'):
        build(bad_folder, {'x.mp4': ['x'], 'y.mp4': ['y']}, skip_bad_videos=True)
    shutil.copy(bad_folder / '1.mp4', bad_folder / '4.mp4')
    dataset = build(bad_folder, {'1.mp4': ['x'], '4.mp4': ['y']}, skip_bad_videos=True)
    with pytest.raises(VideoReadError, match='None of the 2 videos'):
        dataset[0]
    assert len(dataset.skipped_videos) == 2


def read(dataset, epochs, num_workers=0, seed=7, **kwargs):
    """Items by epoch and index, as a training run reads them."""
    sampler = DATA_SAMPLERS.build(dict(type='vop.ReproducibleSampler', dataset=dataset, seed=seed))
    kwargs.update(sampler=sampler, num_workers=num_workers, collate_fn=lambda items: items[0])
    loader, items = DataLoader(dataset, **kwargs), {}
    for epoch in epochs:  # as MMEngine does
        sampler.set_epoch(epoch)
        for index, item in zip(list(sampler), loader):
            items[epoch, index] = item
    return items


def same(items, others):
    """How many items have the same video and frames in both."""
    pairs = [(item, others[key]) for key, item in items.items()]
    return sum(video_of(a) == video_of(b) and frames_of(a).equal(frames_of(b)) for a, b in pairs)


@pytest.fixture
def dataset(video_folder):
    return build(video_folder, 'train.json')


@pytest.fixture(scope='module')
def items(video_folder):
    return read(build(video_folder, 'train.json'), epochs=[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize('num_workers, persistent', [(1, False), (2, True)])
def test_workers_do_not_change_items(dataset, items, num_workers, persistent):
    """Persistent workers live through both epochs."""
    again = read(dataset, [0, 1], num_workers, persistent_workers=persistent)
    assert len(items) == 20
    assert same(items, again) == 20


@pytest.mark.slow
def test_workers_that_start_before_the_first_epoch_is_set_change_no_items(dataset, items):
    """As in training by iterations."""
    sampler = DATA_SAMPLERS.build(dict(type='vop.ReproducibleSampler', dataset=dataset, seed=7))
    loader = DataLoader(dataset, sampler=sampler, num_workers=1, collate_fn=lambda items: items[0])
    again = {(0, index): item for index, item in zip(list(sampler), loader)}
    assert len(again) == same(again, items) == 10


def test_items_depend_on_seed_epoch_and_index_alone(dataset, items):
    random.seed(99)
    np.random.seed(99)
    assert same(items, read(dataset, epochs=[0, 1])) == 20
    resumed = read(dataset, epochs=[1])
    assert len(resumed) == same(resumed, items) == 10
    assert same(items, read(dataset, epochs=[0, 1], seed=8)) == 0
    first = {key: item for key, item in items.items() if key[0] == 0}
    assert same(first, {(0, i): items[1, i] for _, i in first}) == 0
    assert not frames_of(items[0, 0]).equal(frames_of(items[0, 1]))  # pairs of a video


def test_the_order_differs_between_epochs(dataset):
    sampler = DATA_SAMPLERS.build(dict(type='vop.ReproducibleSampler', dataset=dataset, seed=7))
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))


@pytest.mark.parametrize('garbage', [False, True])
def test_what_takes_a_bad_videos_place_can_be_repeated(bad_folder, write_video, garbage):
    """It does not matter whether the video is already known as bad."""
    if not garbage:  # but a video that can be opened and not be decoded to its end
        path = bad_folder / '1.mp4'
        write_video(path, 20, movflags='faststart')
        content = path.read_bytes()
        good = content.index(b'mdat') + 3000
        path.write_bytes(content[:good] + b'\xff' * (len(content) - good))
    known = build(bad_folder, 'train.json', skip_bad_videos=True)
    known[2]
    assert known.skipped_videos == [str(bad_folder / '1.mp4')]
    for seed in range(4):
        fresh = build(bad_folder, 'train.json', skip_bad_videos=True)
        fresh.set_epoch(0, seed)
        known.set_epoch(0, seed)
        assert same({0: fresh[2]}, {0: known[2]}) == 1


def test_reading_leaves_global_randomness_alone(dataset, video_folder):
    dataset.set_epoch(0, 7)
    random.seed(1)
    np.random.seed(1)
    wanted = random.Random(1).random(), np.random.RandomState(1).rand()
    dataset[0]
    assert (random.random(), np.random.rand()) == wanted
    test = build(video_folder, 'test.json', test_mode=True)
    once = frames_of(test[0])
    test.set_epoch(3, 5)
    assert frames_of(test[0]).equal(once)


ACTS = {
    'hang.mp4': lambda: time.sleep(60),
    'crash.mp4': lambda: os.kill(os.getpid(), signal.SIGSEGV),
    'kill.mp4': lambda: os.kill(os.getppid(), signal.SIGKILL),  # the worker of the data loader
}
HANGS, CRASHES = 'it took longer than 3 s', r'its decoder ended the process .signal 11, Segm'


def misbehave(results):
    """A transform that acts by the name of the video."""
    ACTS.get(Path(results['filename']).name, int)()
    return results


@pytest.fixture
def misbehaving(tmp_path, video_folder):
    """Makes data sets of a video that is fine and of some that are not."""

    def make(*names, timeout=3, **kwargs):
        for name in ('0.mp4', *names):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(video_folder / '0.mp4')
        annotations = {name: ['x'] for name in ('0.mp4', *names)}
        dataset = build(tmp_path, annotations, timeout=timeout, **kwargs)
        dataset.pipeline.transforms.insert(0, misbehave)
        return dataset

    return make


@pytest.mark.slow
@pytest.mark.parametrize('name, reason', [('hang.mp4', HANGS), ('crash.mp4', CRASHES)])
@pytest.mark.parametrize('test_mode', [False, True])
def test_videos_that_hang_or_crash_are_named(misbehaving, name, reason, test_mode):
    dataset = misbehaving(name, test_mode=test_mode)
    with pytest.raises(VideoReadError, match=rf'{name} cannot be read: {reason}'):
        dataset[1]
    assert video_of(dataset[0]) == '0.mp4' and not dataset.videos_being_read


@pytest.mark.slow
@pytest.mark.parametrize('num_workers', [0, 2])
def test_videos_that_hang_or_crash_are_skipped(misbehaving, num_workers, logged_warnings):
    dataset = misbehaving('hang.mp4', 'crash.mp4', skip_bad_videos=True)
    batches = list(DataLoader(dataset, num_workers=num_workers, collate_fn=pseudo_collate))
    assert [s.video_id for batch in batches for s in batch['data_samples']] == ['0.mp4'] * 3
    assert [Path(video).name for video in dataset.skipped_videos] == ['hang.mp4', 'crash.mp4']
    if not num_workers:
        assert '1 of 3 videos skipped' in logged_warnings[0] and HANGS in logged_warnings[0]


@pytest.mark.slow
def test_an_mpeg_ts_at_which_decord_waits_for_ever(shared_data, tmp_path):
    with (
        av.open(str(shared_data / 'videos/pool_cleaning.mp4')) as old,
        av.open(str(tmp_path / 'a.ts'), 'w', format='mpegts') as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    with pytest.raises(VideoReadError, match=r'a\.ts cannot be read: it took longer than 3 s'):
        build(tmp_path, {'a.ts': ['x']}, timeout=3)[0]


@pytest.mark.slow
@pytest.mark.parametrize('name, options', [('kill.mp4', {}), ('hang.mp4', dict(timeout=3))])
def test_a_data_loader_that_fails_names_what_it_read(misbehaving, name, options):
    dataset = misbehaving(name, timeout=60, skip_bad_videos=True)
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate, **options)
    with pytest.raises(UserError, match=rf'being read: .*{name} .*num_workers'):
        with explain_data_loader():
            list(loader)
    for error in (RuntimeError, ConnectionResetError, EOFError):  # of other origin
        with pytest.raises(error), explain_data_loader():
            raise error('something else')


def test_a_data_loader_is_named_whose_worker_ends_while_nobody_waits_for_it():
    others = multiprocessing.active_children()
    begun = iter(DataLoader(range(9), num_workers=1))
    (worker,) = (child for child in multiprocessing.active_children() if child not in others)
    with pytest.raises(UserError, match='num_workers'), explain_data_loader():
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(60)  # torch raises here
    del begun


def test_a_process_of_its_own_changes_no_number(dataset, video_folder):
    plain = build(video_folder, 'train.json', timeout=None)
    for each in (dataset, plain):
        each.set_epoch(2, 7)
    assert all(same({0: dataset[i]}, {0: plain[i]}) for i in range(3))


def test_without_an_epoch_numbers_are_those_of_the_process_that_asks(misbehaving):
    dataset, runs = misbehaving('crash.mp4'), []
    for seed in (1, 1, 2):
        random.seed(seed)
        np.random.seed(seed)
        run = [frames_of(dataset[0])]
        with pytest.raises(VideoReadError, match=CRASHES):  # a new process does not begin anew
            dataset[1]
        runs.append([*run, frames_of(dataset[0])])
    assert all(a.equal(b) for a, b in zip(runs[0], runs[1]))
    assert not any(a.equal(b) for a, b in zip([*runs[0], runs[0][0]], [*runs[2], runs[0][1]]))


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mp4')
    (tmp_path / 'folder.mp4').mkdir()
    annotations = {name: ['x'] for name in ('pipe.mp4', 'folder.mp4')}
    with pytest.raises(UserError, match=r'pipe.mp4 .it is not a regular .*folder.mp4 .it is a fo'):
        build(tmp_path, annotations)
