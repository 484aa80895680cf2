"""Training steps with a clock; tools/analysis/profile_training.py reports."""

import copy
import gc
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size, is_distributed
from mmengine.hooks import DistSamplerSeedHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..registry import LOOPS

PARTS = {
    'data': 'waiting for data',
    'transfer': 'transfer',
    'forward': 'forward',
    'backward': 'backward',
    'optimizer': 'optimizer',
}


def synchronize() -> None:
    """Wait until the GPU, where there is one, has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """Sums up the seconds of the parts of steps, one behind the other."""

    def __init__(self) -> None:
        self.seconds = Counter()
        synchronize()
        self._last = time.perf_counter()

    def end(self, part: str) -> None:
        """Count the time since the last end as this part's."""
        synchronize()
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


@contextmanager
def split_steps(
    model: nn.Module, optim_wrapper: OptimWrapper, clock: Clock
) -> Iterator[Callable[[Any], None]]:
    """Time the parts of MMEngine's own ``train_step``.

    Nothing of it is written again here: the clock is told when the data
    preprocessor has returned, when ``OptimWrapper.backward`` is entered, and
    when it has returned.

    Args:
        model (nn.Module): The model, or its distributed wrapper.
        optim_wrapper (OptimWrapper): Of one optimizer.
        clock (Clock): Is told the parts but for ``data``.

    Yields:
        Callable: Runs a step on a batch of the data loader.
    """
    module = model.module if is_model_wrapper(model) else model
    backward = optim_wrapper.backward

    def timed_backward(*args, **kwargs) -> None:
        clock.end('forward')
        backward(*args, **kwargs)
        clock.end('backward')

    def step(batch: Any) -> None:
        # Of the class: the model's own may have been compiled as a whole.
        type(model).train_step(model, batch, optim_wrapper=optim_wrapper)
        clock.end('optimizer')

    handle = module.data_preprocessor.register_forward_hook(lambda *_: clock.end('transfer'))
    optim_wrapper.backward = timed_backward
    try:
        yield step
    finally:
        del optim_wrapper.backward
        handle.remove()


class Counted:
    """A ``collate_fn`` that also says of how many items a batch is."""

    def __init__(self, collate_fn: Callable) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: list) -> tuple[int, Any]:
        return len(items), self.collate_fn(items)


@LOOPS.register_module()
class ProfileLoop(EpochBasedTrainLoop):
    """Runs some training steps for every setting, in place of training.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Config of the data loader.
        settings (list[dict]): Of ``batch_size``, ``num_workers`` and
            ``data_root``; None is the config's own.
        steps (int): Steps that are measured.
        warmup (int): Steps that are not, before them.
    """

    def __init__(
        self, runner: Runner, dataloader: dict, settings: list[dict], steps: int, warmup: int
    ) -> None:
        self._runner = runner
        self.config, self.settings = dataloader, settings
        self.steps, self.warmup = steps, warmup
        self.dataloader: DataLoader | None = None
        self.on_row: Callable[[dict], None] = lambda row: None
        self._epoch = self._iter = 0
        # As in the midst of a long training: no step is the last one, in
        # which accumulated gradients would be scaled in another way.
        self._max_epochs = self._max_iters = -1
        self._control = dist.new_group(backend='gloo') if is_distributed() else None
        self._alone: dict[int, list[dict] | None] = {}

    def run(self) -> nn.Module:
        """Measure all settings; see tools/analysis/profile_training.py."""
        self.runner.model.train()
        for root in dict.fromkeys(s['data_root'] for s in self.settings):
            try:  # before the first minutes are spent
                self._build(dict(self.settings[0], data_root=root))
            except (OSError, ValueError) as error:
                raise SystemExit(str(error)) from error
        for setting in self.settings:
            self.on_row(self._measure(setting))
        return self.runner.model

    def _build(self, setting: dict) -> None:
        # Which builds the data loader, and no more.
        BaseLoop.__init__(self, self.runner, loader_config(self.config, **setting))
        loader = self.dataloader
        if not len(loader):
            raise ValueError(
                f'The data set has {len(loader.dataset)} items, which is not '
                f'enough for one batch of {setting["batch_size"]} in each '
                'process, and drop_last=True leaves smaller ones out.'
            )
        loader.collate_fn = Counted(loader.collate_fn)

    @contextmanager
    def _batches(self, setting: dict) -> Iterator[Iterator[tuple]]:
        """Batches without end; their workers are gone afterwards."""
        self._build(setting)
        iterators = []

        def batches() -> Iterator[tuple]:
            while True:
                DistSamplerSeedHook().before_train_epoch(self.runner)
                self._epoch += 1
                iterators[:] = [iter(self.dataloader)]
                yield from iterators[0]

        try:
            yield batches()
        finally:
            for iterator in iterators:
                if hasattr(iterator, '_shutdown_workers'):
                    iterator._shutdown_workers()
            self.dataloader = None

    def _together(self, measure: Callable[[], dict]) -> list[dict] | None:
        """Measure on all ranks at the same time.

        Returns:
            list[dict] | None: What each rank measured; None if one of them
            ran out of memory.
        """
        self._gather(None)  # all start when the last one is ready
        try:
            result = measure()
        except torch.cuda.OutOfMemoryError:
            result = None
        results = self._gather(result)
        if None not in results:
            return results
        runner = self.runner
        runner.optim_wrapper.optimizer.zero_grad(set_to_none=True)
        if is_model_wrapper(runner.model):
            # The old one may wait for the end of an exchange of gradients.
            runner.model = runner.wrap_model(
                runner.cfg.get('model_wrapper_cfg'), runner.model.module
            )
            runner.model.train()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _gather(self, value: Any) -> list:
        values = [value]
        if self._control is not None:
            values *= get_world_size()
            dist.all_gather_object(values, value, group=self._control)
        return values

    def _timed(self, run: Callable[[], int], steps: int) -> dict:
        """Seconds of some steps, and the pairs that they took."""
        synchronize()
        start = time.perf_counter()
        pairs = sum(run() for _ in range(steps))
        synchronize()
        return dict(seconds=time.perf_counter() - start, pairs=pairs, steps=steps)

    def _model_alone(self, setting: dict) -> list[dict] | None:
        """Steps on a batch that is on the device, without workers."""
        size = setting['batch_size']
        if size in self._alone:
            return self._alone[size]
        with self._batches(setting) as batches:
            pairs, batch = next(batches)
        model, optim_wrapper = self.runner.model, self.runner.optim_wrapper
        module = model.module if is_model_wrapper(model) else model

        # The first pass does not touch the wrapper: memory that runs out
        # amid an exchange of gradients would leave other ranks waiting.
        def fits() -> dict:
            with optim_wrapper.optim_context(module):
                data = module.data_preprocessor(batch, True)
                losses = module._run_forward(data, mode='loss')
            module.parse_losses(losses)[0].backward()
            optim_wrapper.zero_grad()
            return {}

        def train() -> dict:
            on_device = module.data_preprocessor.cast_data(batch)

            def step() -> int:
                self.run_iter(0, on_device)
                return pairs

            self._timed(step, self.warmup)
            return self._timed(step, self.steps)

        self._alone[size] = self._together(fits) and self._together(train)
        return self._alone[size]

    def _measure(self, setting: dict) -> dict:
        model_alone = self._model_alone(setting)
        if model_alone is None:
            return dict(setting, out_of_memory=True)
        workers = max(1, setting['num_workers'])
        with self._batches(setting) as batches:

            def start_up() -> dict:
                return self._timed(lambda: next(batches)[0], 1)

            def read() -> dict:
                # Workers deliver in turns: whole turns are measured, from
                # the end of one to that of another.
                self._timed(lambda: next(batches)[0], up(self.warmup + 1, workers) - 1)
                return self._timed(lambda: next(batches)[0], up(self.steps, workers))

            def train() -> dict:

                def step() -> int:
                    pairs, batch = next(batches)
                    self.run_iter(0, batch)
                    return pairs

                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                self._timed(step, self.warmup)
                result = self._timed(step, self.steps)
                if torch.cuda.is_available():
                    result['memory'] = torch.cuda.max_memory_allocated()
                return result

            def split() -> dict:
                clock = Clock()
                with split_steps(self.runner.model, self.runner.optim_wrapper, clock) as step:
                    for _ in range(self.steps):
                        batch = next(batches)[1]
                        clock.end('data')
                        step(batch)
                return dict(clock.seconds)

            measured = [model_alone]
            for phase in (start_up, read, train, split):
                measured.append(self._together(phase))
                if measured[-1] is None:
                    return dict(setting, out_of_memory=True)
            return summarize(
                setting,
                *measured,
                pairs=len(self.dataloader.dataset),
                steps_in_epoch=len(self.dataloader),
            )

    def machine(self) -> tuple[int, int]:
        """Cores of this machine, and the processes that share them."""
        mine = (
            set(range(os.cpu_count()))
            if not hasattr(os, 'sched_getaffinity')
            else os.sched_getaffinity(0)
        )
        host = socket.gethostname()
        here = [cores for other, cores in self._gather((host, mine)) if other == host]
        return len(set().union(*here)), len(here)


def up(number: int, step: int) -> int:
    """The number, rounded up to a multiple of the step."""
    return math.ceil(number / step) * step


def dataset_of(loader: dict) -> dict:
    """The data set's config, within RepeatDataset and its like."""
    dataset = loader['dataset']
    while isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def loader_config(loader: dict, batch_size: int, num_workers: int, data_root: str | None) -> dict:
    """The data loader's config for a setting."""
    loader = copy.deepcopy(loader)
    for options in (loader, loader.get('batch_sampler') or {}):
        if 'batch_size' in options:
            options['batch_size'] = batch_size
    loader['num_workers'] = num_workers
    if num_workers == 0:
        loader['persistent_workers'] = False
        loader.pop('prefetch_factor', None)
    if data_root is not None:
        dataset_of(loader)['data_root'] = data_root
    return loader


def summarize(
    setting: dict,
    model: list[dict],
    start: list[dict],
    read: list[dict],
    train: list[dict],
    split: list[dict],
    pairs: int,
    steps_in_epoch: int,
) -> dict:
    """A row of the table; of the ranks, the slowest counts.

    Args:
        setting (dict): The setting.
        model, start, read, train (list[dict]): ``seconds``, ``pairs`` and
            ``steps`` of each rank.
        split (list[dict]): Seconds of each part, of each rank.
        pairs (int): In the data set.
        steps_in_epoch (int): Of each rank.

    Returns:
        dict: As ``--json`` has it.
    """

    def rate(results: list[dict]) -> float:
        return sum(r['pairs'] for r in results) / max(r['seconds'] for r in results)

    seconds = max(r['seconds'] for r in train)
    start_up = max(r['seconds'] for r in start)
    # The others wait for this one, within their backward.
    parts = max(split, key=lambda seconds: seconds['data'])
    split_seconds = sum(parts.values())
    memory = [r['memory'] for r in train if 'memory' in r]
    return dict(
        setting,
        out_of_memory=False,
        steps=train[0]['steps'],
        pairs_per_s=rate(train),
        step_ms=1000 * seconds / train[0]['steps'],
        split_step_ms=1000 * split_seconds / train[0]['steps'],
        part_ms={part: 1000 * parts[part] / train[0]['steps'] for part in PARTS},
        share={part: parts[part] / split_seconds for part in PARTS},
        read_alone_pairs_per_s=rate(read),
        model_alone_pairs_per_s=rate(model),
        peak_gpu_memory_bytes=max(memory) if memory else None,
        start_up_s=start_up,
        epoch_s=pairs / rate(train) + start_up,
        pairs_in_data_set=pairs,
        steps_in_epoch=steps_in_epoch,
    )
