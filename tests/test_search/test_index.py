"""Indexes of folders of videos: making, updating and searching them."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.vop.apis import EncodedVideos, VoPInferencer
from projects.vop.errors import UserError
from projects.vop.fileio import file_lock
from projects.vop.search import VideoIndex, ann, model_files, update, update_index
from projects.vop.search.read import EXACT_BELOW

ODD = os.fsdecode(b'caf\xe9 "\xe7\x8c\xab"\n\xff.mp4')  # names need not be text
NAMES = ['0.mp4', '1.MP4', '2.mp4', ODD, 'cats/0.mp4']  # numbers 0 to 4
BAD = 5000  # its embedding is not finite
draw = torch.Generator().manual_seed(0)
POINTS = torch.randn(40, 32, generator=draw).repeat(125, 1)  # about 40 directions
POINTS = torch.nn.functional.normalize(POINTS + torch.randn(BAD, 32, generator=draw))
POINTS = torch.cat([POINTS, torch.full((1, 32), torch.nan)])


class Drawn(VoPInferencer):
    """Its videos are text files with a number, which stands for an embedding."""

    def iter_videos(self, videos, batch_size, num_workers, windows=None):
        for start in range(0, len(videos), batch_size):
            if start == self.stop_after:
                raise KeyboardInterrupt
            texts = {path: Path(path).read_text() for path in videos[start : start + batch_size]}
            self.encoded.extend(os.path.basename(path) for path in texts)
            good = {path: int(text) for path, text in texts.items() if text.isdecimal()}
            failed = {path: 'no number' for path in texts if path not in good}
            spans = [(0.0, 9.0)] * len(good)
            yield EncodedVideos([*good], POINTS[[*good.values()]], failed, spans)

    def reset(self):
        self.encoded, self.stop_after = [], None
        return self


@pytest.fixture(scope='module')
def models(retrieval_config):
    """Two with other prompts."""
    with pytest.MonkeyPatch.context() as patch:  # to lay out a config takes long
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **kwargs: (text, None))
        yield [Drawn(retrieval_config(), None, 'cpu', show_progress=False) for _ in range(2)]


@pytest.fixture
def inferencer(models):
    return models[0].reset()


@pytest.fixture
def folder(tmp_path):
    """Five videos, two of one name, among other files."""
    write(tmp_path / 'videos', dict(zip(NAMES, range(5))))
    write(tmp_path / 'videos', {'notes.txt': 1, '.hidden.mp4': 1, 'half.mp4.part': 1})
    return tmp_path / 'videos'


@pytest.fixture(scope='module')
def indexed(models, tmp_path_factory):
    """An approximate index of 2,000 videos."""
    folder = tmp_path_factory.mktemp('large') / 'videos'
    write(folder, numbered(range(2000)))
    models[0].reset()
    run(models[0], folder, exact_below=1000)
    return folder.parent / 'index'


def numbered(numbers):
    return {f'{number:04}.mp4': number for number in numbers}


def write(folder, videos):
    for name, number in videos.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))


def run(inferencer, folder, **kwargs):
    """Index next to the folder; give the summary."""
    return update_index(inferencer, folder, folder.parent / 'index', batch_size=2, **kwargs)


def run_and_stop(inferencer, folder):
    inferencer.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(inferencer, folder)
    inferencer.stop_after = None


def opened(folder):
    return VideoIndex.open(folder.parent / 'index')


def held(folder):
    """Numbers of the videos in the index next to the folder."""
    index = opened(folder)
    numbers = torch.cdist(torch.tensor(index.embeddings), POINTS[:BAD]).argmin(dim=1).tolist()
    return dict(zip(index.names, numbers))


def contents(folder):
    """All files of the index next to the folder, except the lock."""
    paths = [path for path in folder.parent.glob('index/**/*') if path.is_file()]
    return {path.name: path.read_bytes() for path in paths if path.name != '.lock'}


def test_it_finds_what_comparing_all_finds_wherever_it_lies(
    retrieval_config, video_folder, tmp_path, monkeypatch
):
    inferencer = VoPInferencer(retrieval_config(), None, 'cpu', show_progress=False)
    assert update_index(inferencer, video_folder, tmp_path / 'index').added == 5
    moved = shutil.move(tmp_path / 'index', tmp_path / 'elsewhere')
    monkeypatch.chdir(tmp_path)
    index = VideoIndex.open(moved)
    encoded = inferencer.encode_videos([index.path(name) for name in index.names]).embeddings
    assert np.allclose(index.embeddings, encoded, atol=1e-6)
    # It holds what a query needs, which is little.
    own = index.load_inferencer('cpu', show_progress=False)
    assert index.files['model'].stat().st_size < 1e6
    queries = torch.cat([own.encode_texts(['a dog', 'a red square']), encoded])
    for hits, scores in zip(index.search(queries, 3), queries @ encoded.T):
        best = scores.topk(3)
        assert [hit.name for hit in hits] == [index.names[i] for i in best.indices]
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert {hit.name for hit in index.search(queries, 99)[0]} == set(index.names)


def test_what_cannot_be_searched_is_refused(indexed, inferencer, folder, monkeypatch):
    nan = np.full((1, 32), np.nan)
    for queries, topk in ((nan[:, 1:], 1), (nan[0], 1), (nan, 1), (np.zeros((1, 32)), 0)):
        with pytest.raises(ValueError):
            VideoIndex.open(indexed).search(queries, topk)
    run(inferencer, folder)
    path = opened(folder).files['embeddings']
    np.load(path, mmap_mode='r+')[2, 7] = np.nan
    with pytest.raises(UserError, match=path.name):
        opened(folder).search(POINTS[:1], 1)
    shutil.rmtree(path.parent)
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(UserError, match='pip install faiss-cpu'):
        run(inferencer, folder)
    assert not path.parent.exists()


def test_an_update_encodes_what_is_new_or_changed(inferencer, folder):
    assert run(inferencer, folder) == (5, 0, 0, 0, {})
    reader = opened(folder)
    assert reader.names == NAMES and all(reader.path(name).is_file() for name in NAMES)
    inferencer.encoded.clear()
    write(folder, {'cats/new.mkv': 7, '0.mp4': 88})
    os.utime(folder / '2.mp4', ns=(1, 1))
    (folder / ODD).unlink()
    for name in ('videos-2.npz', 'embeddings-2.npy.part'):  # what a killed run may leave
        (folder.parent / 'index' / name).touch()
    assert run(inferencer, folder) == (1, 2, 1, 2, {})
    assert sorted(inferencer.encoded) == ['0.mp4', '2.mp4', 'new.mkv']
    numbers = {'0.mp4': 88, '1.MP4': 1, '2.mp4': 2, 'cats/0.mp4': 4, 'cats/new.mkv': 7}
    assert held(folder) == numbers
    # Only this generation is left, but a reader of the last one still has it.
    files = contents(folder)
    named = {path.name for path in opened(folder).files.values()}
    assert files.keys() == {'index.json', 'failed.json', *named}
    assert reader.search(POINTS[3:4], 9)[0][0].name == ODD
    inferencer.encoded.clear()
    assert run(inferencer, folder) == (0, 0, 0, 5, {})
    assert not inferencer.encoded and contents(folder) == files


def test_what_cannot_be_read_is_reported_and_tried_again(inferencer, folder):
    write(folder, {'torn.mp4': 'torn', 'strange.mp4': BAD})
    (folder / 'gone.mp4').symlink_to('nowhere.mp4')
    summary = run(inferencer, folder)
    assert summary[:4] == (5, 0, 0, 0)
    assert json.loads(contents(folder)['failed.json']) == summary.failed
    assert summary.failed.keys() == {'torn.mp4', 'strange.mp4', 'gone.mp4'}
    # A changed video that cannot be read any more leaves the index.
    write(folder, {'torn.mp4': 8, '2.mp4': 'torn'})
    summary = run(inferencer, folder)
    assert summary[:4] == (1, 0, 0, 4)
    assert summary.failed.keys() == {'2.mp4', 'strange.mp4', 'gone.mp4'}
    assert held(folder).keys() == {*NAMES, 'torn.mp4'} - {'2.mp4'}


# No such folder; an empty one; one without a video; none that can be read.
BAD_FOLDERS = [None, {}, {'notes.txt': 1}, {'0.mp4': 'torn', '1.MP4': 'torn'}]


def test_an_index_is_never_emptied(inferencer, folder, tmp_path):
    run(inferencer, folder)
    before = contents(folder)
    moved = folder.rename(tmp_path / 'moved')
    for videos, at_fault in zip(BAD_FOLDERS, ('videos', 'mounted', 'mounted', '0.mp4')):
        if videos is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write(folder, videos)
        with pytest.raises(UserError, match=at_fault):
            run(inferencer, folder)
        assert before.items() - contents(folder).items() <= {('failed.json', b'{}')}
    # A folder that has moved is known by its videos.
    assert run(inferencer, moved) == (0, 0, 0, 5, {})
    assert opened(moved).path('0.mp4') == moved / '0.mp4'


def test_folders_are_not_mixed_up(inferencer, folder):
    strangers, index = folder.parent / 'strangers', folder.parent / 'index'
    write(strangers, numbered(range(5, 7)))
    write(folder, {'parts/5.mp4': 5})  # a name that indexes use
    before = sorted(folder.rglob('*'))
    for target, at_fault in ((folder, '.hidden.mp4'), (folder / '0.mp4', '0.mp4')):
        with pytest.raises(UserError, match=at_fault):
            update_index(inferencer, folder, target)
    assert sorted(folder.rglob('*')) == before
    run(inferencer, folder)
    files = contents(folder)
    with pytest.raises(UserError, match='strangers'):
        run(inferencer, strangers)
    assert contents(folder) == files
    # What an index did not make stays.
    shutil.move(folder / 'parts', index / 'parts')
    write(index, {'mine.mp4': 1})
    assert run(inferencer, folder).removed == 1
    assert (index / 'parts' / '5.mp4').is_file() and (index / 'mine.mp4').is_file()
    write(strangers, {'index.json': '{"of": "another program"}'})
    with pytest.raises(UserError, match='index.json'):
        update_index(inferencer, folder, strangers)


def test_the_folder_of_another_tool_is_no_unfinished_index(inferencer, folder):
    """Training and copying leave a lock, too."""
    strangers = {'.lock': '', 'epoch_1.pth': 'x', 'model-5.safetensors': 'x', 'config-1.json': 'x'}
    write(folder.parent / 'index', strangers)
    with pytest.raises(UserError, match='epoch_1.pth'):
        run(inferencer, folder)
    assert contents(folder).keys() == strangers.keys() - {'.lock'}
    (folder.parent / 'index' / 'epoch_1.pth').rename(folder.parent / 'index' / 'index.json.part')
    assert run(inferencer, folder).added == 5


def test_a_model_that_could_not_be_opened_again_is_refused_first(inferencer, folder, monkeypatch):
    for part, key, value in (
        (inferencer.cfg.model, '_scope_', 'vop'),
        (inferencer.cfg.model, 'odd', dict(type='mmaction.OmniResNet')),
        (inferencer.cfg.test_dataloader.dataset.pipeline[-1], 'name', 'videos/0.mp4'),
    ):
        with monkeypatch.context() as patch:
            patch.chdir(folder.parent)
            patch.setitem(part, key, value)
            with pytest.raises(UserError, match=f'{key}.*: change the config'):
                run(inferencer, folder)
        assert not inferencer.encoded
    assert run(inferencer, folder).added == 5


def test_where_downloads_are_kept_is_not_part_of_an_index(inferencer, folder, monkeypatch):
    monkeypatch.setitem(inferencer.cfg.model.clip, 'cache_dir', 'downloads')
    run(inferencer, folder)
    assert 'cache_dir' not in opened(folder).files['config'].read_text()


def test_an_error_without_a_file_names_none(inferencer, folder, monkeypatch):
    def fail(folder):
        raise OSError('no more')

    monkeypatch.setattr(update, 'scan', fail)
    with pytest.raises(UserError, match=r'^no more\.$'):
        run(inferencer, folder)


def keep_opening(index, pipe):
    counts = [0]
    try:
        while not pipe.poll():
            counts.append(len(VideoIndex.open(index)))
    finally:
        pipe.send(counts)


@pytest.mark.slow
def test_an_index_can_be_opened_while_it_is_updated(inferencer, folder):
    run(inferencer, folder)
    fork = multiprocessing.get_context('fork')
    here, there = fork.Pipe()
    reader = fork.Process(target=keep_opening, args=(folder.parent / 'index', there))
    reader.start()
    for number in range(5, 45):
        write(folder, numbered([number]))
        run(inferencer, folder)
    here.send('done')
    counts = here.recv()
    reader.join()
    assert reader.exitcode == 0 and counts == sorted(counts) and len(set(counts)) > 5


def test_another_model_is_refused_and_can_take_over(inferencer, models, folder, logged_warnings):
    run(inferencer, folder)
    other, old = models[1].reset(), opened(folder)
    assert run(other, folder) == (0, 5, 0, 0, {}) and len(other.encoded) == 5
    assert any('another model' in text for text in logged_warnings)
    own = opened(folder).load_inferencer('cpu', show_progress=False)
    assert own.model_fingerprint == other.model_fingerprint == opened(folder).model_fingerprint
    config, state = model_files(folder.parent / 'index')
    with pytest.raises(UserError, match='another model.* --config'):
        old.load_inferencer('cpu', False, config=config, checkpoint=str(state))
    assert not old.files['config'].exists() and not old.files['model'].exists()


def test_another_version_says_how_to_make_it_anew(inferencer, folder):
    run(inferencer, folder)
    path = folder.parent / 'index' / 'index.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), format=99)))
    before = contents(folder)
    for use in (VideoIndex.open, model_files, lambda _: run(inferencer, folder)):
        with pytest.raises(UserError, match=f'search.py index {folder} ANOTHER_FOLDER'):
            use(path.parent)
    assert contents(folder) == before


DAMAGES = [lambda size: size // 2, lambda size: size + 1, lambda size: 0, None]


@pytest.mark.parametrize('damage', DAMAGES, ids=['cut', 'longer', 'empty', 'scribbled'])
def test_damaged_files_are_named(indexed, tmp_path, damage):
    """What FAISS or NumPy maps and is not there would kill the process."""
    folder = shutil.copytree(indexed, tmp_path / 'index')
    for what in ('config', 'model', 'embeddings', 'videos', 'ivf', 'index'):
        path = next(folder.glob(f'{what}[-.]*'))
        whole = path.read_bytes()
        if damage:
            os.truncate(path, damage(len(whole)))
        else:
            path.write_bytes(b'?' * len(whole))
        with pytest.raises(ValueError, match=path.name):
            # Config and weights are read when the model is opened.
            VideoIndex.open(folder).load_inferencer('cpu')
        path.write_bytes(whole)
    path.unlink()
    with pytest.raises(ValueError, match=path.name):
        VideoIndex.open(folder)


def test_what_was_saved_is_not_encoded_again(inferencer, folder):
    write(folder, {'2.mp4': '002'})  # the largest is encoded first
    run_and_stop(inferencer, folder)
    with pytest.raises(UserError, match='is not finished.* resumes'):
        opened(folder)
    # What was saved of a video before it changed does not serve.
    (before,) = folder.parent.glob('index/parts/*/*.npz')
    before.rename(before.with_name('z.npz'))  # it is read last
    write(folder, {'2.mp4': '007'})
    run_and_stop(inferencer, folder)
    # It resumes without being told with which model.
    config, state = model_files(folder.parent / 'index')
    again = Drawn(config, str(state), 'cpu', show_progress=False).reset()
    assert run(again, folder) == (5, 0, 0, 0, {})
    encoded = sorted(inferencer.encoded + again.encoded)
    assert encoded == sorted(['2.mp4', *map(os.path.basename, NAMES)])
    assert held(folder) == {**dict(zip(NAMES, range(5))), '2.mp4': 7}
    assert not (folder.parent / 'index' / 'parts').exists()


def test_parts_that_do_not_serve_are_left_out(inferencer, models, folder, logged_warnings):
    run_and_stop(inferencer, folder)
    (torn,) = folder.parent.glob('index/parts/*/*.npz')
    data = bytearray(torn.read_bytes())
    data[len(data) // 2] ^= 255
    torn.write_bytes(data)
    run_and_stop(inferencer, folder)
    assert inferencer.encoded[:2] == inferencer.encoded[2:]
    assert any(f'{torn} is damaged' in text for text in logged_warnings)
    other = models[1].reset()
    assert run(other, folder).added == len(other.encoded) == 5  # not only what is not saved
    assert opened(folder).model_fingerprint == other.model_fingerprint
    assert not (folder.parent / 'index' / 'parts').exists()


# Bytes that a file may have, as if the disk were full then; the lists are the smallest file.
LIMITS = [
    (600, 'parts/'),
    (3000, 'videos-2.npz'),
    (7500, 'embeddings-2.npy'),
    (9999, 'ivf-2.faiss'),
]


@pytest.mark.parametrize('limit, where', LIMITS)
def test_a_full_disk_costs_nothing(inferencer, folder, monkeypatch, limit, where):
    monkeypatch.setattr(update, 'SAVE_VIDEOS', 1)
    run(inferencer, folder)
    before = contents(folder)
    write(folder, numbered(range(10, 74)))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_ivf = ann.IVF.write

    def fill(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))

    monkeypatch.setattr(ann.IVF, 'write', lambda *args: (fill(300), write_ivf(*args)))
    fill(limit)
    try:
        with pytest.raises(UserError) as error:
            run(inferencer, folder, exact_below=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        monkeypatch.setattr(ann.IVF, 'write', write_ivf)
    assert where in str(error.value) and 'the same command resumes' in str(error.value)
    during = contents(folder)
    assert before.items() <= during.items() and len(opened(folder)) == 5
    others = during.keys() - before.keys()
    assert all(name.endswith('.npz') or name.startswith('run-') for name in others)
    inferencer.encoded.clear()
    assert run(inferencer, folder, exact_below=10)[:4] == (64, 0, 0, 5)
    assert len(inferencer.encoded) == (64 if where == 'parts/' else 0)


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become somebody else')
def test_a_read_only_folder_is_named_and_can_be_searched(inferencer):
    with tempfile.TemporaryDirectory() as parent:  # others may look into it
        folder, index = Path(parent) / 'videos', Path(parent) / 'index'
        os.chmod(parent, 0o755)
        write(folder, numbered(range(3)))
        run(inferencer, folder)
        write(folder, numbered([3]))
        os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=str(index)):
                run(inferencer, folder)
            assert len(opened(folder).search(POINTS[:1], 9)[0]) == 3
        finally:
            os.seteuid(0)


def hold(folder, pipe):
    """Take the lock, start a worker, and tell its process id."""
    with file_lock(folder / '.lock'):
        worker = os.fork()
        if not worker:
            signal.pause()
        pipe.send(worker)
        signal.pause()


@pytest.mark.slow
def test_two_runs_at_once_are_refused(inferencer, folder):
    fork = multiprocessing.get_context('fork')
    here, there = fork.Pipe()
    run(inferencer, folder)
    before = contents(folder)
    holder = fork.Process(target=hold, args=(folder.parent / 'index', there))
    holder.start()
    worker = here.recv()
    try:
        with pytest.raises(UserError, match=f'process {holder.pid} '):
            run(inferencer, folder)
        assert contents(folder) == before
        holder.kill()
        holder.join()
        os.kill(worker, 0)  # it lives, and holds no lock
        assert run(inferencer, folder).kept == 5
    finally:
        os.kill(worker, signal.SIGKILL)


def test_more_candidates_are_scored_where_codes_cannot_tell_the_best():
    points = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    ids, queries = np.arange(len(points)), points[:64] + points[64:128]
    ivf = ann.IVF.train(points)
    ivf.add(ids, [points])
    exact = ann.search_exactly(queries, [points], 10)[0]
    ivf.nprobe = ivf.index.nlist
    assert ann.recall_of(ivf.search(queries, 10, points, ids)[0], exact) < 0.95
    assert ivf.choose(dict(texts=queries), dict(texts=exact), points, ids)['texts'] >= 0.95
    assert ivf.candidates > ann.CANDIDATES
    # None of many that are alike is better than another.
    points[1:1000] = points[0]
    ivf = ann.IVF.train(points)
    ivf.add(ids, [points])
    exact = ann.search_exactly(points[:2], [points], 10)[0]
    assert ivf.choose(dict(texts=points[:2]), dict(texts=exact), points, ids) == dict(texts=1)
    assert ivf.candidates == ann.CANDIDATES and ivf.nprobe < ivf.index.nlist
    assert ivf.settings.keys() == {'nprobe', 'candidates', 'trained_for'}


def recall(index, queries):
    """The part of the exact top 10 that is found, with exact scores."""
    parts = []
    for query in queries[:, None]:
        found, every = index.search(query, 10)[0], index.search(query, len(index), exact=True)[0]
        scores = {hit.name: hit.score for hit in every}
        assert [hit.score for hit in found] == pytest.approx([scores[hit.name] for hit in found])
        parts.append(len({hit.name for hit in found} & {hit.name for hit in every[:10]}) / 10)
    return np.mean(parts)


def test_a_large_index_finds_as_much_as_it_says(indexed):
    assert EXACT_BELOW == 100_000  # as docs/search.md says
    index = VideoIndex.open(indexed)
    nlist, nprobe = index.ivf.index.nlist, index.ivf.nprobe
    assert nlist == round(2 * 2000**0.5) and index.ivf.trained_for == 2000
    assert 1 <= nprobe < nlist
    recalls = index.manifest['measured']['recall']
    assert recalls.keys() == {'videos', 'texts'} and min(recalls.values()) >= 0.95
    for text in (f'{nlist} lists', f'{nprobe} are', '% for videos', '% for tex'):
        assert text in str(index)
    queries = np.array(index.embeddings[::20])
    assert recall(index, queries) == pytest.approx(recalls['videos'], abs=0.04)
    # All are found where more are asked for than the lists that are read hold.
    assert len(index.search(queries[:2], 5000)[1]) == 2000
    index.ivf.nprobe = 1
    assert recall(index, queries) < 0.9
    index.ivf.nprobe = nlist
    assert recall(index, queries) > 0.99


@pytest.mark.slow
def test_recall_is_measured_anew_when_a_tenth_has_changed(
    inferencer, indexed, tmp_path, monkeypatch
):
    folder = shutil.copytree(indexed.parent, tmp_path / 'large') / 'videos'
    encoded, encode = [], inferencer.encode_texts
    monkeypatch.setattr(
        inferencer, 'encode_texts', lambda texts: encoded.append(0) or encode(texts)
    )

    def update(new, gone):
        write(folder, numbered(new))
        for number in gone:
            (folder / f'{number:04}.mp4').unlink()
        run(inferencer, folder, exact_below=1000)
        return opened(folder)

    before = opened(folder)
    index = update(range(3000, 3100), range(10))
    assert index.ivf.nprobe == before.ivf.nprobe
    assert (
        index.manifest['measured'] == before.manifest['measured']
        and before.manifest['measured']['moments'] == 2000
        and not encoded
    )
    assert recall(index, np.array(index.embeddings[::20])) >= 0.9
    assert (
        update(range(3100, 3300), []).manifest['measured']['moments'] == 2290 and len(encoded) == 1
    )
    update([], range(10, 200))
    assert len(encoded) == 1
    assert update([], range(200, 300)).manifest['measured']['moments'] == 2000 and len(encoded) == 2
    # What is new is not taken for what was measured, and is gone.
    update([], range(3290, 3300))
    index = update(range(3300, 3310), [])
    assert (index.ids >= index.manifest['measured']['next_id']).sum() == 10


@pytest.mark.slow
def test_an_updated_large_index_is_as_good_as_a_new_one(inferencer, indexed, tmp_path):
    folder = shutil.copytree(indexed.parent, tmp_path / 'large') / 'videos'
    for number in range(0, 2000, 5):
        (folder / f'{number:04}.mp4').unlink()
    write(folder, numbered(range(3000, 3700)))
    for number in (1, 2, 3):
        os.utime(folder / f'{number:04}.mp4', ns=(1, 1))
    assert run(inferencer, folder, exact_below=1000)[:4] == (700, 3, 400, 1597)
    index = opened(folder)
    assert index.ivf.trained_for == 2000
    assert np.array_equal(index.embeddings, POINTS[[int(name[:4]) for name in index.names]])
    assert [os.stat(index.path(name)).st_mtime_ns for name in index.names] == [*index.stamps[:, 1]]

    update_index(inferencer, folder, tmp_path / 'new', exact_below=1000)
    new, queries = VideoIndex.open(tmp_path / 'new'), np.array(index.embeddings[::20])
    assert new.ivf.trained_for == 2300
    assert recall(index, queries) >= recall(new, queries) - 0.02
    assert min(index.manifest['measured']['recall'].values()) >= 0.95

    # Twice as many as the lists were trained for: they are trained again.
    write(folder, numbered([*range(3700, 5000), *range(0, 2000, 5)]))
    assert run(inferencer, folder, exact_below=1000).added == 1700
    assert opened(folder).ivf.trained_for == 4000
    # So few that search is exact.
    for path in folder.glob('[1-9]*.mp4'):
        path.unlink()
    assert run(inferencer, folder, exact_below=1001).kept == 1000
    assert opened(folder).ivf is None and not list(opened(folder).folder.glob('*.faiss'))


def update_until(inferencer, folder, last):
    """Update the index; kill this process when the package has been called so often."""
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        calls += frame.f_globals.get('__name__', '').startswith('projects.vop')
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        run(inferencer, folder, exact_below=20)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.slow
def test_an_update_that_is_killed_at_any_time_leaves_the_old_index(inferencer, folder, monkeypatch):
    """By kill -9, at 20 random points of it; what remains is done by the next run."""
    monkeypatch.setattr(update, 'SAVE_VIDEOS', 2)
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    write(folder, numbered(range(10, 40)))
    run(inferencer, folder, exact_below=20)
    write(folder, numbered([100]))
    chance, calls = np.random.default_rng(0), update_until(inferencer, folder, None)
    before, fork = held(folder), multiprocessing.get_context('fork')
    for number, last in enumerate(chance.integers(1, calls, 20).tolist()):
        write(folder, numbered([200 + number]))
        (folder / f'{10 + number:04}.mp4').unlink()
        after = {name: value for name, value in before.items() if (folder / name).exists()}
        after[f'{200 + number:04}.mp4'] = 200 + number
        child = fork.Process(target=update_until, args=(inferencer, folder, last))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        found = held(folder)
        assert found in (before, after)
        assert opened(folder).search(POINTS[7:8], 40)
        if found == before:
            assert run(inferencer, folder, exact_below=20)[:4] == (1, 0, 1, len(before) - 1)
        else:  # it was about to tidy up
            run(inferencer, folder, exact_below=20)
        assert held(folder) == after
        named = {path.name for path in opened(folder).files.values()}
        assert contents(folder).keys() == {'index.json', 'failed.json', *named}
        before = after
