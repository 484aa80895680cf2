r"""Find out whether reading or computing limits training on this machine.

Each combination of the given batch sizes, numbers of workers and copies of the
data set is a row of a table. It is measured three times:

- the data loader alone: how fast the workers can read;
- the model alone: training steps on one batch, while no worker reads;
- both together, as MMEngine's Runner trains: pairs/s, the time of a step, and
  the share of it that the step waits for data.

On several GPUs, which share cores and disk, start it as training is started:

    python -m torch.distributed.run --nproc_per_node 8 \
        tools/analysis/profile_training.py CONFIG --launcher pytorch

Batch sizes and times are those of the main process, rates those of all. The
start of an epoch is left out, and `compile` applies to both together alone.
"""

import argparse
import gc
import itertools
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import get_world_size, init_dist, is_distributed, is_main_process

from projects.vop import engine
from projects.vop.errors import UserError
from projects.vop.fileio import available_cores, check_writable, write_file

WAITING = 0.1  # a step that waits for data for a larger share of its time is limited by reading
TRACED_STEPS = 5
GPU = torch.cuda.is_available()
# Of the table; so are they called in --json, too.
COLUMNS = (
    *('batch_size', 'data_root', 'num_workers', 'pairs_per_s', 'step_ms', 'waiting_share'),
    *('loader_alone_pairs_per_s', 'model_alone_pairs_per_s', 'gpu_memory_gib'),
)


def prepare(args: argparse.Namespace) -> Config:
    """Open and check the config, and take out what is no part of a step."""
    engine.check_launcher(args.launcher)
    cfg = engine.open_config(args.config)
    engine.merge_options(cfg, args.cfg_options)
    parts = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    if missing := [part for part in parts if not cfg.get(part)]:
        raise UserError(f'{args.config} does not train: it lacks {", ".join(missing)}.')
    if args.amp:
        engine.check_amp()
        engine.use_amp(cfg)
    unused = [key for key in cfg if key.startswith(('val_', 'test_'))]
    unused += ['param_scheduler', 'auto_scale_lr', 'visualizer', 'load_from', 'custom_hooks']
    cfg.update(dict.fromkeys(unused), resume=False, log_level='ERROR', launcher=args.launcher)
    cfg.default_hooks = dict.fromkeys(('logger', 'param_scheduler', 'checkpoint', 'sampler_seed'))
    engine.pin_memory(cfg)
    engine.use_gloo_without_gpu(cfg)
    if args.launcher != 'none' and not is_distributed():
        init_dist(args.launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
    return cfg


def with_setting(cfg: Config, batch_size: int, data_root: str | None, num_workers: int) -> Config:
    """A copy of a config that trains with a setting."""
    cfg = deepcopy(cfg)
    loader = cfg.train_dataloader
    loader.update(batch_size=batch_size, num_workers=num_workers, persistent_workers=False)
    loader.sampler = dict(type='InfiniteSampler')  # no start of an epoch
    if data_root is not None:
        loader.dataset.data_root = data_root
    return cfg


def seconds_per_call(function: Callable, calls: int, warmup: int) -> float:
    """The mean time of a call, after some that are not measured."""
    times = []
    for n in (warmup, calls, 0):
        if GPU:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        for _ in range(n):
            function()
    return (times[2] - times[1]) / calls


def measure(cfg: Config, steps: int, warmup: int, seed: int) -> list:
    """Measure the loader alone, the model alone, and both together; see COLUMNS.

    ``seed`` decides which items are read, so that a setting does not find the
    files of another in memory.
    """
    # Workers deliver in turns, so whole turns are measured.
    turn = max(1, cfg.train_dataloader.num_workers)
    steps, warmup = (math.ceil(n / turn) * turn for n in (steps, warmup))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=warmup + steps)
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': 2 * seed}
    cfg.experiment_name = f'setting {seed}'  # a message hub of its own
    runner = engine.build_train_runner(cfg)

    loader = runner.build_dataloader(cfg.train_dataloader, seed=2 * seed + 1)
    if not len(loader.dataset):
        raise UserError(f'The data set of train_dataloader in {cfg.filename} is empty.')
    batches = iter(loader)
    loader_s = seconds_per_call(partial(next, batches), steps, warmup)
    batch = next(batches)
    del loader, batches  # and with them the workers

    runner.model.train()
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    step = partial(runner.model.train_step, batch, optim_wrapper=runner.optim_wrapper)
    model_s = seconds_per_call(step, steps, warmup)

    if GPU:
        torch.cuda.reset_peak_memory_stats()
    runner.train()  # IterTimerHook measures it
    timed = (runner.message_hub.get_scalar(f'train/{key}') for key in ('time', 'data_time'))
    step_s, waiting_s = (float(each.mean(steps)) for each in timed)
    pairs = cfg.train_dataloader.batch_size * get_world_size()
    memory = torch.cuda.max_memory_allocated() / 2**30 if GPU else None
    rates = pairs / loader_s, pairs / model_s
    return [pairs / step_s, 1000 * step_s, waiting_s / step_s, *rates, memory]


def trace(cfg: Config, warmup: int, path: str) -> None:
    """Write a trace of some training steps."""
    steps = warmup + 1 + TRACED_STEPS
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps)
    cfg.experiment_name = 'trace'
    hook = dict(type='ProfilerHook', by_epoch=False, profile_times=steps, json_trace_path=path)
    hook['activity_with_cuda'] = GPU
    # One step more than there are, as the hook itself ends the trace.
    hook['schedule'] = dict(wait=warmup, warmup=1, active=TRACED_STEPS + 1)
    cfg.custom_hooks = [hook] if is_main_process() else None
    engine.build_train_runner(cfg).train()


def advise(best: dict, amp: bool) -> str:
    """Two sentences: what limits the fastest setting, and what to do about it."""
    todo = f'give more workers (of {available_cores()} cores), or copies that decode faster '
    todo += '(tools/data/compress_videos.py makes them, --data-root compares them)'
    if best['bottleneck'] == 'computing':
        todo = f'use {"" if amp else "--amp, "}a larger --batch-size, or more GPUs'
        todo = todo if GPU else 'use a GPU'
    setting = ', '.join(f'{key} {best[key]}' for key in COLUMNS[:3])
    return (
        f'The bottleneck is {best["bottleneck"]}: the fastest setting ({setting}) waits for data '
        f'for {best["waiting_share"]:.0%} of a step. To train faster, {todo}.'
    )


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('config', help='config file, or its name; METHOD_DATASET need not be a file')
    add('--batch-size', type=int, nargs='+', metavar='N', help='pairs of one process')
    add('--num-workers', type=int, nargs='+', metavar='N', help='workers of one process')
    add('--data-root', nargs='+', metavar='DIR', help='the data set and copies of it')
    add('--steps', type=int, default=50, help='steps that are measured')
    add('--warmup', type=int, default=5, help='steps before them that are not')
    add('--amp', action='store_true', help='mixed precision (needs a GPU)')
    add('--json', metavar='FILE', help='write all figures to this file')
    add('--trace', metavar='FILE', help='write a trace (.json) of steps of the fastest setting')
    add('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    engine.add_launcher_arguments(parser)
    args = parser.parse_args()
    if min(*(args.batch_size or [1]), args.steps) < 1 or min(*(args.num_workers or [0]), 0) < 0:
        parser.error('--batch-size and --steps must be at least 1, --num-workers at least 0')
    return args


def main() -> None:
    """Measure all settings."""
    args = parse_args()
    for path in filter(None, (args.json, args.trace)):
        check_writable(path)
    cfg = prepare(args)
    loader = cfg.train_dataloader
    batch_sizes = args.batch_size or [loader.batch_size]
    roots = args.data_root or [loader.dataset.get('data_root')]
    workers = args.num_workers or [loader.get('num_workers', 0)]
    settings = list(itertools.product(batch_sizes, roots, workers))
    for setting in settings:
        engine.check_data(with_setting(cfg, *setting), 'train')
    warnings.filterwarnings('ignore', 'This DataLoader will create')  # workers are on trial
    say = partial(print, flush=True) if is_main_process() else lambda text: None
    device = torch.cuda.get_device_name() if GPU else 'CPU'
    report = dict(config=args.config, device=device, torch=torch.__version__, amp=args.amp)
    report.update(processes=get_world_size(), steps=args.steps, warmup=args.warmup)
    say(', '.join(f'{key}: {value}' for key, value in report.items()) + '\n')
    say(f'| {" | ".join(COLUMNS)} |\n|{" --- |" * len(COLUMNS)}')
    rows = report['rows'] = []
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        for seed, setting in enumerate(settings):
            try:
                figures = measure(with_setting(cfg, *setting), args.steps, args.warmup, seed)
            except torch.cuda.OutOfMemoryError:
                figures = []
            rows.append(dict(zip(COLUMNS, [*setting, *figures]), out_of_memory=not figures))
            cells = [*setting, *(figures or ['out of memory'])]
            cells = (f'{cell:,.2f}' if isinstance(cell, float) else str(cell) for cell in cells)
            say(f'| {" | ".join(cells)} |')
            gc.collect()  # the runner, with its workers and its memory
            torch.cuda.empty_cache()
        best = max(rows, key=lambda row: row.get('pairs_per_s', 0))
        if best['out_of_memory']:
            raise UserError('Every setting ran out of memory. Give a smaller --batch-size.')
        waits = best['waiting_share'] > WAITING
        report['best'] = dict(best, bottleneck='reading' if waits else 'computing')
        say('\n' + advise(report['best'], args.amp))
        if args.json and is_main_process():
            write_file(args.json, json.dumps(report, indent=1))
        if args.trace:
            trace(with_setting(cfg, *settings[rows.index(best)]), args.warmup, args.trace)
            say(f'{args.trace} is a trace for https://ui.perfetto.dev.')


if __name__ == '__main__':
    with engine.tool():
        main()
