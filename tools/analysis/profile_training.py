"""Find what limits training on this machine, and what keeps the GPU busy.

Trains for some steps with the model, the data and the optimizer of a config,
for every combination of the batch sizes, numbers of workers and copies of the
data that are given, and says where the time goes. On several GPUs, which
share the cores and the disk, start it as training is started:

    python -m torch.distributed.run --nproc_per_node 8 \\
        tools/analysis/profile_training.py CONFIG --launcher pytorch

The batch size is that of one process; the configs of the paper take 32 pairs
in all. Each setting is measured four times:

- the data loader alone, without a model: how fast the workers can read;
- the model alone, on a batch that is on the device already and with no worker
  running: how fast it can train. It depends on the batch size alone;
- whole steps, as MMEngine's training loop runs them: `pairs/s`, `step ms` and
  the GPU memory. A step cannot be shorter than either of the two above;
- steps whose parts are timed: the shares. On a GPU, the device is waited for
  at the end of each part, so that a part's time is its own. This hides that
  the CPU runs ahead of the GPU, so these steps can be longer than whole ones.

The parts are: waiting for data; transfer (the data preprocessor: to the
device, normalise); forward (with the loss); backward (with the exchange of
gradients between processes); optimizer (with clipping and zero_grad). Of
several processes the slowest counts. Hooks do not run, but for the one that
reads the losses after each step, as in training. Nothing is saved. Each
setting reads other items; files that were read before can come from memory,
as they do in training from its second epoch on.
"""

import argparse
import itertools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_distributed, is_main_process

from projects.vop.engine import (
    build_runner,
    check_data,
    open_config,
    pin_memory,
    use_amp,
    use_gloo_without_gpu,
)
from projects.vop.engine.profiling import PARTS, dataset_of, loader_config
from projects.vop.errors import VideoReadError

# A step that waits for data for a larger share of its time is bound by
# reading.
WAITING = 0.1
# Rates that differ by less are called the same.
NOISE = 0.03


COLUMNS = [
    'batch',
    'workers',
    'data',
    'pairs/s',
    'step ms',
    *PARTS.values(),
    'loader alone, pairs/s',
    'model alone, pairs/s',
    'GPU memory',
    'start-up s',
]


def line(cells: list) -> str:
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def setting_cells(row: dict) -> list:
    return [row['batch_size'], row['num_workers'], row['data_root'] or '-']


def cells(row: dict) -> list:
    """A row as the table shows it."""
    if row['out_of_memory']:
        return [*setting_cells(row), 'out of memory', *['-'] * (len(COLUMNS) - 4)]
    memory = row['peak_gpu_memory_bytes']
    return [
        *setting_cells(row),
        number(row['pairs_per_s']),
        number(row['step_ms']),
        *(f'{row["share"][part]:.0%}' for part in PARTS),
        number(row['read_alone_pairs_per_s']),
        number(row['model_alone_pairs_per_s']),
        '-' if memory is None else f'{memory / 2**30:.1f} GiB',
        number(row['start_up_s']),
    ]


def diagnose(row: dict, cores: int, here: int, processes: int) -> dict:
    """Name what bounds a setting, and what would lift it.

    Args:
        row (dict): Of :func:`summarize`.
        cores (int): Of the machine.
        here (int): Processes of the run on this machine.
        processes (int): Processes of the run.

    Returns:
        dict: ``bound`` (``'reading'`` or ``'computing'``), the rates of one
        worker and of one process's model, and the ``workers_needed`` by each
        process to keep its model busy.
    """
    workers = max(1, row['num_workers'])
    # Workers that share a core do not read more than it does.
    running = min(workers, max(1, cores / here))
    worker = row['read_alone_pairs_per_s'] / processes / running
    model = row['model_alone_pairs_per_s'] / processes
    return dict(
        bound='reading' if row['share']['data'] > WAITING else 'computing',
        worker_pairs_per_s=worker,
        model_pairs_per_s=model,
        workers_needed=math.ceil(model / worker),
    )


def advise(
    row: dict, rows: list[dict], cores: int, here: int, processes: int, amp: bool, gpu: bool
) -> list[str]:
    """What bounds a setting, and what to do about it, in words.

    Args:
        row (dict): Of :func:`summarize`.
        rows (list[dict]): All that were measured: what was tried and is no
            faster is not advised.
        cores, here, processes (int): As in :func:`diagnose`.
        amp (bool): Whether mixed precision is in use.
        gpu (bool): Whether there is a GPU.

    Returns:
        list[str]: Lines to print.
    """
    found = diagnose(row, cores, here, processes)
    needed, workers = found['workers_needed'], row['num_workers']
    read, model = (row[f'{name}_alone_pairs_per_s'] for name in ('read', 'model'))
    each = ' in each process' if processes > 1 else ''
    who = f'{here} training processes and their' if here > 1 else 'the training process and its'
    faster = (
        'a copy of the videos that is faster to decode '
        '(tools/data/compress_videos.py makes one; compare it with '
        '--data-root)'
    )
    lines = []
    if found['bound'] == 'reading':
        tried = max(
            other['num_workers']
            for other in rows
            if all(other[key] == row[key] for key in ('batch_size', 'data_root'))
        )
        useful = min(needed, max(1, cores // here))
        if useful > tried and (read < model or workers == 0):
            todo = f'take --num-workers {useful}'
            if useful < needed:
                todo += f', as many as there are cores{each}, and {faster}, as that is not enough'
        elif read >= model:
            todo = (
                f'{who} workers share {count(cores, "core")}, which is '
                f'too few for both: take {faster}, or more cores'
            )
        elif tried > workers:
            todo = f'more workers were tried, and are no faster: take {faster}'
        else:
            todo = f'more workers would only share the {count(cores, "core")}: take {faster}'
    else:
        ways = 'a larger batch (where memory is left) or more GPUs' if gpu else 'a GPU'
        if gpu and not amp:
            ways = f'mixed precision (--amp), {ways}'
        todo = f'reading is fast enough; {ways} would help'
    lines += [
        f'Bottleneck: {found["bound"]}. A step waits for data for '
        f'{row["share"]["data"]:.0%} of its time. Alone, the data loader '
        f'reads {number(read)} pairs/s and the model trains {number(model)} '
        f'pairs/s; in training both reach {number(row["pairs_per_s"])}.',
        f'What to do: {todo}.',
        f'What keeps the {"GPU" if gpu else "model"} busy: a worker with a '
        f'core to itself reads {number(found["worker_pairs_per_s"])} pairs/s, '
        f'and the model trains {number(found["model_pairs_per_s"])}{each}: '
        f'{count(needed, "worker")}{each}.',
    ]
    slower = min(read, model) / row['pairs_per_s']
    if row['steps_in_epoch'] >= row['steps'] and workers and slower > 1.25:
        lines.append(
            f'Training is {slower:.1f} times as slow as the slower of both '
            f'alone: {who} workers share {count(cores, "core")}.'
        )
    if row['steps_in_epoch'] < row['steps']:
        lines.append(
            f'An epoch has {count(row["steps_in_epoch"], "step")}, fewer than '
            'were measured: its start, when the workers have nothing ready '
            'yet, is in these figures.'
        )
    return lines


def count(n: int, what: str) -> str:
    return f'{n} {what}{"s" * (n != 1)}'


def duration(seconds: float) -> str:
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'


class Report:
    """Prints the table as it grows, and what follows from it."""

    def __init__(self, args: argparse.Namespace, cfg: Config) -> None:
        self.args = args
        self.config_batch = batch_size_of(cfg.train_dataloader)
        self.compiled = bool(cfg.get('compile'))
        self.amp = cfg.optim_wrapper.get('type') == 'AmpOptimWrapper'
        self.rows: list[dict] = []

    def begin(self, cores: int, here: int) -> None:
        """Print what is measured on what, and the table's head."""
        self.cores, self.here = cores, here
        self.processes, self.gpu = get_world_size(), torch.cuda.is_available()
        name = torch.cuda.get_device_name() if self.gpu else 'CPU'
        self.machine = dict(
            config=self.args.config,
            device=name,
            processes=self.processes,
            cores=cores,
            amp=self.amp,
            torch=torch.__version__,
            steps=self.args.steps,
            warmup=self.args.warmup,
            config_batch_size=self.config_batch,
        )
        self.say(
            f'{self.args.config}, {name}, {self.processes} '
            f'process{"es" * (self.processes > 1)}, '
            f'{count(cores, "core")}, '
            f'{"mixed" if self.amp else "full"} precision, torch '
            f'{torch.__version__}; {self.args.steps} steps after '
            f'{self.args.warmup}.\n'
        )
        if self.compiled:
            self.say(
                'The config compiles the train step. Its parts are those '
                'of the step without compilation.\n'
            )
        self.say(line(COLUMNS))
        self.say(line(['---'] * len(COLUMNS)))

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self.say(line(cells(row)))
        self.save()

    def end(self) -> None:
        """Print the best setting and what bounds it."""
        done = [row for row in self.rows if not row['out_of_memory']]
        if not done:
            raise SystemExit('Every setting ran out of memory. Give a smaller --batch-size.')
        best = max(done, key=lambda row: row['pairs_per_s'])
        found = diagnose(best, self.cores, self.here, self.processes)
        self.save(best=dict(best, **found))
        self.say(
            f'\nBest: {self.name(best)}: {number(best["pairs_per_s"])} '
            f'pairs/s, {number(best["step_ms"])} ms a step. An epoch of '
            f'{best["pairs_in_data_set"]:,} pairs takes '
            f'{duration(best["epoch_s"])}, start-up included.'
        )
        as_fast = [
            self.name(row)
            for row in done
            if row is not best and row['pairs_per_s'] > (1 - NOISE) * best['pairs_per_s']
        ]
        if as_fast:
            self.say(f'As fast, within {NOISE:.0%}: {"; ".join(as_fast)}.')
        for text in advise(best, done, self.cores, self.here, self.processes, self.amp, self.gpu):
            self.say(text)
        self.say_batch(best, done)

    def say_batch(self, best: dict, done: list[dict]) -> None:
        """Say where the batch in all is not the config's."""
        others = sorted({row['batch_size'] for row in done} - {self.config_batch})
        if not others:
            return
        own = self.config_batch * self.processes
        others = ', '.join(str(n * self.processes) for n in others)
        self.say(
            f'The config trains on {own} pairs a step in all; {others} '
            'in all changes what is trained: train with --auto-scale-lr, '
            'or look for the learning rate again.'
        )
        same = [row for row in done if row['batch_size'] == self.config_batch]
        if same and best not in same:
            best = max(same, key=lambda row: row['pairs_per_s'])
            self.say(
                f"Best with the config's batch: {self.name(best)}: "
                f'{number(best["pairs_per_s"])} pairs/s.'
            )

    def name(self, row: dict) -> str:
        each = ' in each process' if self.processes > 1 else ''
        root = f', {row["data_root"]}' if row['data_root'] else ''
        return f'batch {row["batch_size"]} and {count(row["num_workers"], "worker")}{each}{root}'

    def say(self, text: str) -> None:
        if is_main_process():
            print(text, flush=True)

    def save(self, **more) -> None:
        if self.args.json and is_main_process():
            Path(self.args.json).write_text(
                json.dumps(dict(self.machine, rows=self.rows, **more), indent=1)
            )


def batch_size_of(loader: dict) -> int:
    return loader['batch_size'] if 'batch_size' in loader else loader['batch_sampler']['batch_size']


def at_least(lowest: int) -> Callable[[str], int]:
    """A type of argparse."""

    def integer(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f'{text} is less than {lowest}')
        return int(text)

    return integer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file; configs/METHOD_DATASET.py need not be a file')
    parser.add_argument(
        '--batch-size',
        type=at_least(1),
        nargs='+',
        metavar='N',
        help="pairs of one process in a step (default: the config's)",
    )
    parser.add_argument(
        '--num-workers',
        type=at_least(0),
        nargs='+',
        metavar='N',
        help="workers of one process that read (default: the config's)",
    )
    parser.add_argument(
        '--data-root',
        nargs='+',
        metavar='DIR',
        help='copies of the data set, such as of '
        "tools/data/compress_videos.py (default: the config's)",
    )
    parser.add_argument('--steps', type=at_least(1), default=50)
    parser.add_argument(
        '--warmup',
        type=at_least(0),
        default=5,
        help='steps of each measurement that are not counted',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument('--json', metavar='FILE', help='write figures there')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, such as model.clip.pretrained=None to measure without weights',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of this run were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def prepare(args: argparse.Namespace) -> tuple[Config, list[dict]]:
    """Open and check the config.

    Returns:
        tuple: The config, and the settings to measure.

    Raises:
        FileNotFoundError: If the config or data are missing.
        ValueError: If nothing can be trained with it.
    """
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise FileNotFoundError(f'There is no folder for {args.json}.')
    cfg = open_config(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    missing = [
        key
        for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
        if not cfg.get(key)
    ]
    if missing:
        raise ValueError(f'{args.config} does not train: it lacks {", ".join(missing)}.')
    if args.amp:
        if get_device() == 'cpu':
            raise ValueError(
                "--amp needs a GPU: MMEngine's AmpOptimWrapper "
                'does not run on CPUs. Measure without it here.'
            )
        use_amp(cfg)
    loader = cfg.train_dataloader
    settings = [
        dict(batch_size=batch, num_workers=workers, data_root=root)
        for batch, root, workers in itertools.product(
            dict.fromkeys(args.batch_size or [batch_size_of(loader)]),
            dict.fromkeys(args.data_root or [dataset_of(loader).get('data_root')]),
            dict.fromkeys(args.num_workers or [loader.get('num_workers', 0)]),
        )
    ]
    for setting in settings:
        check_data(Config(dict(train_dataloader=loader_config(loader, **setting))), 'train')
    return cfg, settings


def leave_training_alone(cfg: Config) -> None:
    """Keep of a config what a step is made of: nothing is saved or logged."""
    for key in ('val', 'test'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{key}_{part}'] = None
    for key in ('param_scheduler', 'auto_scale_lr', 'visualizer', 'load_from', 'custom_hooks'):
        cfg[key] = None
    cfg.resume = False
    cfg.log_level = 'ERROR'
    # RuntimeInfoHook, which is left, reads the losses: it waits for the GPU
    # after each step, in training too.
    cfg.default_hooks = dict.fromkeys(
        ('timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
    )


def main() -> None:
    args = parse_args()
    try:
        cfg, settings = prepare(args)
        cfg.launcher = args.launcher
        use_gloo_without_gpu(cfg)
        pin_memory(cfg)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    report = Report(args, cfg)
    leave_training_alone(cfg)
    cfg.train_cfg = dict(
        type='vop.ProfileLoop', settings=settings, steps=args.steps, warmup=args.warmup
    )
    # Said in the report, of all processes together.
    warnings.filterwarnings('ignore', 'This DataLoader will create')
    warnings.filterwarnings('ignore', category=FutureWarning)
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        try:
            runner = build_runner(cfg)
        except (OSError, ValueError) as error:
            raise SystemExit(str(error)) from error
        loop = runner.train_loop
        loop.on_row = report.add
        report.begin(*loop.machine())
        try:
            runner.train()
        except VideoReadError as error:
            # Behind the trace of the worker that read it.
            raise SystemExit(str(error).strip().splitlines()[-1]) from error
        report.end()
    if is_distributed():  # else a process can abort at its exit
        dist.destroy_process_group()


if __name__ == '__main__':
    main()
