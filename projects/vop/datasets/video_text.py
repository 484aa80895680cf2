"""Videos with captions."""

import logging
import os
import os.path as osp
import random
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import numpy as np
import torch
from mmaction.datasets import BaseActionDataset
from mmengine.logging import print_log

from ..damage import signs_of_damage, warn_of_damage
from ..errors import UserError, VideoReadError, reason_or_raise, shown, warn
from ..fileio import as_file, same_name, walk_files, why_no_file
from ..isolation import FORKS, Isolated, check_timeout
from ..registry import DATASETS
from .annotations import Annotation, read_annotations
from .items import Items, Texts
from .transforms import TimeWindow

_datasets: weakref.WeakSet = weakref.WeakSet()  # of this process


@DATASETS.register_module()
class VideoTextDataset(BaseActionDataset):
    """Videos with captions, read from MMAction2's ``VideoTextDataset`` JSON.

    In training an item is a (video, caption) pair. In testing it is a video
    with all its captions, so that each video is decoded and encoded once.

    Items are random in training only by the data set's seed, the epoch and
    their index (see ``ReproducibleSampler``), not by the worker that makes
    them: a resumed run sees what an uninterrupted one would have seen.

    A video that is cut off is used, and named once (see :func:`.warn_of_damage`).

    Args:
        ann_file (str): See :func:`read_annotations`.
        pipeline (list): Transforms. An annotation file with windows needs
            ``vop.TimeWindow`` among them.
        data_prefix (dict): ``video``, the folder of the videos.
        skip_bad_videos (bool): In training, skip videos that are missing or
            that the pipeline fails on: each is logged by name and reason, with
            the number that this process has skipped so far, and other items
            replace its pairs. Not possible in testing. Defaults to False.
        test_mode (bool): Whether items are videos with all captions.
            Defaults to False.
        serialize_data (bool): Whether MMEngine pickles the items, which takes
            more time and memory than the arrays in which workers share them by
            default. For subclasses whose ``filter_data`` makes a long list.
        timeout (float, optional): Seconds that the pipeline may take for a
            video. It runs in a process of its own, so that a video which hangs
            or crashes its decoder is like any other that it fails on. None
            runs it in this process, without a limit, as happens on Windows and
            macOS. Defaults to 60.

    Raises:
        UserError: If the annotation file or a video is missing, or if the
            annotation file is malformed or has windows that the pipeline
            would ignore, or if ``timeout`` is no number of seconds.
        VideoReadError: From reading an item, if its video cannot be decoded, or
            not within ``timeout``.

    Example:
        >>> train_dataloader = dict(
        ...     sampler=dict(type='vop.ReproducibleSampler', shuffle=True),
        ...     dataset=dict(
        ...         type='vop.VideoTextDataset',
        ...         ann_file='data/msrvtt/train_9k.json',
        ...         data_prefix=dict(video='data/msrvtt/videos'),
        ...         pipeline=train_pipeline))
    """

    def __init__(
        self,
        ann_file: str,
        pipeline: list,
        data_prefix: dict = dict(video=''),
        skip_bad_videos: bool = False,
        test_mode: bool = False,
        serialize_data: bool = False,
        timeout: float | None = 60,
        **kwargs,
    ) -> None:
        if skip_bad_videos and test_mode:
            raise UserError(
                'skip_bad_videos=True is for training: a test that leaves out '
                'videos would report numbers of another test set.'
            )
        self.skip_bad_videos, self.timeout = skip_bad_videos, check_timeout(timeout)
        self._reader: Isolated | None = None
        # Seed and epoch, in shared memory: persistent workers see a new epoch.
        self._clock: torch.Tensor | None = None
        super().__init__(
            ann_file,
            pipeline=pipeline,
            data_prefix=data_prefix,
            test_mode=test_mode,
            serialize_data=serialize_data,
            **kwargs,
        )
        _datasets.add(self)

    def load_data_list(self) -> Sequence[dict]:
        """Make the items."""
        annotations = read_annotations(self.ann_file)
        self._check_pipeline(annotations)
        folder = self.data_prefix['video']
        # DecordInit, too, reads names without an extension as mp4.
        files = [video if osp.splitext(video)[1] else f'{video}.mp4' for video in annotations]
        paths = [osp.join(folder, file) for file in files]
        # Flags of each video, shared by all workers.
        self._bad, self._named, self._measured, self._reading = (
            torch.zeros(len(paths), dtype=torch.bool).share_memory_() for _ in range(4)
        )
        if '://' not in folder:  # which is no folder
            self._find(folder, files, paths)
            paths = [as_file(path) for path in paths]
        self._videos = Texts(paths)
        items = Items(annotations, self._videos, self.test_mode)
        return list(items) if self.serialize_data else items

    def _check_pipeline(self, annotations: dict[str, Annotation]) -> None:
        if any(isinstance(transform, TimeWindow) for transform in self.pipeline.transforms):
            return
        for video, annotation in annotations.items():
            if annotation[1:] != (None, None):
                raise UserError(
                    f'{self.ann_file} gives "{video}" a window of time, which the pipeline '
                    "would ignore: add dict(type='vop.TimeWindow') right after DecordInit."
                )

    def _find(self, folder: str, files: list[str], paths: list[str]) -> None:
        """Look whether the videos are there; ``paths`` takes other Unicode forms of their names."""
        there = _files_among(paths)
        missing = [i for i, path in enumerate(paths) if path not in there and not osp.isfile(path)]
        if not all(files[i].isascii() for i in missing) and osp.isdir(folder):
            forms = {same_name(name): name for name, _ in walk_files(folder)}
            for i in missing:
                if name := forms.get(same_name(files[i])):
                    paths[i] = osp.join(folder, name)
            missing = [i for i in missing if not osp.isfile(paths[i])]
        if not missing:
            return
        names = ', '.join(
            shown(path, 300) + (f' ({why_no_file(path)})' if osp.exists(path) else '')
            for path in (paths[number] for number in missing[:3])
        )
        message = (
            f'{len(missing)} of the {len(paths)} videos of {self.ann_file} '
            f'are missing: {names}{", ..." if len(missing) > 3 else ""}.'
        )
        if not self.skip_bad_videos or len(missing) == len(paths):
            hint = '' if self.test_mode else ' To train without them, set skip_bad_videos=True.'
            raise UserError(f'{message} They are looked for in {folder} (data_prefix).{hint}')
        self._bad[missing] = True
        warn(f'{message} They are skipped.')

    @property
    def skipped_videos(self) -> list[str]:
        """Paths of the videos that this process and its workers skipped."""
        return [self._videos[i] for i in self._bad.nonzero().flatten()]

    def set_epoch(self, epoch: int, seed: int) -> None:
        """Make all that is random in the items depend on these numbers."""
        if self._clock is None:
            self._clock = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._clock[0], self._clock[1] = seed, epoch

    @property
    def videos_being_read(self) -> list[str]:
        """Paths of the videos that this process and its workers are reading."""
        return [self._videos[i] for i in self._reading.nonzero().flatten()]

    def __getitem__(self, idx: int) -> dict:
        """Read an item; see the class."""
        data = self.prepare_data(idx)
        if data is None:  # what replaces it does not depend on how far it got
            with self._randomness(idx):
                data = super().__getitem__(idx)
        return data

    def _seed(self, idx: int) -> tuple[int, ...] | None:
        if self._clock is None or self.test_mode:
            return None
        return (*self._clock.tolist(), idx)

    def _randomness(self, idx: int):
        seed = self._seed(idx)
        return nullcontext() if seed is None else _seeded(*seed)

    def _run_pipeline(self, item: dict, idx: int) -> dict | None:
        measure = not self._measured[item['video_number']]
        self._measured[item['video_number']] = True
        if self.timeout is None or not FORKS:
            with self._randomness(idx):
                return self._warned(item, *_read(self.pipeline, item, measure))
        # The pipeline may be another now, as after a hook that switches it.
        if self._reader is None or self._reader.function.args[0] is not self.pipeline:
            self._reader = Isolated(partial(_read, self.pipeline), self.timeout)
        # Without an epoch to go by, from this process, which draws other numbers than others.
        seed = self._seed(idx) or (random.getrandbits(32), np.random.randint(2**31))
        return self._warned(item, *self._reader(item, measure, seed))

    def _warned(self, item: dict, data: dict | None, signs: list[str]) -> dict | None:
        """Name a damaged video, once."""
        if signs and not self._named[item['video_number']]:
            self._named[item['video_number']] = True
            warn_of_damage(item['filename'], signs)
        return data

    def prepare_data(self, idx: int) -> dict | None:
        """Run the pipeline on an item.

        Returns:
            dict | None: None if its video is skipped.
        """
        item = self.get_data_info(idx)
        number = item['video_number']
        if self._bad[number]:
            self._check_any_left(None)
            return None
        self._reading[number] = True
        try:
            return self._run_pipeline(item, idx)
        except Exception as error:
            path = item['filename']
            message = f'{shown(path)} cannot be read: {reason_or_raise(error, path)}.'
            if not self.skip_bad_videos:
                hint = ' To train without such videos, set skip_bad_videos=True.'
                raise VideoReadError(message + ('' if self.test_mode else hint)) from error
            self._bad[number] = True
            skipped = f'{int(self._bad.sum())} of {len(self._bad)} videos skipped so far'
            # An error, as every rank shows those.
            print_log(f'{message} It is skipped; {skipped}.', 'current', logging.ERROR)
            self._check_any_left(error)
            return None
        finally:
            self._reading[number] = False

    def _check_any_left(self, error: Exception | None) -> None:
        if self._bad.all():
            raise VideoReadError(
                f'None of the {len(self._bad)} videos of {self.ann_file} can be read; '
                'see the log for the reason of each.'
            ) from error


def _files_among(paths: list[str]) -> set[str]:
    """Which paths are files, by one look into each of their folders.

    Over a network a look takes long. Links are left out, and must be looked at one by one.
    """
    there: set[str] = set()
    for folder in {osp.dirname(path) for path in paths}:
        with suppress(OSError, ValueError), os.scandir(folder or '.') as entries:
            files = (entry.name for entry in entries if entry.is_file(follow_symlinks=False))
            there.update(osp.join(folder, name) for name in files)
    return there


LOADER = 'torch.utils.data.dataloader'
SIGNALS = 'torch.utils.data._utils.signal_handling'


@contextmanager
def explain_data_loader() -> Iterator[None]:
    """Say which videos a data loader was reading whose worker was killed, or gave nothing in time.

    Raises:
        UserError: In place of torch's error.

    Example:
        >>> with explain_data_loader():
        ...     runner.train()
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        modules = [
            frame.f_globals['__name__'] for frame, _ in traceback.walk_tb(error.__traceback__)
        ]
        # A broken connection shows deep in it. What a worker raises is raised again elsewhere.
        broken = isinstance(error, (ConnectionError, EOFError)) and LOADER in modules
        # torch learns by a signal, at whatever line, that a worker has ended.
        ended = isinstance(error, RuntimeError) and modules[-1] in (LOADER, SIGNALS)
        if not broken and not ended:
            raise
        videos = sorted({video for dataset in _datasets for video in dataset.videos_being_read})
        reading = f' when these were being read: {", ".join(videos)}' if videos else ''
        reason = f'{error}'.strip().rstrip('.') or type(error).__name__
        raise UserError(
            f'A worker of a data loader was killed or gave nothing in time{reading} ({reason}). If '
            'it was killed, memory may have run out: lower num_workers or batch_size of the data '
            'loader. If it was too slow: timeout of its dataset, in place of its own, limits each '
            'video.'
        ) from error


def _seed_everything(numbers: tuple[int, ...]) -> None:
    """Seed what transforms draw from."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _read(
    pipeline: Callable, item: dict, measure: bool, seed: tuple[int, ...] | None = None
) -> tuple[dict | None, list[str]]:
    """Run a pipeline; with a seed, in a process of its own."""
    if seed is not None:
        _seed_everything(seed)
    with signs_of_damage(item['filename'], seed is not None, measure) as signs:
        data = pipeline(dict(item))
    return data, signs


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Seed what transforms draw from, and put it back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_everything(numbers)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
