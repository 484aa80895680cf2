r"""Find out whether reading or computing limits training on this machine.

Every combination of the batch sizes, numbers of workers and copies of the data
set that are given is a row of a table. It is measured three times, with the
model, the data loader and the optimizer of a config:

- the data loader alone: how fast the workers can read;
- the model alone: training steps on one batch, while no worker reads;
- both together, as MMEngine's Runner trains: pairs/s, the time of a step, and
  the share of it that the step waits for data.

On several GPUs, which share cores and disk, start it as training is started:

    python -m torch.distributed.run --nproc_per_node 8 \
        tools/analysis/profile_training.py CONFIG --launcher pytorch

The batch size is that of one process. Times are those of the main process,
rates those of all processes. Items are drawn without end (InfiniteSampler), so
the start of an epoch is left out. Files that were read before may come from
memory, as in training from its second epoch on. The `compile` of a config
applies to both together, not to the model alone. Nothing is saved or logged.
"""

import argparse
import copy
import gc
import itertools
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import get_world_size, init_dist, is_distributed, is_main_process

from projects.vop.engine import (
    add_launcher_arguments,
    build_train_runner,
    check_amp,
    check_data,
    open_config,
    pin_memory,
    tool,
    use_amp,
    use_gloo_without_gpu,
)
from projects.vop.errors import UserError
from projects.vop.fileio import check_writable, write_file

# A step that waits for data for a larger share of its time is limited by reading.
WAITING = 0.1
TRACED_STEPS = 5
# Figures by their names in --json, with heading and format in the table.
COLUMNS = dict(
    batch_size=('batch', ''),
    num_workers=('workers', ''),
    data_root=('data', ''),
    pairs_per_s=('pairs/s', ',.1f'),
    step_ms=('step, ms', ',.1f'),
    waiting_share=('waiting for data', '.0%'),
    loader_alone_pairs_per_s=('loader alone, pairs/s', ',.1f'),
    model_alone_pairs_per_s=('model alone, pairs/s', ',.1f'),
    gpu_memory_gib=('GPU memory, GiB', '.1f'),
)
# Parts of a config that save, log, evaluate, or need the length of a training.
UNUSED = (
    *('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader'),
    *('test_evaluator', 'param_scheduler', 'auto_scale_lr', 'visualizer', 'load_from'),
    'custom_hooks',
)


def prepare(args: argparse.Namespace) -> Config:
    """Open and check the config, and take out what is no part of a step."""
    cfg = open_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    parts = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    missing = [part for part in parts if not cfg.get(part)]
    if missing:
        raise UserError(f'{args.config} does not train: it lacks {", ".join(missing)}.')
    if args.amp:
        check_amp()
        use_amp(cfg)
    cfg.update(dict.fromkeys(UNUSED), resume=False, log_level='ERROR', launcher=args.launcher)
    cfg.default_hooks = dict.fromkeys(('logger', 'param_scheduler', 'checkpoint', 'sampler_seed'))
    pin_memory(cfg)
    use_gloo_without_gpu(cfg)
    if args.launcher != 'none' and not is_distributed():
        init_dist(args.launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
    return cfg


def dataset_of(loader: dict) -> dict:
    """The config of the data set, within RepeatDataset and the like."""
    dataset = loader['dataset']
    while isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def with_setting(cfg: Config, batch_size: int, num_workers: int, data_root: str | None) -> Config:
    """A copy of a config that trains with a setting."""
    cfg = copy.deepcopy(cfg)
    loader = cfg.train_dataloader
    loader.update(batch_size=batch_size, num_workers=num_workers, persistent_workers=False)
    loader.sampler = dict(type='InfiniteSampler')
    if num_workers == 0:
        loader.pop('prefetch_factor', None)
    if data_root is not None:
        dataset_of(loader)['data_root'] = data_root
    return cfg


def seconds_per_call(function: Callable, calls: int, warmup: int) -> float:
    """The mean time of a call, after some that are not measured."""
    for n in (warmup, calls):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n):
            function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def measure(cfg: Config, steps: int, warmup: int, seed: int) -> dict:
    """Measure the loader alone, the model alone, and both together.

    Args:
        cfg (Config): A config with a setting.
        steps (int): Steps that are measured.
        warmup (int): Steps before them that are not.
        seed (int): Decides which items are read, so that a setting does not
            find the files of another in memory.

    Returns:
        dict: Figures of a row.
    """
    # Workers deliver in turns, so whole turns are measured.
    turn = max(1, cfg.train_dataloader.num_workers)
    steps, warmup = (math.ceil(n / turn) * turn for n in (steps, warmup))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=warmup + steps)
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': 2 * seed}
    cfg.experiment_name = f'setting {seed}'  # a message hub of its own
    runner = build_train_runner(cfg)

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

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    runner.train()
    step_s, waiting_s = (  # of IterTimerHook
        float(runner.message_hub.get_scalar(f'train/{key}').mean(steps))
        for key in ('time', 'data_time')
    )
    pairs = cfg.train_dataloader.batch_size * get_world_size()
    return dict(
        pairs_per_s=pairs / step_s,
        step_ms=1000 * step_s,
        waiting_share=waiting_s / step_s,
        loader_alone_pairs_per_s=pairs / loader_s,
        model_alone_pairs_per_s=pairs / model_s,
        gpu_memory_gib=torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
    )


def trace(cfg: Config, warmup: int, path: str) -> None:
    """Write a trace of some training steps."""
    steps = warmup + 1 + TRACED_STEPS
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps)
    cfg.experiment_name = 'trace'
    hook = dict(
        type='ProfilerHook',
        by_epoch=False,
        profile_times=steps,
        activity_with_cuda=torch.cuda.is_available(),
        # One step more than there are, as the hook itself ends the trace.
        schedule=dict(wait=warmup, warmup=1, active=TRACED_STEPS + 1),
        json_trace_path=path,
    )
    cfg.custom_hooks = [hook] if is_main_process() else None
    build_train_runner(cfg).train()


def format_row(row: dict) -> str:
    """A row of the Markdown table."""
    cells = [
        '-' if row.get(key) is None else format(row[key], spec)
        for key, (_, spec) in COLUMNS.items()
    ]
    if row['out_of_memory']:
        cells[list(COLUMNS).index('pairs_per_s')] = 'out of memory'
    return f'| {" | ".join(cells)} |'


def advise(best: dict, amp: bool) -> str:
    """Say what limits the fastest setting, and what to do about it."""
    if best['bottleneck'] == 'reading':
        todo = (
            f'more workers (--num-workers) while there are idle cores (of {os.cpu_count()} here), '
            'or copies of the videos that decode faster (tools/data/compress_videos.py makes '
            'them, --data-root compares them)'
        )
    elif not torch.cuda.is_available():
        todo = 'reading keeps up; train on a GPU'
    else:
        precision = '' if amp else 'mixed precision (--amp), '
        todo = f'reading keeps up; {precision}a larger batch (--batch-size) or more GPUs'
    return (
        f'Fastest: batch {best["batch_size"]}, {best["num_workers"]} workers, data '
        f'{best["data_root"]}: {best["pairs_per_s"]:,.1f} pairs/s.\n'
        f'Bottleneck: {best["bottleneck"]}. A step waits for data for '
        f'{best["waiting_share"]:.0%} of its time.\nWhat to do: {todo}.'
    )


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('config', help='config file; configs/METHOD_DATASET.py need not be a file')
    add('--batch-size', type=int, nargs='+', metavar='N', help='pairs of one process')
    add('--num-workers', type=int, nargs='+', metavar='N', help='workers of one process')
    add('--data-root', nargs='+', metavar='DIR', help='the data set and copies of it')
    add('--steps', type=int, default=50, help='steps that are measured')
    add('--warmup', type=int, default=5, help='steps before them that are not')
    add('--amp', action='store_true', help='mixed precision (needs a GPU)')
    add('--json', metavar='FILE', help='write all figures to this file')
    add('--trace', metavar='FILE', help='write a trace (.json) of steps of the fastest setting')
    add('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    add_launcher_arguments(parser)
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
    settings = [
        dict(batch_size=batch_size, num_workers=num_workers, data_root=data_root)
        for batch_size, data_root, num_workers in itertools.product(
            args.batch_size or [loader.batch_size],
            args.data_root or [dataset_of(loader).get('data_root')],
            args.num_workers or [loader.get('num_workers', 0)],
        )
    ]
    for setting in settings:
        check_data(with_setting(cfg, **setting), 'train')
    warnings.filterwarnings('ignore', 'This DataLoader will create')  # workers are on trial
    say = partial(print, flush=True) if is_main_process() else lambda text: None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    report = dict(config=args.config, device=device, torch=torch.__version__, amp=args.amp)
    report.update(processes=get_world_size(), steps=args.steps, warmup=args.warmup)
    say(', '.join(f'{key}: {value}' for key, value in report.items()) + '\n')
    say(f'| {" | ".join(name for name, _ in COLUMNS.values())} |\n|{" --- |" * len(COLUMNS)}')
    rows = report['rows'] = []
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        for seed, setting in enumerate(settings):
            try:
                figures = measure(with_setting(cfg, **setting), args.steps, args.warmup, seed)
            except torch.cuda.OutOfMemoryError:
                figures = {}
            rows.append(dict(setting, out_of_memory=not figures, **figures))
            say(format_row(rows[-1]))
            gc.collect()  # the runner, with its workers and its memory
            torch.cuda.empty_cache()
        best = max(rows, key=lambda row: row.get('pairs_per_s', 0))
        if best['out_of_memory']:
            raise UserError('Every setting ran out of memory. Give a smaller --batch-size.')
        bottleneck = 'reading' if best['waiting_share'] > WAITING else 'computing'
        report['best'] = dict(best, bottleneck=bottleneck)
        say('\n' + advise(report['best'], args.amp))
        if args.json and is_main_process():
            write_file(args.json, json.dumps(report, indent=1))
        if args.trace:
            trace(with_setting(cfg, **{k: best[k] for k in setting}), args.warmup, args.trace)
            say(f'{args.trace} is a trace for https://ui.perfetto.dev.')


if __name__ == '__main__':
    with tool():
        main()
