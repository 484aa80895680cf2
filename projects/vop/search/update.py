"""Making the index of a folder of videos, and bringing it up to date."""

import itertools
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from mmengine.logging import print_log

from ..apis.inferencer import VoPInferencer
from ..engine.checkpoint import to_safetensors
from ..engine.index_config import check_plain_config, plain_config
from ..errors import UserError
from ..fileio import check_writable, file_lock
from .ann import IVF, open_faiss
from .read import FAILED, FILES, FORMAT, MANIFEST, OURS, PARTS, VideoIndex
from .store import (
    LOCK,
    Stamp,
    check_room,
    read_parts,
    scan,
    write_array,
    write_bytes,
    write_json,
    write_part,
    writing,
)

NOT_TO_BE_OPENED = (
    'An index with this model could not be opened: change the config, whose other types may be '
    'subclasses of your own.'
)
EXACT_BELOW = 100_000  # smaller collections are searched exactly
# A process saves what it has finished after so many videos or seconds.
SAVE_VIDEOS, SAVE_SECONDS = 256, 30
# How long processes wait for the slowest one. One that ends is noticed at once.
PATIENCE = timedelta(days=7)
# Captions of many kinds, to measure what an approximate search misses.
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
            changed or as the model is another.
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


class Plan(NamedTuple):
    """What the processes of a run are to encode."""

    todo: list[tuple[str, Stamp]]  # the largest first
    run: Path  # a file next to the parts, which every process must see


def update_index(
    inferencer: VoPInferencer,
    video_dir: str | Path,
    index_dir: str | Path,
    batch_size: int = 8,
    num_workers: int | None = None,
    exact_below: int = EXACT_BELOW,
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
        batch_size (int): Videos of a batch. Defaults to 8.
        num_workers (int, optional): Processes that read videos, for each
            process of the run; see :meth:`.VoPInferencer.iter_videos`.
        exact_below (int): From so many videos on, search is approximate.
            Defaults to 100,000.

    Returns:
        Summary: What was done.

    Raises:
        UserError: If there is no such folder, or no video in it; if
            ``index_dir`` is no index, a damaged one, or that of other videos;
            if another run is writing to it, a file cannot be written, no video
            can be read, or a process of the run has ended; or if FAISS is
            missing.
    """
    # What is wrong with these is said before hours of work.
    _ = open_faiss(), inferencer.pipeline, inferencer.tokenizer
    video_dir = Path(os.path.abspath(video_dir))
    folder = Path(os.path.abspath(index_dir))
    processes = _Processes()
    update = _Update(inferencer, video_dir, folder, exact_below)
    with ExitStack() as stack:

        def begin() -> Plan:
            with naming_files():
                update.scan()
                claim(folder)
                stack.enter_context(file_lock(folder / LOCK))
                return update.plan()

        plan = processes.first(begin)
        if not all(processes.gather(plan.run.parent == update.parts and plan.run.exists())):
            raise UserError(
                f'Not all processes see {plan.run}, or not all have the same model. The index '
                'must be in a folder that all machines share.'
            )
        share = plan.todo[processes.rank :: processes.number]
        done = processes.gather(
            _encode(inferencer, video_dir, dict(share), update.parts, batch_size, num_workers)
        )

        def finish() -> Summary:
            with naming_files():
                return update.finish(
                    [path for paths, _ in done for path in paths],
                    {name: reason for _, failed in done for name, reason in failed.items()},
                )

        return processes.first(finish)


@contextmanager
def naming_files() -> Iterator[None]:
    """Say of an error of the file system which file it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise UserError(str(error)) from error
        raise UserError(f'{error.filename}: {error.strerror}.') from error


def claim(folder: Path) -> None:
    """Make the folder of an index, or refuse one that is something else."""
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        strange = set() if MANIFEST in names else names - {LOCK}
        if LOCK in names:  # of an unfinished index, or of a training or copies
            ours = (PARTS, FAILED, f'{FAILED}.part', f'{MANIFEST}.part')
            strange = {name for name in strange if name not in ours and not OURS.fullmatch(name)}
        if strange:
            raise UserError(
                f'{folder} holds {min(strange)} and is no index: nothing is written there. Give '
                'the folder of an index, or a new one.'
            )
    check_writable(folder / MANIFEST)


def model_files(index_dir: str | Path) -> tuple[Path, Path]:
    """Config and trained weights of an index, or of an unfinished one.

    Raises:
        UserError: If there is no index, or it is damaged, or it was begun with
            several models.
    """
    folder = Path(index_dir)
    if (folder / MANIFEST).exists():
        index = VideoIndex.open(folder)
        return index.config_file, index.state_file
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
    short = configs[0].stem.split('-')[1]
    return configs[0], folder / FILES['model'].format(short)


def _encode(
    inferencer: VoPInferencer,
    video_dir: Path,
    todo: dict[str, Stamp],
    parts: Path,
    batch_size: int,
    num_workers: int | None,
) -> tuple[list[Path], dict[str, str]]:
    """Encode videos and save them as parts, whatever stops it.

    Gives the files, and the videos that could not be read with the reason.
    """
    if not todo:
        return [], {}
    names = {os.path.join(video_dir, name): name for name in todo}
    run, files, failed = uuid.uuid4().hex[:12], [], {}
    videos, embeddings = [], []  # not saved yet
    left, saved_at = len(todo), time.monotonic()

    def save() -> None:
        nonlocal left, saved_at
        if videos:
            path = parts / f'{run}-{len(files):06}.npz'
            write_part(path, videos, torch.cat(embeddings).numpy(), left)
            files.append(path)
            left -= len(videos)
            videos.clear()
            embeddings.clear()
        saved_at = time.monotonic()

    try:
        for batch in inferencer.iter_videos(list(names), batch_size, num_workers):
            finite = batch.embeddings.isfinite().all(dim=1)
            for path, good in zip(batch.paths, finite.tolist()):
                if good:
                    videos.append((names[path], todo[names[path]]))
                else:
                    failed[names[path]] = 'its embedding is not finite.'
            embeddings.append(batch.embeddings[finite])
            for path, reason in batch.failed.items():
                failed[names[path]] = reason
            if len(videos) >= SAVE_VIDEOS or time.monotonic() - saved_at >= SAVE_SECONDS:
                save()
    finally:
        save()
    return files, failed


class _Processes:
    """The processes of a run, or the only one.

    They exchange no tensors, so that gloo serves machines with GPUs, too.
    """

    def __init__(self) -> None:
        self.rank, self.number, self.group = 0, 1, None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.number = dist.get_rank(), dist.get_world_size()
            self.group = dist.new_group(backend='gloo', timeout=PATIENCE)

    def first(self, function: Callable[[], Any]) -> Any:
        """Call a function in the first process; all return or raise what it does."""
        if self.group is None:
            return function()
        outcome = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        self._meet(dist.broadcast_object_list, outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in each process."""
        values = [value] * self.number
        if self.group is not None:
            self._meet(dist.all_gather_object, values, value)
        return values

    def _meet(self, exchange: Callable, *args: Any) -> None:
        try:
            exchange(*args, group=self.group)
        except RuntimeError as error:  # gloo's, where one is gone
            raise UserError(
                'Another process of this run has ended; its messages say why. What was saved '
                f'stays in {PARTS}/: give the same command again, and it resumes.'
            ) from error


class _Update:
    """What the first process does before and after the encoding."""

    def __init__(
        self, inferencer: VoPInferencer, video_dir: Path, folder: Path, exact_below: int
    ) -> None:
        self.inferencer, self.model_fingerprint = inferencer, inferencer.model_fingerprint
        self.video_dir, self.folder, self.exact_below = video_dir, folder, exact_below
        short = self.model_fingerprint[:12]
        self.parts = folder / PARTS / short
        self.model_files = {
            what: folder / FILES[what].format(short) for what in ('config', 'model')
        }

    def scan(self) -> None:
        """Look at what there is to index."""
        self.videos, self.unreadable = scan(self.video_dir)

    def plan(self) -> Plan:
        """Look at what is done already, and say what is to be done."""
        self.old, self.before = None, {}
        if (self.folder / MANIFEST).exists():
            self.old = VideoIndex.open(self.folder)
            self._check_folder()
            if self.old.model_fingerprint == self.model_fingerprint:
                self.before = {
                    name: Stamp(*stamp)
                    for name, stamp in zip(self.old.names, self.old.stamps[:, 1:].tolist())
                }
            else:
                print_log(
                    f'{self.folder} was made with another model: all {len(self.videos):,} videos '
                    'are encoded with this one. Until that is done, the index stays what it is.',
                    'current',
                    logging.WARNING,
                )
        self._keep_model()
        self._prepare_parts()
        todo = {
            name: stamp for name, stamp in self.videos.items() if self.before.get(name) != stamp
        }
        self.todo = set(todo)
        self.saved = sorted(self.parts.glob('*.npz'))
        for name, stamp, _ in read_parts(self.saved):
            if todo.get(name) == stamp:
                del todo[name]
        if len(todo) < len(self.todo):
            print_log(
                f'{len(self.todo) - len(todo):,} videos are taken over from a run that was not '
                'finished.',
                'current',
            )
        run = self.parts / f'run-{uuid.uuid4().hex}.json'
        write_json(run, dict(video_dir=str(self.video_dir), videos=len(self.todo)))
        # Dealt in turn, so ordered, processes get equal shares.
        return Plan(sorted(todo.items(), key=lambda item: -item[1].size), run)

    def _check_folder(self) -> None:
        """Refuse a folder that has nothing to do with the index."""
        names = self.videos.keys() | self.unreadable.keys()
        if self.old.video_dir != self.video_dir and names.isdisjoint(self.old.names):
            raise UserError(
                f'{self.folder} is the index of {self.old.video_dir}, and none of its videos is '
                f'in {self.video_dir}. Give another folder for the index of these, or delete '
                f'{self.folder} if you no longer want it.'
            )

    def _keep_model(self) -> None:
        """Write the config and the weights that were trained."""
        path = self.model_files['config']
        plain = plain_config(self.inferencer.cfg)
        check_plain_config(plain, path, NOT_TO_BE_OPENED)
        config = json.dumps(plain, indent=1).encode()
        # CLIP's weights, which it names, may have moved.
        if not path.exists() or path.read_bytes() != config:
            write_bytes(path, config)
        if not self.model_files['model'].exists():
            state = self.inferencer.model.state_dict()
            write_bytes(self.model_files['model'], to_safetensors(state))

    def _prepare_parts(self) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)
        for pattern in ('run-*.json', '*.part'):
            for path in self.parts.glob(pattern):
                path.unlink()
        if any(path.parent != self.parts for path in self.parts.parent.glob('*/*.npz')):
            print_log(
                f'{self.parts.parent} holds videos that an unfinished run encoded with another '
                'model: they are left out, and removed when this run is done.',
                'current',
                logging.WARNING,
            )

    def finish(self, files: list[Path], failed: dict[str, str]) -> Summary:
        """Make the next generation, of the parts and of what stays."""
        failed = dict(sorted({**self.unreadable, **failed}.items()))
        names, embeddings = self._collect(files, failed)
        write_json(self.folder / FAILED, failed)
        rows = [
            row
            for row, (name, stamp) in enumerate(self.before.items())
            if self.videos.get(name) == stamp
        ]
        if not rows and not names:
            name, reason = next(iter(failed.items()))
            raise UserError(
                f'None of the {len(failed):,} videos of {self.video_dir} can be read, such as '
                f'{name}: {reason} {self.folder / FAILED} lists them. An index that was there '
                'stays as it was.'
            )
        self._tidy(self._commit(rows, names, embeddings))
        known = set(self.old.names) if self.old else set()
        return Summary(
            added=len(set(names) - known),
            changed=len(known.intersection(names)),
            removed=len(known - self.videos.keys() - self.unreadable.keys()),
            kept=len(rows),
            failed=failed,
        )

    def _collect(
        self, files: list[Path], failed: dict[str, str]
    ) -> tuple[list[str], np.ndarray | None]:
        """Names, in order, and embeddings of what was encoded."""
        names = sorted(self.todo - failed.keys())
        row_of = {name: row for row, name in enumerate(names)}
        embeddings, missing = None, set(names)
        for name, stamp, embedding in read_parts([*self.saved, *files]):
            if name in row_of and self.videos[name] == stamp:
                if embeddings is None:
                    embeddings = np.empty((len(names), len(embedding)), np.float32)
                embeddings[row_of[name]] = embedding
                missing.discard(name)
        if missing:
            raise UserError(
                f'{len(missing):,} videos that were encoded, such as {min(missing)}, cannot be '
                f'read from {self.parts}. Give the same command again, and these are encoded '
                'again.'
            )
        return names, embeddings

    def _commit(self, rows: list[int], names: list[str], embeddings: np.ndarray | None) -> set[str]:
        """Write the files of the next generation, ``index.json`` last.

        It is of ``rows`` of the old one, and of ``names`` with ``embeddings``,
        which were encoded. Gives the names of the files.
        """
        old, count = self.old, len(rows) + len(names)
        approximate = count >= self.exact_below
        if old and not names and len(rows) == len(old) and approximate == (old.ivf is not None):
            write_json(self.folder / MANIFEST, dict(old.manifest, video_dir=str(self.video_dir)))
            return {path.name for path in old.files.values()}
        next_id = old.manifest['next_id'] if rows else 0
        stamps = np.array(
            [(i, *self.videos[name]) for i, name in enumerate(names, next_id)], np.int64
        ).reshape(-1, 3)
        next_id += len(names)
        blocks = [embeddings] if names else []
        if rows:
            names = [*(old.names[row] for row in rows), *names]
            stamps = np.concatenate([old.stamps[rows], stamps])
            blocks = [*_runs(old.embeddings, rows), *blocks]
        generation, width = old.generation + 1 if old else 1, len(blocks[0][0])
        paths = {
            what: self.folder / FILES[what].format(generation)
            for what in ('names', 'stamps', 'embeddings', *['ivf'] * approximate)
        }
        manifest = dict(
            format=FORMAT,
            generation=generation,
            model_fingerprint=self.model_fingerprint,
            video_dir=str(self.video_dir),
            videos=count,
            width=width,
            next_id=next_id,
        )
        needed = count * (4 * width * (1 + approximate) + 100)
        _remove(paths.values())  # of a run that was killed here
        check_room(paths['embeddings'], needed)
        try:
            write_json(paths['names'], names)
            write_array(paths['stamps'], [stamps], needed)
            write_array(paths['embeddings'], blocks, needed)
            if approximate:
                ivf = self._make_ivf(paths['embeddings'], stamps[:, 0], rows)
                with writing(paths['ivf'], needed) as part:
                    ivf.write(part)
                manifest['ivf'] = ivf.settings._asdict()
            manifest['files'] = {what: path.stat().st_size for what, path in paths.items()}
            write_json(self.folder / MANIFEST, manifest)
        except UserError:  # make room again
            _remove(paths.values())
            raise
        return {path.name for path in (*paths.values(), *self.model_files.values())}

    def _make_ivf(self, path: Path, ids: np.ndarray, rows: list[int]) -> IVF:
        """Make or update the lists of an approximate search."""
        embeddings = np.load(path, mmap_mode='r')
        ids = np.ascontiguousarray(ids)
        old = self.old.ivf if rows else None
        if old is None or len(ids) >= 2 * old.settings.trained_for:
            print_log(
                f'Dividing {len(ids):,} videos among lists, for an approximate search ...',
                'current',
            )
            ivf, new = IVF.train(embeddings), 0
        else:
            ivf, new = self.old.open_ivf(mapped=False), len(rows)
            ivf.remove(np.setdiff1d(self.old.stamps[:, 0], ids))
        ivf.add(ids[new:], embeddings[new:])
        if not ivf.is_measured(ids):  # which takes longer than all else
            texts = [f'{subject} {scene}' for subject, scene in itertools.product(SUBJECTS, SCENES)]
            ivf.choose_nprobe(embeddings, ids, self.inferencer.encode_texts(texts).numpy())
        return ivf

    def _tidy(self, files: set[str]) -> None:
        """Remove what the new ``index.json`` does not name."""
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name) and path.name not in files:
                path.unlink(missing_ok=True)
        for parts in self.parts.parent.glob('[0-9a-f]' * 12):
            shutil.rmtree(parts, ignore_errors=True)
        with suppress(OSError):  # it may hold what is not of an index
            self.parts.parent.rmdir()


def _remove(paths: Iterable[Path]) -> None:
    """Remove files, whole or not, where they are."""
    for path in paths:
        path.unlink(missing_ok=True)
        path.with_name(f'{path.name}.part').unlink(missing_ok=True)


def _runs(array: np.ndarray, rows: list[int]) -> list[np.ndarray]:
    """Rows of an array as few slices, of which none is a copy."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    return [array[run[0] : run[-1] + 1] for run in np.split(rows, cuts)]
