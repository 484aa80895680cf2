"""Train methods over learning rates and seeds, and hold them to the paper.

    python tools/reproduce.py msrvtt --methods vop vop_fp --lr-grid 1e-4 1e-2 5
    python tools/reproduce.py moving_shapes --seeds 0 1 2

Each run has a folder WORK_DIR/METHOD/lr=LR/seed=SEED. What is finished there
is kept, what was cut off is resumed, so the same command can be given again
at any time. Runs go side by side over the GPUs of this machine, or as Slurm
jobs. WORK_DIR then holds results.md, a table with the paper's numbers beside
ours; results.csv, every run; and results.png, R@1 against trained parameters.
"""

import argparse
import difflib
import fcntl
import itertools
import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device

from projects.vop.engine import check_data, open_config, use_amp
from projects.vop.engine.parameters import build_without_weights, count_as_paper, count_by_part
from projects.vop.models.clip import check_pretrained
from projects.vop.paper import TABLE_1

ROOT = Path(__file__).resolve().parents[1]


TRAINING = (
    'train_cfg',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
)


class Refused(Exception):
    """What was asked for cannot be; the message says why."""


class Diverged(Exception):
    """A run's weights are not numbers any more: its learning rate is bad."""


@dataclass(frozen=True)
class Run:
    """One training run of the grid.

    Attributes:
        method (str): Name of the method's config.
        setting (str): ``NAME=VALUE`` of the config's variable, or ''.
        lr (float, optional): Learning rate. None where nothing trains.
        seed (int): Random seed.
        folder (Path): Where it lives.
        cfg (Config): What it runs, complete.
        trained (int): Number of parameters that train.
        as_paper (int): The same as the paper counts it.
    """

    method: str
    setting: str
    lr: float | None
    seed: int
    folder: Path
    cfg: Config
    trained: int
    as_paper: int

    @property
    def name(self) -> str:
        """What messages call it."""
        words = [self.method, self.setting]
        if self.lr is not None:
            words += [f'lr={self.lr:g}', f'seed={self.seed}']
        return ' '.join(filter(None, words))


def config_path(method: str, dataset: str) -> Path:
    """The config of a method on a data set; it need not be a file."""
    configs = ROOT / 'configs'
    if (configs / dataset).is_dir():  # a data set with configs of its own
        path = configs / dataset / f'{method}.py'
        if not path.is_file():
            known = sorted(file.stem for file in path.parent.glob('[!_]*.py'))
            raise Refused(f'There is no method {method} for {dataset}, but {", ".join(known)}.')
        return path
    if (configs / 'ablations' / f'{method}_msrvtt.py').is_file():
        configs = configs / 'ablations'
    return configs / f'{method}_{dataset}.py'


def open_with(path: Path, setting: str) -> Config:
    """Open a config with ``NAME=VALUE`` in the environment, if not ''."""
    if not setting:
        return open_config(path)
    name, _, value = setting.partition('=')
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        return open_config(path)
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def open_settings(path: Path, settings: list[str]) -> dict[str, Config]:
    """Open a config with each of the settings; it must know them."""
    configs = {setting: open_with(path, setting) for setting in settings}
    for setting, cfg in configs.items():
        name = setting.split('=')[0]
        if name and name not in cfg.env_variables:
            raise Refused(f'{path} has no variable {name}.')
    return configs


def plan(args: argparse.Namespace) -> list[Run]:
    """All runs of the grid, each checked as far as it can be unstarted."""
    runs = []
    for method in args.methods:
        path = config_path(method, args.dataset)
        for setting, cfg in open_settings(path, args.vary).items():
            try:
                runs += runs_of(method, setting, cfg, args)
            except (KeyError, TypeError, ValueError) as error:
                raise Refused(f'{method} {setting}: {error}') from error
    return runs


def runs_of(method: str, setting: str, cfg: Config, args: argparse.Namespace) -> Iterator[Run]:
    """The runs of one config."""
    # A grid of Full would fill a disk; the last checkpoint is enough here.
    cfg.merge_from_dict({'default_hooks.checkpoint.max_keep_ckpts': 1})
    cfg.merge_from_dict(args.cfg_options)
    check_data(cfg, 'train', 'val', 'test')
    check_pretrained(cfg.model.clip)
    model = build_without_weights(cfg)
    counts = dict(
        trained=sum(part.trained for part in count_by_part(model).values()),
        as_paper=count_as_paper(model),
    )
    folder = args.work_dir / method / setting
    if not counts['trained']:
        for key in TRAINING:  # no setting of a run that only tests
            cfg.pop(key, None)
        yield Run(method, setting, None, 0, folder, cfg, **counts)
        return
    if args.amp:
        use_amp(cfg)
    rates = args.lr or [cfg.optim_wrapper.optimizer.lr]
    for lr, seed in itertools.product(rates, args.seeds):
        one = Config(cfg.to_dict())
        one.optim_wrapper.optimizer.lr = lr
        one.randomness = dict(cfg.get('randomness', {}), seed=seed)
        yield Run(method, setting, lr, seed, folder / f'lr={lr:g}' / f'seed={seed}', one, **counts)


def settings_file(run: Run) -> Path:
    """The config that a run was started with, beside its folder."""
    return run.folder.with_name(f'{run.folder.name}.py')


def check_settings(run: Run) -> None:
    """Refuse to mix runs of different settings in one folder."""
    file = settings_file(run)
    if not file.is_file():
        return
    theirs = Config.fromfile(file, import_custom_modules=False)
    if theirs.to_dict() != run.cfg.to_dict():
        lines = difflib.unified_diff(
            theirs.pretty_text.splitlines(), run.cfg.pretty_text.splitlines(), lineterm='', n=0
        )
        difference = [line for line in lines if not line.startswith(('---', '+++', '@@'))]
        raise Refused(
            f'{run.folder} holds a run with other settings:\n'
            + '\n'.join(difference[:8])
            + '\nChoose another --work-dir, or remove that folder and its '
            f'{file.name}.'
        )


def check_dataset(args: argparse.Namespace) -> None:
    """Refuse a folder that holds runs on another data set."""
    for path in args.work_dir.rglob('result.json'):
        other = json.loads(path.read_text())['dataset']
        if other != args.dataset:
            raise Refused(f'{args.work_dir} holds runs on {other}. Choose another --work-dir.')


@contextmanager
def locked(folder: Path) -> Iterator[TextIO | None]:
    """A lock on a folder, or None where another process holds it.

    The tools that are started get it too: it is held until the last of them
    has ended, whatever kills this program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def finished(run: Run) -> bool:
    """Whether a run is at its end."""
    return (run.folder / 'result.json').is_file()


def evaluations(folder: Path) -> list[dict]:
    """What every evaluation in a folder logged, oldest first."""
    files = sorted(
        set(folder.rglob('*.json')) - {folder / 'result.json'},
        key=lambda file: file.stat().st_mtime,
    )
    records = []
    for file in files:
        for line in file.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut off while it was written
                continue
            if 't2v/R@1' in record:
                records.append(record)
    return records


def last_epoch(folder: Path, epochs: int) -> dict | None:
    """What the evaluation behind the last epoch logged, if it ran."""
    return next(
        (record for record in reversed(evaluations(folder)) if record.get('step') == epochs), None
    )


def execute(run: Run, args: argparse.Namespace, env: dict, lock: TextIO) -> dict:
    """Bring a run to its end, from wherever it stands; give its result."""
    settings = settings_file(run)
    if not settings.is_file():
        write(settings, run.cfg.pretty_text)

    def call(tool: str, *arguments: str) -> None:
        log = run.folder / 'log.txt'
        with log.open('a') as file:
            code = subprocess.run(
                [
                    sys.executable,
                    ROOT / 'tools' / tool,
                    settings,
                    *arguments,
                    '--work-dir',
                    run.folder,
                ],
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            ).returncode
        if code:
            tail = '\n'.join(log.read_text().splitlines()[-8:])
            # What RetrievalMetric says of embeddings that are NaN.
            raise Diverged if 'is not finite' in tail else RuntimeError(tail)

    try:
        metrics = train_and_test(run, call)
    except Diverged:
        metrics = {}
    result = dict(
        dataset=args.dataset,
        method=run.method,
        setting=run.setting,
        lr=run.lr,
        seed=run.seed,
        trained=run.trained,
        as_paper=run.as_paper,
        **{key: value for key, value in metrics.items() if '2' in key},
    )
    write(run.folder / 'result.json', json.dumps(result, indent=1))
    return result


def train_and_test(run: Run, call: Callable[..., None]) -> dict:
    """The metrics of a run's last epoch on the test split."""
    if run.lr is None:
        call('test.py')
        return evaluations(run.folder)[-1]
    epochs = run.cfg.train_cfg.max_epochs
    last = f'epoch_{epochs}.pth'
    checkpoint = run.folder / 'last_checkpoint'
    if not (checkpoint.is_file() and checkpoint.read_text().endswith(last)):
        call('train.py', '--resume')
    metrics = last_epoch(run.folder, epochs)
    if metrics is None or run.cfg.val_dataloader != run.cfg.test_dataloader:
        call('test.py', run.folder / last)
        metrics = evaluations(run.folder)[-1]
    return metrics


def write(path: Path, text: str) -> None:
    """Write a file that is there whole, or not at all."""
    part = path.with_name(f'{path.name}.part')
    part.write_text(text)
    os.replace(part, path)


def environment() -> dict[str, str]:
    """This one, with the checkout on Python's path."""
    path = filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))
    return dict(os.environ, PYTHONPATH=os.pathsep.join(path))


def environments(jobs: int | None) -> list[dict[str, str]]:
    """One environment for each run that goes at a time.

    Each has a GPU where there are some, else its share of the cores.
    """
    base = environment()
    gpus = [str(i) for i in range(torch.cuda.device_count())]
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if gpus and visible:
        gpus = visible.split(',')[: len(gpus)]
    jobs = jobs or len(gpus) or 1
    if gpus:
        return [dict(base, CUDA_VISIBLE_DEVICES=gpus[i % len(gpus)]) for i in range(jobs)]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    base.setdefault('OMP_NUM_THREADS', str(threads))
    return [base] * jobs


def run_here(runs: Sequence[Run], args: argparse.Namespace) -> list[str]:
    """Execute runs on this machine; give the names of those that failed."""
    slots = environments(args.jobs)
    free: queue.SimpleQueue = queue.SimpleQueue()
    for env in slots:
        free.put(env)
    failed = []

    def one(number: int, run: Run) -> None:
        label = f'[{number}/{len(runs)}] {run.name}'
        env, start = free.get(), time.time()
        try:
            with locked(run.folder) as lock:
                if lock is None:
                    print(f'{label}: another process is at it', flush=True)
                    return
                if finished(run):  # by another process, since
                    return
                check_settings(run)
                result = execute(run, args, env, lock)
            found = f't2v R@1 {result["t2v/R@1"]:.1f}' if 't2v/R@1' in result else 'diverged'
            print(f'{label}: {found} ({time.time() - start:.0f} s)', flush=True)
        except Exception as error:
            failed.append(run.name)
            print(f'{label} failed; its output is in {run.folder}/log.txt:\n{error}', flush=True)
        finally:
            free.put(env)

    pool = ThreadPoolExecutor(len(slots))
    try:
        for future in [pool.submit(one, *item) for item in enumerate(runs, start=1)]:
            future.result()
    except KeyboardInterrupt:
        pool.shutdown(cancel_futures=True)
        raise SystemExit('Interrupted; the same command goes on from here.')
    return failed


def submit(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Give each run to Slurm as a job of this very program."""
    if shutil.which('sbatch') is None:
        raise SystemExit(
            'There is no sbatch here. Give this command where jobs are submitted to Slurm.'
        )
    options = shlex.split(os.environ.get('SBATCH_ARGS', ''))
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            '-u',
            str(ROOT / 'tools/reproduce.py'),
            args.dataset,
            '--methods',
            run.method,
            '--work-dir',
            str(args.work_dir),
            '--no-report',
            '--jobs',
            '1',
        ]
        if run.lr is not None:
            command += ['--lr', repr(run.lr), '--seeds', str(run.seed)]
        if run.setting:
            command += ['--vary', run.setting]
        if args.amp:
            command.append('--amp')
        if args.cfg_options:
            command.append('--cfg-options')
            command += [
                f'{key}={value}'.replace(' ', '') for key, value in args.cfg_options.items()
            ]
        subprocess.run(
            [
                'sbatch',
                f'--partition={args.slurm}',
                f'--job-name={run.name}',
                '--gres=gpu:1',
                '--cpus-per-task=8',
                f'--chdir={Path.cwd()}',
                f'--output={run.folder}/slurm.txt',
                *options,
                '--wrap',
                shlex.join(command),
            ],
            check=True,
            env=environment(),
        )
    print(
        f'{len(runs)} jobs were given to Slurm. When they are done, the '
        'same command without --slurm collects what they found.'
    )


def log_grid(text: Sequence[str]) -> list[float]:
    """MIN MAX N of the command line as N rates, evenly spaced in log."""
    low, high, count = float(text[0]), float(text[1]), int(text[2])
    if not 0 < low <= high or count < 2:
        raise Refused(
            f'--lr-grid takes MIN MAX N with 0 < MIN <= MAX and N at least 2, got {" ".join(text)}.'
        )
    step = (high / low) ** (1 / (count - 1))
    # Few digits, for folders that can be read.
    return [float(f'{low * step**i:.3g}') for i in range(count)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'dataset', help='msrvtt, moving_shapes, or one of configs/_base_/datasets, such as didemo'
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        default=list(TABLE_1),
        metavar='METHOD',
        help='configs by the name before _msrvtt, those of configs/ablations '
        f'too (default: {" ".join(TABLE_1)})',
    )
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        '--lr',
        type=float,
        nargs='+',
        default=[],
        help="learning rates (default: the one of each method's config)",
    )
    rates.add_argument(
        '--lr-grid',
        nargs=3,
        metavar=('MIN', 'MAX', 'N'),
        help='N learning rates, evenly spaced in log',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument(
        '--vary',
        default='',
        metavar='NAME=V1,V2,...',
        help='values of a variable of an ablation, such as DEPTH=1-6,7-12',
    )
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/reproduce/DATASET')
    parser.add_argument(
        '--jobs', type=int, help='runs that go at a time (default: one a GPU; one on CPUs)'
    )
    parser.add_argument(
        '--slurm',
        metavar='PARTITION',
        help='submit each run as a job with one GPU; SBATCH_ARGS holds further arguments of sbatch',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument('--no-report', action='store_true', help='only run')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        default={},
        help='change the config of every run',
    )
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/reproduce', args.dataset)
    args.work_dir = args.work_dir.resolve()
    if args.lr_grid:
        args.lr = log_grid(args.lr_grid)
    if args.jobs is not None and args.jobs < 1:
        parser.error('--jobs must be at least 1')
    if args.amp and not args.slurm and get_device() == 'cpu':
        parser.error('--amp needs a GPU')
    name, _, values = args.vary.partition('=')
    args.vary = [f'{name}={value}' if name else '' for value in values.split(',')]
    return args


def main() -> None:
    try:
        args = parse_args()
        runs = plan(args)
        check_dataset(args)
        for run in runs:
            check_settings(run)
    except (Refused, FileNotFoundError, ValueError) as error:
        raise SystemExit(f'{error}\nNothing was run.') from error
    todo = [run for run in runs if not finished(run)]
    print(f'{len(runs)} runs, of which {len(runs) - len(todo)} are done.', flush=True)
    if args.slurm:
        submit(todo, args)
        return
    failed = run_here(todo, args)
    if not args.no_report:
        subprocess.run(
            [sys.executable, ROOT / 'tools/analysis/summarize_runs.py', args.work_dir],
            env=environment(),
        )
    if failed:
        raise SystemExit(
            f'{len(failed)} runs failed: {", ".join(failed)}. The same command tries them again.'
        )


if __name__ == '__main__':
    main()
