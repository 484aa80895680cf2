"""Indexes of folders of videos: making, updating and searching them."""

import inspect
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.vop.apis import EncodedVideos, VoPInferencer
from projects.vop.search import VideoIndex, update_index
from projects.vop.search import update as indexing
from projects.vop.search.ann import IVF, search_exactly
from projects.vop.search.store import IndexingError, scan, write, writing
from projects.vop.search.update import model_files


class Recording(VoPInferencer):
    """Notes what it encodes, and can be stopped on the way."""

    encoded = ()
    stop_after = None  # batches

    def iter_videos(self, videos, *args):
        batches = super().iter_videos(videos, *args)
        for number, batch in enumerate(batches):
            if number == self.stop_after:
                raise KeyboardInterrupt
            self.encoded.extend(os.path.basename(path) for path in [*batch.paths, *batch.failed])
            yield batch


class Drawn(VoPInferencer):
    """Gives each video an embedding by its name, without reading it."""

    def iter_videos(self, videos, *args):
        numbers = [int(Path(path).stem) for path in videos]
        yield EncodedVideos(videos, clustered(5000)[numbers], {})


def clustered(count):
    """Embeddings of shape [count x 32] about 40 directions."""
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(40, 32, generator=draw)
    points = centers.repeat(-(-count // 40), 1)[:count]
    points = points + torch.randn(count, 32, generator=draw)
    return points / points.norm(dim=1, keepdim=True)


@pytest.fixture(scope='module')
def config(retrieval_config):
    return retrieval_config()


@pytest.fixture(scope='module')
def own(config):
    """The model of most tests."""
    return Recording(config, None, 'cpu', show_progress=False)


@pytest.fixture
def inferencer(own):
    own.encoded, own.stop_after = [], None
    return own


@pytest.fixture(scope='module')
def other(config):
    """A model with other prompts."""
    return VoPInferencer(config, None, 'cpu', show_progress=False)


@pytest.fixture
def folder(video_folder, tmp_path):
    """Five videos, two of one name, among other files."""
    folder = tmp_path / 'videos'
    (folder / 'cats').mkdir(parents=True)
    for number, name in enumerate(['0.mp4', '1.MP4', '2.mp4', 'cats/0.mp4', 'cats/4.mp4']):
        shutil.copy2(video_folder / f'{number}.mp4', folder / name)
    for name in ('notes.txt', '.hidden.mp4', 'half.mp4.part'):
        (folder / name).write_text('no video')
    return folder


NAMES = ['0.mp4', '1.MP4', '2.mp4', 'cats/0.mp4', 'cats/4.mp4']


def update(inferencer, folder, **kwargs):
    """Index next to the folder; give the summary."""
    return update_index(
        inferencer, folder, folder.parent / 'index', batch_size=2, num_workers=0, **kwargs
    )


def opened(folder):
    return VideoIndex.open(folder.parent / 'index')


def contents(folder):
    """All files of the index, but for the lock."""
    index = folder.parent / 'index'
    return {
        str(path.relative_to(index)): path.read_bytes()
        for path in index.rglob('*')
        if path.is_file() and path.name != '.lock'
    }


def vectors(index):
    return dict(zip(index.names, index.embeddings.tolist()))


# Making and searching


def test_it_finds_what_comparing_all_finds(inferencer, folder):
    summary = update(inferencer, folder)
    assert summary == (5, 0, 0, 0, {})
    index = opened(folder)
    assert list(index.names) == NAMES and index.video_dir == folder
    paths = [index.path(name) for name in NAMES]
    encoded = inferencer.encode_videos(paths, num_workers=0)
    assert np.allclose(index.embeddings, encoded.embeddings, atol=1e-6)
    texts = ['a dog', 'a red square']
    queries = torch.cat([inferencer.encode_texts(texts), encoded.embeddings])
    for hits, scores in zip(index.search(queries, 3), queries @ encoded.embeddings.T):
        best = scores.topk(3)
        assert [hit.name for hit in hits] == [NAMES[i] for i in best.indices]
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert {hit.name for hit in index.search(queries, 99)[0]} == set(NAMES)
    assert 'exact' in str(index)


def test_it_holds_what_a_query_needs(config, inferencer, folder, tmp_path, monkeypatch):
    update(inferencer, folder)
    moved = shutil.move(folder.parent / 'index', tmp_path / 'elsewhere')
    monkeypatch.chdir(tmp_path)
    index = VideoIndex.open(moved)
    again = index.load_inferencer('cpu', show_progress=False)
    assert torch.equal(again.encode_texts(['a dog']), inferencer.encode_texts(['a dog']))
    assert index.state_file.stat().st_size < 1e6
    assert model_files(moved) == (index.config_file, index.state_file)


@pytest.mark.parametrize(
    'queries, topk, message',
    [
        (torch.zeros(1, 31), 1, r'must be of shape \[q x 32\], got \[1, 31\]'),
        (torch.zeros(32), 1, r'got \[32\]'),
        (torch.full((1, 32), torch.nan), 1, 'query is not finite'),
        (torch.zeros(1, 32), 0, 'topk must be 1 or more'),
    ],
)
def test_bad_queries_are_refused(indexed, queries, topk, message):
    with pytest.raises(ValueError, match=message):
        VideoIndex.open(indexed).search(queries, topk)


# Updating


def test_an_update_encodes_what_is_new_or_changed(inferencer, folder, video_folder):
    update(inferencer, folder)
    before = vectors(opened(folder))
    inferencer.encoded.clear()
    shutil.copy(video_folder / '3.mp4', folder / 'cats' / 'new.mkv')
    os.utime(folder / '2.mp4', ns=(1, 1))
    shutil.copy2(video_folder / '3.mp4', folder / '0.mp4')  # another size
    (folder / 'cats' / '4.mp4').unlink()
    assert update(inferencer, folder) == (1, 2, 1, 2, {})
    assert sorted(inferencer.encoded) == ['0.mp4', '2.mp4', 'new.mkv']
    index = opened(folder)
    after = vectors(index)
    assert after.keys() == {'0.mp4', '1.MP4', '2.mp4', 'cats/0.mp4', 'cats/new.mkv'}
    for name in ('1.MP4', 'cats/0.mp4'):
        assert after[name] == before[name]
    assert after['0.mp4'] == pytest.approx(before['cats/0.mp4'], abs=1e-6)
    # Nothing of the generation before stays.
    assert len(contents(folder)) == 1 + len(index.manifest['files']) + 1
    inferencer.encoded.clear()
    files = contents(folder)
    assert update(inferencer, folder) == (0, 0, 0, 5, {})
    assert not inferencer.encoded and contents(folder) == files


def test_an_open_index_stays_what_it_was(inferencer, folder):
    update(inferencer, folder)
    index = opened(folder)
    before = vectors(index)
    (folder / '0.mp4').unlink()
    update(inferencer, folder)
    assert len(index.search(torch.ones(1, 32), 9)[0]) == 5
    assert vectors(index) == before and len(opened(folder)) == 4


def test_what_cannot_be_read_is_reported_and_tried_again(inferencer, folder, video_folder):
    (folder / 'torn.mp4').write_bytes(b'no video')
    (folder / 'gone.mp4').symlink_to('nowhere.mp4')
    summary = update(inferencer, folder)
    assert summary[:4] == (5, 0, 0, 0)
    failed = json.loads((folder.parent / 'index/failed.json').read_text())
    assert failed == summary.failed and failed.keys() == {'torn.mp4', 'gone.mp4'}
    assert 'No such file' in failed['gone.mp4']

    # A changed video that cannot be read any more leaves the index.
    (folder / '2.mp4').write_bytes(b'no video')
    shutil.copy(video_folder / '2.mp4', folder / 'torn.mp4')
    summary = update(inferencer, folder)
    assert summary[:4] == (1, 0, 0, 4)
    assert summary.failed.keys() == {'2.mp4', 'gone.mp4'}
    assert set(opened(folder).names) == {*NAMES, 'torn.mp4'} - {'2.mp4'}


def test_an_index_is_never_emptied(inferencer, folder, tmp_path):
    update(inferencer, folder)
    files = contents(folder)
    for path in folder.rglob('*.[mM][pP]4'):
        path.rename(tmp_path / f'{path.parent.name}-{path.name}')
    with pytest.raises(FileNotFoundError, match='it holds 2 files such as half.mp4.part'):
        update(inferencer, folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match='no folder'):
        update(inferencer, folder)
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match='is empty .*mounted'):
        update(inferencer, folder)
    assert contents(folder) == files
    for name in ('0.mp4', '1.MP4'):
        (folder / name).write_bytes(b'no video')
    with pytest.raises(IndexingError, match='None of the 2 videos .* 0.mp4'):
        update(inferencer, folder)
    del files['failed.json']
    assert files.items() <= contents(folder).items()
    assert len(opened(folder)) == 5


def test_folders_are_not_mixed_up(inferencer, folder, video_folder, tmp_path):
    with pytest.raises(ValueError, match='holds .* and is no index'):
        update_index(inferencer, folder, folder)
    with pytest.raises(ValueError, match='notes.txt is not a folder'):
        update_index(inferencer, folder, folder / 'notes.txt')
    update(inferencer, folder)
    files = contents(folder)
    strangers = tmp_path / 'strangers'
    strangers.mkdir()
    shutil.copy(video_folder / '3.mp4', strangers)
    with pytest.raises(ValueError, match='none of its videos is in'):
        update(inferencer, strangers)
    assert contents(folder) == files
    # One that has moved is known by its videos.
    moved = folder.rename(tmp_path / 'moved')
    assert update(inferencer, moved) == (0, 0, 0, 5, {})
    assert opened(moved).path('0.mp4') == moved / '0.mp4'


def test_what_an_index_did_not_make_stays(inferencer, folder):
    """Also where its name is one that indexes use."""
    (folder / 'cats').rename(folder / 'parts')
    before = sorted(folder.rglob('*'))
    with pytest.raises(ValueError, match='holds .* and is no index'):
        update_index(inferencer, folder, folder)
    assert sorted(folder.rglob('*')) == before
    update(inferencer, folder)
    index = folder.parent / 'index'
    shutil.move(folder / 'parts', index / 'parts')
    shutil.copy(folder / '0.mp4', index / 'mine.mp4')
    assert update(inferencer, folder).removed == 2
    assert (index / 'parts' / '4.mp4').is_file()
    assert (index / 'mine.mp4').is_file()
    (folder / 'index.json').write_text('{"of": "another program"}')
    with pytest.raises(ValueError, match='not of an index .* or a new one'):
        update_index(inferencer, folder, folder)


def test_links_are_followed_without_end(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'far').mkdir()
    (tmp_path / 'far' / 'x.WebM').touch()
    (tmp_path / 'a' / 'b' / 'up').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'far').symlink_to(tmp_path / 'far')
    (tmp_path / 'far' / 'back').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'itself.mp4').symlink_to('itself.mp4')
    (tmp_path / 'a' / 'itself').symlink_to('itself')
    videos, failed = scan(tmp_path / 'a')
    assert list(videos) == ['far/x.WebM']
    assert failed == {'itself.mp4': 'Too many levels of symbolic links.'}


def test_names_need_not_be_text(inferencer, video_folder, tmp_path):
    folder = tmp_path / 'videos'
    folder.mkdir()
    name = os.fsdecode(b'caf\xe9 \xff.mp4')
    shutil.copy(video_folder / '0.mp4', folder / name)
    shutil.copy(video_folder / '1.mp4', folder / 'naïve "猫"\n.mp4')
    assert update(inferencer, folder).added == 2
    index = opened(folder)
    assert set(index.names) == {name, 'naïve "猫"\n.mp4'}
    assert all(index.path(each).is_file() for each in index.names)
    assert update(inferencer, folder).kept == 2


# Other models, other versions, damage


def test_another_model_is_refused_and_can_take_over(inferencer, other, folder, logged_warnings):
    update(inferencer, folder)
    old = opened(folder)
    old.check_model(inferencer.fingerprint)
    with pytest.raises(ValueError, match='another model.*index .*--config'):
        old.check_model(other.fingerprint)
    assert update(other, folder) == (0, 5, 0, 0, {})
    assert any('with another model' in text for text in logged_warnings)
    index = opened(folder)
    index.check_model(other.fingerprint)
    assert not np.allclose(index.embeddings, old.embeddings)
    own = index.load_inferencer('cpu', show_progress=False)
    assert own.fingerprint == other.fingerprint
    assert not old.config_file.exists() and not old.state_file.exists()


def test_another_version_is_refused(inferencer, folder):
    update(inferencer, folder)
    path = folder.parent / 'index' / 'index.json'
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    for use in (opened, lambda folder: update(inferencer, folder)):
        with pytest.raises(ValueError, match='is of version 99.*again'):
            use(folder)
    path.write_text('{"format": 1, "files": {}}')
    with pytest.raises(ValueError, match='index.json .*: it lacks finger'):
        opened(folder)


def test_an_index_that_is_updated_as_it_is_opened(indexed, tmp_path, monkeypatch):
    folder = shutil.copytree(indexed, tmp_path / 'index')
    open_ivf = VideoIndex.open_ivf

    def updated_before(index, mapped):
        monkeypatch.undo()
        (folder / 'ivf-1.faiss').rename(folder / 'ivf-2.faiss')
        manifest = folder / 'index.json'
        manifest.write_text(manifest.read_text().replace('ivf-1', 'ivf-2'))
        return open_ivf(index, mapped)

    monkeypatch.setattr(VideoIndex, 'open_ivf', updated_before)
    assert len(VideoIndex.open(folder).search(torch.ones(1, 32), 9)[0]) == 9


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path):
    path.write_bytes(b'?' * path.stat().st_size)


@pytest.mark.parametrize('damage', [cut, scribble, Path.unlink])
@pytest.mark.parametrize(
    'what', ['index', 'config', 'model', 'embeddings', 'names', 'stamps', 'ivf']
)
def test_damaged_files_are_named(indexed, tmp_path, what, damage):
    folder = shutil.copytree(indexed, tmp_path / 'index')
    path = next(folder.glob(f'{what}[-.]*'))
    damage(path)
    message = f'{re.escape(path.name)} .*is (damaged|not a checkpoint)'
    if path.name == 'index.json' and damage is Path.unlink:
        message = 'There is no index in'
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        # Config and weights are read when the model is opened.
        VideoIndex.open(folder).load_inferencer('cpu')


@pytest.mark.parametrize('what', ['embeddings', 'names', 'stamps', 'ivf'])
def test_files_of_another_size_are_damaged(indexed, tmp_path, what):
    """What FAISS maps and is not there would kill the process."""
    folder = shutil.copytree(indexed, tmp_path / 'index')
    path = next(folder.glob(f'{what}-*'))
    size = path.stat().st_size
    for another in (size - 1, size + 1):
        os.truncate(path, another)
        with pytest.raises(
            ValueError, match=(f'{path.name} .* damaged: it has {another:,} bytes, not {size:,}')
        ):
            VideoIndex.open(folder)


def test_embeddings_that_are_no_numbers_are_refused(inferencer, folder):
    update(inferencer, folder)
    path = opened(folder).files['embeddings']
    np.load(path, mmap_mode='r+')[3, 7] = np.nan
    with pytest.raises(ValueError, match=f'{path.name} .* not finite'):
        opened(folder).search(torch.ones(1, 32), 1)


def test_a_model_that_gives_no_numbers_indexes_nothing(config, folder):
    broken = VoPInferencer(config, None, 'cpu', show_progress=False)
    with torch.no_grad():
        broken.model.visual.prompts[0].tokens.fill_(torch.nan)
    with pytest.raises(IndexingError, match='its embedding is not finite'):
        update(broken, folder)


def test_what_to_install_is_said(inferencer, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(ImportError, match='pip install faiss-cpu'):
        update(inferencer, folder)
    assert not (folder.parent / 'index').exists()


# Being stopped


def test_what_was_saved_is_not_encoded_again(
    inferencer, folder, tmp_path, video_folder, logged_warnings
):
    inferencer.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        update(inferencer, folder)
    with pytest.raises(
        FileNotFoundError, match=('not finished: 2 of 5 videos are saved.*give the same command')
    ):
        opened(folder)
    # It goes on without being told with which model.
    config, state = model_files(folder.parent / 'index')
    again = Recording(config, str(state), 'cpu', show_progress=False)
    assert again.fingerprint == inferencer.fingerprint
    again.encoded = []
    # One of those that were saved has changed since.
    changed = inferencer.encoded[0]
    (path,) = [
        path
        for path in folder.rglob('*.[mM][pP]4')
        if os.stat(path).st_size == os.stat(video_folder / '4.mp4').st_size
    ]
    os.utime(path, ns=(1, 1))
    assert update(again, folder) == (5, 0, 0, 0, {})
    assert sorted(inferencer.encoded + again.encoded) == sorted(
        [*map(os.path.basename, NAMES), changed]
    )
    whole = shutil.copytree(folder, tmp_path / 'whole' / 'videos')
    inferencer.stop_after = None
    update(inferencer, whole)
    assert list(opened(whole).names) == list(opened(folder).names)
    assert np.allclose(opened(whole).embeddings, opened(folder).embeddings, atol=1e-6)
    assert not list((folder.parent / 'index').glob('parts*'))


def test_what_was_saved_of_a_video_before_it_changed_does_not_serve(inferencer, folder):
    inferencer.stop_after = 1  # batch, of the two largest
    with pytest.raises(KeyboardInterrupt):
        update(inferencer, folder)
    (before,) = folder.parent.glob('index/parts/*/*.npz')
    before.rename(before.with_name('z.npz'))  # it is read last
    assert sorted(inferencer.encoded) == ['0.mp4', '4.mp4']
    shutil.copyfile(folder / 'cats' / '4.mp4', folder / 'cats' / '0.mp4')
    with pytest.raises(KeyboardInterrupt):
        update(inferencer, folder)
    assert inferencer.encoded[2] == '0.mp4'
    inferencer.stop_after = None
    assert update(inferencer, folder).added == 5
    found = vectors(opened(folder))
    assert found['cats/0.mp4'] == pytest.approx(found['cats/4.mp4'], abs=1e-6)


def test_an_update_that_is_stopped_leaves_the_index(inferencer, other, folder):
    update(inferencer, folder)
    before = contents(folder)
    for path in folder.rglob('*.mp4'):
        os.utime(path, ns=(1, 1))
    inferencer.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        update(inferencer, folder)
    assert before.items() <= contents(folder).items()
    assert len(opened(folder)) == 5
    inferencer.stop_after = None
    inferencer.encoded.clear()
    assert update(inferencer, folder)[:4] == (0, 4, 0, 1)
    assert len(inferencer.encoded) == 2


def test_parts_that_do_not_serve_are_left_out(
    inferencer, other, folder, logged_warnings, monkeypatch
):
    monkeypatch.setattr(indexing, 'SAVE_VIDEOS', 1)
    inferencer.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        update(inferencer, folder)
    torn, whole = sorted(folder.parent.glob('index/parts/*/*.npz'))
    data = bytearray(torn.read_bytes())
    data[len(data) // 2] ^= 255
    torn.write_bytes(data)
    inferencer.encoded.clear()
    inferencer.stop_after = None
    monkeypatch.undo()
    assert update(inferencer, folder).added == 5
    assert len(inferencer.encoded) == 3
    assert any(f'{torn} is damaged and left out' in text for text in logged_warnings)
    embeddings = opened(folder).embeddings

    shutil.rmtree(folder.parent / 'index')
    inferencer.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        update(inferencer, folder)
    update(other, folder)
    assert any('encoded with another model: they are left out' in text for text in logged_warnings)
    assert not np.allclose(opened(folder).embeddings, embeddings)
    opened(folder).check_model(other.fingerprint)
    assert not (folder.parent / 'index' / 'parts').exists()


@contextmanager
def files_up_to(limit):
    """Let no file grow beyond so many bytes."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / 'index.json'
    write(path, ['old'])
    with files_up_to(100), pytest.raises(IndexingError, match='index.json'):
        write(path, ['new'] * 100)
    assert json.loads(path.read_text()) == ['old']
    assert list(tmp_path.iterdir()) == [path]
    with writing(path, 0) as part:
        part.write_text('["ne')
        assert json.loads(path.read_text()) == ['old']
        part.write_text('["new"]')
    assert json.loads(path.read_text()) == ['new']


@pytest.mark.parametrize(
    'limit, where', [(600, 'parts/'), (1500, 'embeddings-2.npy'), (2700, 'ivf-2.faiss')]
)
def test_a_full_disk_costs_nothing(inferencer, folder, video_folder, monkeypatch, limit, where):
    """A limit on the size of files fails in the middle of one, too."""
    monkeypatch.setattr(indexing, 'SAVE_VIDEOS', 1)
    update(inferencer, folder)
    before = contents(folder)
    for number in range(14):
        os.link(folder / '0.mp4', folder / f'more{number}.mp4')
    inferencer.encoded.clear()
    with (
        files_up_to(limit),
        pytest.raises(
            IndexingError, match=(f'{where}.* cannot be written: .* MB are free.*same command')
        ),
    ):
        update(inferencer, folder, exact_below=10)
    during = contents(folder)
    assert before.items() <= during.items()
    assert all(
        name.startswith('parts/') and not name.endswith('.part')
        for name in during.keys() - before.keys()
    )
    assert len(opened(folder)) == 5
    inferencer.encoded.clear()
    assert update(inferencer, folder, exact_below=10)[:4] == (14, 0, 0, 5)
    assert len(inferencer.encoded) == (14 if where == 'parts/' else 0)


def test_too_little_room_is_said_before(inferencer, folder, monkeypatch):
    update(inferencer, folder)
    before = contents(folder)
    (folder / '0.mp4').unlink()
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=100))
    with pytest.raises(IndexingError, match='No space left .* 0.0 MB are fre'):
        update(inferencer, folder)
    during = contents(folder)
    assert before.items() <= during.items()


def test_what_a_killed_run_left_takes_no_room(inferencer, folder, monkeypatch):
    update(inferencer, folder)
    (folder / '0.mp4').unlink()
    index, usage = folder.parent / 'index', shutil.disk_usage(folder)
    left = [index / name for name in ('names-2.json', 'embeddings-2.npy', 'embeddings-2.npy.part')]
    for path in left:
        path.touch()
    monkeypatch.setattr(
        shutil,
        'disk_usage',
        lambda path: usage._replace(free=0 if any(map(Path.exists, left)) else 1 << 40),
    )
    assert update(inferencer, folder).removed == 1
    assert len(opened(folder)) == 4 and not left[-1].exists()


LOCK_IT = """
import fcntl, sys
file = open(sys.argv[1], 'a+')
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print('locked', flush=True)
else:
    print('free', flush=True)
sys.stdin.read()
"""


def test_two_runs_at_once_are_refused(inferencer, folder, monkeypatch):
    said = []

    def lock():
        return subprocess.Popen(
            [sys.executable, '-c', LOCK_IT, folder.parent / 'index/.lock'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def encode(*args):
        said.append(lock().communicate()[0])
        return VoPInferencer.iter_videos(inferencer, *args)

    monkeypatch.setattr(inferencer, 'iter_videos', encode)
    update(inferencer, folder)
    assert said == ['locked\n']
    files = contents(folder)
    with lock() as run:
        assert run.stdout.readline() == 'free\n'
        with pytest.raises(IndexingError, match='Another run .* Wait'):
            update(inferencer, folder)
        run.stdin.close()
    assert contents(folder) == files
    assert update(inferencer, folder).kept == 5


# Large collections


@pytest.fixture(scope='module')
def drawn(config):
    return Drawn(config, None, 'cpu', show_progress=False)


@pytest.fixture(scope='module')
def indexed(drawn, tmp_path_factory):
    """An approximate index of 2,000 videos."""
    folder = tmp_path_factory.mktemp('large') / 'videos'
    touch(folder, range(2000))
    update(drawn, folder, exact_below=1000)
    return folder.parent / 'index'


def touch(folder, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f'{number:04}.mp4').touch()


def recall(index, queries):
    """The part of the exact top 10 that is found, and the scores."""
    found, exact = (index.search(queries, 10, exact=exact) for exact in (False, True))
    scores = dict((hit.name, hit.score) for hits in exact for hit in hits)
    for hits, (query,) in zip(found, queries[:, None]):
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            row = index.names.index(hit.name)
            assert hit.score == pytest.approx(float(query @ index.embeddings[row]), abs=1e-5)
    assert scores
    return np.mean(
        [len({hit.name for hit in a} & {hit.name for hit in b}) / 10 for a, b in zip(found, exact)]
    )


def test_a_large_index_finds_as_much_as_it_says(indexed):
    index = VideoIndex.open(indexed)
    settings = index.ivf.settings
    assert settings.lists == round(4 * 2000**0.5)
    assert 1 <= settings.read < settings.lists / 2
    assert settings.trained_for == 2000
    assert min(settings.recall.values()) >= 0.95
    assert settings.recall.keys() == {'videos', 'texts'}
    assert re.search(
        f'approximate: IVF with {settings.lists} lists, of which '
        f'{settings.read} are read; .* % for videos, .* % for texts',
        str(index),
    )
    queries = np.array(index.embeddings[::7])
    assert recall(index, queries) == pytest.approx(settings.recall['videos'], abs=0.04)
    # Less than the embeddings: some lists are read, and no file.
    assert len(index.search(queries[:2], 5000)[1]) == 2000
    assert [hit.name for hit in index.search(queries[:1], 1500)[0]] == [
        hit.name for hit in index.search(queries[:1], 1500, exact=True)[0]
    ]


def test_search_is_exact_below_100000_videos():
    limit = inspect.signature(update_index).parameters['exact_below'].default
    assert limit == 100_000


def test_fewer_lists_find_less(indexed):
    index = VideoIndex.open(indexed)
    queries = np.array(index.embeddings[::7])
    index.ivf.index.nprobe = 1
    assert recall(index, queries) < 0.9
    index.ivf.index.nprobe = index.ivf.settings.lists
    assert recall(index, queries) == 1


def test_an_updated_large_index_is_as_good_as_a_new_one(drawn, indexed, tmp_path):
    folder = tmp_path / 'videos'
    shutil.copytree(indexed, tmp_path / 'index')
    touch(folder, range(2000))
    for path in folder.iterdir():  # as they were
        original = indexed.parent / 'videos' / path.name
        os.utime(path, ns=(0, original.stat().st_mtime_ns))
    for number in range(0, 2000, 5):
        (folder / f'{number:04}.mp4').unlink()
    touch(folder, range(3000, 3700))
    for number in (1, 2, 3):
        os.utime(folder / f'{number:04}.mp4', ns=(1, 1))
    assert update(drawn, folder, exact_below=1000)[:4] == (700, 3, 400, 1597)
    index = opened(folder)
    assert index.ivf.settings.trained_for == 2000
    rows = [int(Path(name).stem) for name in index.names]
    assert np.array_equal(index.embeddings, clustered(5000)[rows])
    assert (np.diff(index.stamps[:, 0]) > 0).all()

    new = IVF.train(index.embeddings)
    new.add(np.arange(2300), index.embeddings)
    new.choose_read(index.embeddings, np.arange(2300), None)
    queries = np.array(index.embeddings[::7])
    ids = new.search(queries, 10)[1]
    exact = search_exactly(queries, index.embeddings, 10)[1]
    rebuilt = np.mean([len({*a} & {*b}) / 10 for a, b in zip(ids, exact)])
    assert recall(index, queries) >= rebuilt - 0.02
    assert min(index.ivf.settings.recall.values()) >= 0.95

    # Twice as many as the lists were made for: they are made again.
    touch(folder, range(3700, 5000))
    touch(folder, range(0, 2000, 5))
    assert update(drawn, folder, exact_below=1000).added == 1700
    assert opened(folder).ivf.settings.trained_for == 4000
    # So few that search is exact.
    for path in folder.glob('[1-9]*.mp4'):
        path.unlink()
    assert update(drawn, folder, exact_below=1001).kept == 1000
    index = opened(folder)
    assert index.ivf is None and 'exact' in str(index)
    assert not list(index.folder.glob('*.faiss'))
