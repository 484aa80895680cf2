"""Making the index of a folder of videos, and bringing it up to date."""

import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size
from mmengine.logging import print_log

from ..apis import VoPInferencer, Windows
from ..engine.checkpoint import to_safetensors
from ..engine.index_config import check_plain_config, plain_config
from ..errors import FileWriteError, UserError, warn
from ..fileio import check_writable, file_lock, write_file
from .ann import IVF, QUERIES, TOP, open_faiss, sample, search_exactly
from .read import EXACT_BELOW, VideoIndex
from .store import (
    FAILED,
    FILES,
    FORMAT,
    LOCK,
    MANIFEST,
    OURS,
    PARTS,
    Stamp,
    Videos,
    index_files,
    model_paths,
    read_blocks,
    read_parts,
    scan,
    write_rows,
    write_videos,
)

NOT_TO_BE_OPENED = (
    'An index with this model could not be opened: change the config, whose other types may be '
    'subclasses of your own.'
)
# A process saves what it has finished after so many videos or seconds.
SAVE_VIDEOS, SAVE_SECONDS = 256, 30
SAME = 0.9  # a part; embeddings are measured anew when fewer are those of the last time
BACKGROUND = 0.95  # the part of pairs of caption and moment with a score below the threshold
# Captions of many kinds, to measure what an approximate search misses, and which scores mean
# nothing.
SUBJECTS = (
    'a man,a woman,a child,two people,a crowd,a dog,a cat,a bird,a car,a machine,a player,a cook,'
    'a singer,a cartoon figure,a hand,a view'
).split(',')
SCENES = (
    'in a kitchen,on a street,at the sea,in the snow,on a stage,in a studio,on a field,'
    'in a forest,in a car,under water,at night,in an office,in a computer game,on a table,'
    'from above,with music'
).split(',')


class Summary(NamedTuple):
    """What an update did.

    Attributes:
        added (int): Videos that are new.
        changed (int): Videos that were encoded again, as their files have
            changed or as the model or the windows are others.
        removed (int): Videos that are gone.
        kept (int): Videos that stay as they were.
        failed (dict[str, str]): Videos that could not be read, and why. They
            are not in the index, and each update tries them again.

    Example:
        >>> update_index(inferencer, 'my_videos', 'my_index')
        Summary(added=2, changed=0, removed=0, kept=5, failed={})
    """

    added: int
    changed: int
    removed: int
    kept: int
    failed: dict[str, str]


class Job(NamedTuple):
    """What is indexed, and where."""

    inferencer: VoPInferencer
    fingerprint: str  # of its model, which takes a look at all weights
    video_dir: Path
    folder: Path
    windows: Windows | None
    exact_below: int

    @property
    def parts(self) -> Path:
        """The folder of what is encoded."""
        names = map(str, [self.fingerprint[:12], *(self.windows or ())])
        return self.folder / PARTS / '-'.join(names)


class Plan(NamedTuple):
    """What an update has to do."""

    old: VideoIndex | None  # the index as it is
    stay: np.ndarray  # which of its videos stay, bool [v]
    removed: int  # how many of its videos are gone
    new: dict[str, Stamp]  # videos that it lacks, in order
    failed: dict[str, str]  # those that cannot be looked at, and why
    saved: list[Path]  # parts of a run that was not finished
    todo: list[tuple[str, Stamp]]  # videos to encode, the largest first


def update_index(
    inferencer: VoPInferencer,
    video_dir: str | Path,
    index_dir: str | Path,
    batch_size: int = 8,
    num_workers: int | None = None,
    exact_below: int = EXACT_BELOW,
    windows: Windows | tuple[float, float] | None = None,
) -> Summary:
    """Index the videos of a folder, or bring its index up to date.

    Only videos that are new, or whose size or time of change is another, are
    encoded. What is encoded is saved every 256 videos or 30 s; a run that is
    stopped, be it by ``kill -9`` or a full disk, loses no more than that, and
    the next one resumes from there. Until the end, the index stays what it was.

    Every process of a distributed run calls this, and encodes a part of the
    videos. ``index_dir`` must then be in a folder that all machines share.

    Args:
        inferencer (VoPInferencer): Embeds the videos. If its model is another
            than the index's, all videos are encoded again.
        video_dir (str | Path): The folder of the videos.
        index_dir (str | Path): The folder of the index; see
            :class:`.VideoIndex`.
        batch_size (int): Videos or windows of a batch. Defaults to 8.
        num_workers (int, optional): Processes that read videos, for each
            process of the run; see :meth:`.VoPInferencer.iter_videos`.
        exact_below (int): From so many moments on, search is approximate.
            Defaults to 100,000.
        windows (tuple[float, float], optional): Seconds of a moment, and from one to the next.
            Defaults to those of the index; without one, each video is one moment. If they are
            others than the index's, all videos are encoded again.

    Returns:
        Summary: What was done.

    Raises:
        UserError: If there is no such folder, or no video in it; if
            ``index_dir`` is no index, a damaged one, or that of other videos;
            if another run is writing to it, a file cannot be written, no video
            can be read, or a process of the run has ended; or if FAISS is
            missing.
    """
    open_faiss()  # that it is missing is said before hours of work
    video_dir, folder = (Path(os.path.abspath(path)) for path in (video_dir, index_dir))
    fingerprint = inferencer.model_fingerprint
    asked = windows and Windows(*map(float, windows)).check()
    with ExitStack() as stack:
        found = _on_rank_zero(lambda: scan(video_dir))
        old = _on_rank_zero(lambda: stack.enter_context(claim(folder)))
        stack.enter_context(_saying_how_to_resume())
        chosen = asked or _broadcast(None if old is None else old.window)
        chosen = chosen and Windows(*chosen)
        job = Job(inferencer, fingerprint, video_dir, folder, chosen, exact_below)
        plan = _on_rank_zero(lambda: _make_plan(job, old, *found))
        run, todo = _broadcast(_on_rank_zero(lambda: (_begin_run(job, plan), plan.todo)))
        if not all(_exchange(all_gather_object, run.parent == job.parts and run.exists())):
            raise UserError(
                f'Not all processes see {run}, or not all have the same model. The index '
                'must be in a folder that all machines share.'
            )
        # Dealt in turn, so ordered, processes get equal shares.
        own = _encode(job, dict(todo[get_rank() :: get_world_size()]), batch_size, num_workers)
        encoded = _exchange(all_gather_object, own)
        return _broadcast(_on_rank_zero(lambda: _finish(job, plan, encoded)))


@contextmanager
def _saying_how_to_resume() -> Iterator[None]:
    """Say with an error of writing that what was saved is kept."""
    try:
        yield
    except FileWriteError as error:
        raise UserError(
            f'{error} The index is as it was, and the videos that were saved are kept: once there '
            'is room, and permission to write, the same command resumes.'
        ) from error


def _on_rank_zero(function: Callable[[], Any]) -> Any:
    """Call a function in the first process alone; all raise what it raises.

    Returns:
        Any: What it returns there, and None in the others; see :func:`_broadcast`.
    """
    result: Any = None
    failure: Exception | None = None
    if get_rank() == 0:
        try:
            result = function()
        except OSError as error:
            name = '' if error.filename is None else f'{error.filename}: '
            failure = UserError(f'{name}{error.strerror or error}.')
            failure.__cause__ = error
        except Exception as error:
            failure = error
    failure = _broadcast(failure)
    if failure is not None:
        raise failure
    return result


def _broadcast(value: Any) -> Any:
    """What the first process has, in each process."""
    values = [value]
    _exchange(broadcast_object_list, values)
    return values[0]


def _exchange(collective: Callable, value: Any) -> Any:
    try:
        return collective(value)
    except RuntimeError as error:  # gloo's, where one is gone
        raise UserError(
            'Another process of this run has ended; its messages say why. What was saved '
            f'stays in {PARTS}/: give the same command again, and it resumes.'
        ) from error


@contextmanager
def claim(folder: Path) -> Iterator[VideoIndex | None]:
    """Lock the folder of an index, which is made if need be, and open what it holds.

    Raises:
        UserError: If it is the folder of something else, or locked.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    strange = set() if MANIFEST in names else names
    if LOCK in names:  # of an unfinished index, or of a training or copies
        ours = {LOCK, PARTS, FAILED, f'{FAILED}.part', f'{MANIFEST}.part'}
        strange = {name for name in strange - ours if not OURS.fullmatch(name)}
    if strange:
        raise UserError(
            f'{folder} holds {min(strange)} and is no index: nothing is written there. Give '
            'the folder of an index, or a new one.'
        )
    check_writable(folder / MANIFEST)
    with file_lock(folder / LOCK):
        yield VideoIndex.open(folder) if (folder / MANIFEST).exists() else None


def model_files(index_dir: str | Path) -> tuple[Path, Path]:
    """Config and trained weights of an index, or of an unfinished one.

    Raises:
        UserError: If there is no index, or it is damaged, or it was begun with
            several models.
    """
    folder = Path(index_dir)
    if (folder / MANIFEST).exists():
        files = VideoIndex.open(folder).files
        return files['config'], files['model']
    configs = list(folder.glob(FILES['config'].format('*')))
    if len(configs) > 1:
        raise UserError(
            f'Indexing into {folder} was begun with several models: say with --config and '
            '--checkpoint which one to resume with.'
        )
    if not configs:
        raise UserError(
            f'There is no index in {folder} yet: say with --config and --checkpoint which model '
            'is to make it.'
        )
    return model_paths(folder, configs[0].stem.split('-')[1])


def _make_plan(
    job: Job, old: VideoIndex | None, videos: dict[str, Stamp], failed: dict[str, str]
) -> Plan:
    """Look at what is done already, and say what is to be done."""
    names = [] if old is None else old.names
    stay = np.zeros(len(names), bool)
    if old is not None:
        # A folder that has moved is known by its videos.
        has_moved = old.video_dir != job.video_dir
        if has_moved and (videos.keys() | failed.keys()).isdisjoint(names):
            raise UserError(
                f'{job.folder} is the index of {old.video_dir}, and none of its videos is in '
                f'{job.video_dir}. Give another folder for the index of these, or delete '
                f'{job.folder} if you no longer want it.'
            )
        if (old.model_fingerprint, old.window) == (job.fingerprint, job.windows):
            gone = -1, -1  # the stamp of no file
            now = np.array([videos.get(name, gone) for name in names], np.int64)
            stay = (now == old.stamps).all(axis=1)
        else:
            warn(
                f'{job.folder} was made with another model or other windows: all {len(videos):,} '
                'videos are encoded with these. Until that is done, the index stays what it is.'
            )
    if any(path.parent != job.parts for path in job.parts.parent.glob('*/*.npz')):
        warn(
            f'{job.parts.parent} holds videos that an unfinished run encoded with another model '
            'or other windows: they are left out, and removed when this run is done.'
        )
    lacking = videos.keys() - set(itertools.compress(names, stay))
    new = {name: videos[name] for name in sorted(lacking)}
    saved = sorted(job.parts.glob('*.npz'))
    done = {name for name, stamp, *_ in read_parts(saved) if new.get(name) == stamp}
    if done:
        print_log(
            f'{len(done):,} videos are taken over from a run that was not finished.', 'current'
        )
    todo = [(name, stamp) for name, stamp in new.items() if name not in done]
    todo.sort(key=lambda video: -video[1][0])
    removed = len(set(names) - videos.keys() - failed.keys())
    return Plan(old, stay, removed, new, failed, saved, todo)


def _begin_run(job: Job, plan: Plan) -> Path:
    """Keep the model, and say in a file beside the parts that a run has begun."""
    if plan.todo:
        # What is wrong with these is said before hours of work.
        _ = job.inferencer.pipeline, job.inferencer.tokenizer
    config, state = model_paths(job.folder, job.fingerprint)
    plain = plain_config(job.inferencer.cfg)
    check_plain_config(plain, config, NOT_TO_BE_OPENED)
    data = json.dumps(plain, indent=1).encode()
    # CLIP's weights, which it names, may have moved.
    if not config.exists() or config.read_bytes() != data:
        write_file(config, data)
    if not state.exists():
        write_file(state, to_safetensors(job.inferencer.model.state_dict()))
    for pattern in ('run-*', '*.part'):  # of a run that was killed
        for path in job.parts.glob(pattern):
            path.unlink()
    run = job.parts / f'run-{uuid.uuid4().hex}'
    write_file(run, '')
    return run


def _encode(
    job: Job, todo: dict[str, Stamp], batch_size: int, num_workers: int | None
) -> tuple[list[Path], dict[str, str]]:
    """Encode videos, and save those that are complete as parts, whatever stops it.

    Returns:
        tuple[list[Path], dict[str, str]]: The parts, and videos that cannot be read, and why.
    """
    parts: list[Path] = []
    failed: dict[str, str] = {}
    if not todo:
        return parts, failed
    names = {os.path.join(job.video_dir, name): name for name in todo}
    moments: dict[str, list] = {}  # span and embedding of each, by the path of the video
    complete: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # spans and embeddings, by name
    prefix, saved_at = uuid.uuid4().hex[:12], time.monotonic()

    def save() -> None:
        if complete:
            path = job.parts / f'{prefix}-{len(parts):06}.npz'
            stamps = np.array([todo[name] for name in complete], np.int64)
            spans, embeddings = zip(*complete.values())
            counts = np.array([*map(len, spans)], np.int64)
            videos = Videos([*complete], stamps, counts, np.concatenate(spans))
            write_videos(path, videos, np.concatenate(embeddings))
            parts.append(path)
            complete.clear()

    try:
        for batch in job.inferencer.iter_videos([*names], batch_size, num_workers, job.windows):
            rows = zip(batch.paths, batch.spans, batch.embeddings.float().numpy())
            for path, span, embedding in rows:
                moments.setdefault(path, []).append((span, embedding))
            for path, reason in batch.failed.items():
                failed[names[path]] = reason
                moments.pop(path, None)
            for path in moments.keys() - {batch.unfinished}:
                spans, embeddings = map(np.stack, zip(*moments.pop(path)))
                if np.isfinite(embeddings).all():
                    complete[names[path]] = spans, embeddings
                else:
                    failed[names[path]] = 'its embedding is not finite.'
            if len(complete) >= SAVE_VIDEOS or time.monotonic() - saved_at >= SAVE_SECONDS:
                save()
                saved_at = time.monotonic()
    finally:
        save()
    return parts, failed


def _finish(job: Job, plan: Plan, encoded: list[tuple[list[Path], dict[str, str]]]) -> Summary:
    """Make the next generation, of what stays and of the parts, and remove the last one."""
    folder, old = job.folder, plan.old
    failed = dict(plan.failed)
    for _, own in encoded:
        failed.update(own)
    failed = dict(sorted(failed.items()))
    write_file(folder / FAILED, json.dumps(failed))
    new = {name: stamp for name, stamp in plan.new.items() if name not in failed}
    kept = int(plan.stay.sum())
    if not kept and not new:
        name, reason = next(iter(failed.items()))
        raise UserError(
            f'None of the {len(failed):,} videos of {job.video_dir} can be read, such as {name}: '
            f'{reason} {folder / FAILED} lists them. An index that was there stays as it was.'
        )
    generation = 1 if old is None else old.generation + 1
    paths = {
        what: folder / FILES[what].format(generation) for what in ('videos', 'embeddings', 'ivf')
    }
    is_unchanged = (
        old is not None
        and plan.stay.all()
        and not new
        and (len(old) >= job.exact_below) == (old.ivf is not None)
    )
    for path in paths.values():  # of a run that was killed here
        path.unlink(missing_ok=True)
    try:
        if old is not None and is_unchanged:
            manifest = dict(old.manifest, video_dir=str(job.video_dir))
        else:
            parts = [*plan.saved, *(path for paths, _ in encoded for path in paths)]
            manifest = dict(
                _write_generation(job, plan, new, parts, paths),
                format=FORMAT,
                generation=generation,
                model_fingerprint=job.fingerprint,
                video_dir=str(job.video_dir),
                window=[*(job.windows or ())],
            )
        write_file(folder / MANIFEST, json.dumps(manifest))
    except UserError:  # make room again
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise
    _tidy(folder, {*index_files(folder, manifest).values()})
    changed = 0 if old is None else len(new.keys() & set(old.names))
    return Summary(len(new) - changed, changed, plan.removed, kept, failed)


def _write_generation(
    job: Job, plan: Plan, new: dict[str, Stamp], parts: list[Path], paths: dict[str, Path]
) -> dict[str, Any]:
    """Write the files of the next generation; give what ``index.json`` says of them."""
    old = plan.old if plan.stay.any() else None
    # Parts are read twice, as all embeddings together may be larger than the memory.
    spans = {name: spans for name, spans, _ in _read_encoded(parts, new)}
    videos, ids, rows = _join(old, plan.stay, new, [spans[name] for name in new])
    counts = videos.counts[len(videos.names) - len(new) :]
    first_rows = dict(zip(new, (len(rows) + np.cumsum(counts) - counts).tolist()))
    width = job.inferencer.towers.embed_dim
    write_videos(paths['videos'], videos, ids)
    write_rows(
        paths['embeddings'],
        (len(ids), width),
        () if old is None else read_blocks(old.embeddings, rows),
        ((first_rows[name], each) for name, _, each in _read_encoded(parts, new)),
    )
    embeddings: np.memmap = np.load(paths['embeddings'], mmap_mode='r')
    ivf = None
    if len(ids) >= job.exact_below:
        ivf = _make_ivf(old, embeddings, ids, len(rows))
    measured = _measure(old, job, ivf, embeddings, ids)  # which also sets up the lists
    manifest = dict(videos=len(videos.names), moments=len(ids), width=width, measured=measured)
    written = ['videos', 'embeddings']
    if ivf is not None:
        ivf.write(paths['ivf'])
        written.append('ivf')
        manifest['ivf'] = ivf.settings
    return dict(manifest, files={what: paths[what].stat().st_size for what in written})


def _read_encoded(
    parts: list[Path], videos: dict[str, Stamp]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, spans and embeddings of these videos as they were saved, each once."""
    left = dict(videos)
    for name, stamp, spans, embeddings in read_parts(parts):
        if left.get(name) == stamp:
            del left[name]
            yield name, spans, embeddings
    if left:
        raise UserError(
            f'{len(left):,} videos that were encoded, such as {min(left)}, cannot be read from '
            'the parts of this run. Give the same command again, and these are encoded again.'
        )


def _join(
    old: VideoIndex | None, stay: np.ndarray, new: dict[str, Stamp], spans: list[np.ndarray]
) -> tuple[Videos, np.ndarray, np.ndarray]:
    """The videos of the next generation, the ids of its moments, and the old rows that stay."""
    names, stamps = [*new], np.array([*new.values()], np.int64).reshape(-1, 2)
    counts, rows = np.array([*map(len, spans)], np.int64), np.empty(0, np.int64)
    ids = np.arange(counts.sum())
    if old is not None:
        names = [*itertools.compress(old.names, stay), *names]
        stamps = np.concatenate([old.stamps[stay], stamps])
        counts = np.concatenate([np.bincount(old.moments['video'])[stay], counts])
        rows = np.flatnonzero(stay[old.moments['video']])
        # None that was measured is given again.
        next_id = max(int(old.ids[-1]) + 1, old.manifest['measured']['next_id'])
        ids = np.concatenate([old.ids[rows], ids + next_id])
        spans = [np.stack([old.moments['start'], old.moments['end']], 1)[rows], *spans]
    return Videos(names, stamps, counts, np.concatenate(spans)), ids, rows


def _make_ivf(old: VideoIndex | None, embeddings: np.memmap, ids: np.ndarray, kept: int) -> IVF:
    """Make or update the lists of an approximate search."""
    if old is None or old.ivf is None or len(ids) >= 2 * old.ivf.trained_for:
        print_log(
            f'Dividing {len(ids):,} moments among lists, for an approximate search ...', 'current'
        )
        ivf, kept = IVF.train(embeddings), 0
    else:
        ivf = old.ivf
        ivf.remove(np.setdiff1d(old.ids, ids, assume_unique=True))
    ivf.add(ids[kept:], read_blocks(embeddings, np.arange(kept, len(ids))))
    return ivf


def _measure(
    old: VideoIndex | None, job: Job, ivf: IVF | None, embeddings: np.memmap, ids: np.ndarray
) -> dict[str, Any]:
    """Find the score that means something, and how many lists a query has to read."""
    if old is not None and getattr(old.ivf, 'trained_for', 0) == getattr(ivf, 'trained_for', 0):
        measured = old.manifest['measured']
        same = np.count_nonzero(ids < measured['next_id'])
        if same >= SAME * max(len(ids), measured['moments']):
            return measured  # which takes longer than all else
    captions = [f'{a} {b}' for a, b in itertools.product(SUBJECTS, SCENES)]
    texts = job.inferencer.encode_texts(captions)
    queries = dict(videos=sample(embeddings, QUERIES), texts=texts.numpy())
    threshold = float(np.quantile(queries['texts'] @ sample(embeddings, 4096).T, BACKGROUND))
    recall = {}
    if ivf is not None:
        together = np.concatenate([*queries.values()])
        # A video finds itself, too.
        scores = search_exactly(together, read_blocks(embeddings), min(TOP + 1, len(ids)))[0]
        videos, texts = np.split(scores, [len(queries['videos'])])
        exact = dict(videos=videos, texts=texts[:, :TOP])
        recall = ivf.choose(queries, exact, embeddings, ids)
    return dict(moments=len(ids), next_id=int(ids[-1]) + 1, threshold=threshold, recall=recall)


def _tidy(folder: Path, files: set[Path]) -> None:
    """Remove what the new ``index.json`` does not name."""
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path not in files:
            path.unlink(missing_ok=True)
    for parts in (folder / PARTS).glob('[0-9a-f]' * 12 + '*'):
        shutil.rmtree(parts, ignore_errors=True)
    with suppress(OSError):  # it may hold what is not of an index
        (folder / PARTS).rmdir()
