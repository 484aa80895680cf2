"""Train methods over learning rates and seeds, and compare them with the paper.

    python tools/reproduce.py msrvtt --methods vop vop_fp --lr-grid 1e-4 1e-2 5
    python tools/reproduce.py moving_shapes --seeds 0 1 2

Each run has a folder WORK_DIR/METHOD/lr=LR/seed=SEED. What is finished there
is kept, what was cut off is resumed, so the same command can be given again
at any time. Runs go side by side over the GPUs of this machine, or as Slurm
jobs. WORK_DIR then holds results.md, a table with the paper's numbers next to
ours; results.csv, every run; and results.png, R@1 against trained parameters.
"""

import argparse
import difflib
import itertools
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import portalocker
import submitit
import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from submitit.core.utils import UncompletedJobError, environment_variables
from tqdm import tqdm

from projects.vop.engine import check_data, check_launcher, merge_options, open_config, use_amp
from projects.vop.engine.parameters import build_without_weights, count_as_paper, count_by_part
from projects.vop.errors import NotFiniteError, UserError, exit_on_user_error
from projects.vop.fileio import ROOT, available_cores, read_evaluations, read_log, write_file
from projects.vop.models.clip import check_pretrained
from projects.vop.paper import TABLE_1

DIVERGED = NotFiniteError.exit_code
TRAINING = (
    *('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'),
    *('val_cfg', 'val_dataloader', 'val_evaluator'),
)


@dataclass(frozen=True)
class Run:
    """One run of the grid. Its config is next to its folder, as FOLDER.py."""

    name: str
    folder: Path
    cfg: Config
    facts: dict  # data set, method, setting, learning rate (None without training), seed, ...

    @property
    def finished(self) -> bool:
        """Whether it has its result."""
        return (self.folder / 'result.json').is_file()


def config_path(method: str, dataset: str) -> Path:
    """The config of a method on a data set; it need not be a file."""
    own = ROOT / 'configs' / dataset
    if own.is_dir():  # a data set with configs of its own
        known = sorted(file.stem for file in own.glob('[!_]*.py'))
        if method not in known:
            raise UserError(f'There is no method {method} for {dataset}, but {", ".join(known)}.')
        return own / f'{method}.py'
    # Found here or in the package.
    is_ablation = (ROOT / f'configs/ablations/{method}_msrvtt.py').is_file()
    return Path('configs', 'ablations' if is_ablation else '', f'{method}_{dataset}.py')


def plan(args: argparse.Namespace) -> list[Run]:
    """All runs of the grid, each checked as far as it can be before it starts."""
    check_launcher('none')  # each run is one process
    runs = []
    for method, setting in itertools.product(args.methods, args.vary):
        path = config_path(method, args.dataset)
        name, _, value = setting.partition('=')
        with environment_variables(**{name: value} if name else {}):
            cfg = open_config(path)
        if name and name not in cfg.env_variables:
            raise UserError(f'{path} has no variable {name}.')
        try:
            runs += runs_of(method, setting, cfg, args)
        except UserError as error:
            raise UserError(f'{method} {setting}: {error}') from error
    for run in runs:
        check_settings(run)
    for path in args.work_dir.rglob('result.json'):
        other = json.loads(path.read_text())['dataset']
        if other != args.dataset:
            raise UserError(f'{args.work_dir} holds runs on {other}. Choose another --work-dir.')
    return runs


def runs_of(method: str, setting: str, cfg: Config, args: argparse.Namespace) -> Iterator[Run]:
    """The runs of one config."""
    # A grid of Full would fill a disk; the last checkpoint is enough here.
    cfg.merge_from_dict({'default_hooks.checkpoint.max_keep_ckpts': 1})
    merge_options(cfg, args.cfg_options)
    check_data(cfg, 'train', 'val', 'test')
    check_pretrained(cfg.model.clip)
    model = build_without_weights(cfg)
    trained = sum(part.trained for part in count_by_part(model).values())
    grid = [(None, 0)]
    if trained:
        if args.amp:
            use_amp(cfg)
        grid = itertools.product(args.lr or [cfg.optim_wrapper.optimizer.lr], args.seeds)
    else:
        for key in TRAINING:  # no setting of a run that only tests
            cfg.pop(key, None)
    for lr, seed in grid:
        one, parts = Config(cfg.to_dict()), [method, setting]
        if trained:
            one.optim_wrapper.optimizer.lr = lr
            one.randomness = dict(cfg.get('randomness', {}), seed=seed)
            parts += [f'lr={lr:g}', f'seed={seed}']
        facts = dict(dataset=args.dataset, method=method, setting=setting, lr=lr, seed=seed)
        facts |= dict(trained=trained, as_paper=count_as_paper(model))
        facts |= dict(sees_order=getattr(model.visual, 'sees_order', None))
        yield Run(' '.join(filter(None, parts)), args.work_dir.joinpath(*parts), one, facts)


def check_settings(run: Run) -> None:
    """Refuse to mix runs of different settings in one folder."""
    file = Path(f'{run.folder}.py')
    theirs = Config.fromfile(file, import_custom_modules=False) if file.is_file() else run.cfg
    if theirs.to_dict() != run.cfg.to_dict():
        lines = difflib.ndiff(*(cfg.pretty_text.splitlines() for cfg in (theirs, run.cfg)))
        changes = '\n'.join([line for line in lines if line.startswith(('- ', '+ '))][:8])
        raise UserError(
            f'{run.folder} holds a run with other settings:\n{changes}\n'
            f'Choose another --work-dir, or remove that folder and its {file.name}.'
        )


def train_and_test(folder: Path, epochs: int | None, retest: bool, call: Callable) -> dict:
    """Do what is not done yet; give the metrics of the last epoch on the test split."""
    checkpoints = []
    if epochs is not None:
        checkpoints = [folder / f'epoch_{epochs}.pth']
        call('train.py', '--resume')  # which knows what is left to do
        logged = [record for record in read_evaluations(folder) if record.get('step') == epochs]
        if logged and not retest:
            return logged[-1]
    call('test.py', *checkpoints)
    return read_evaluations(folder)[-1]


def complete(folder: Path, facts: dict, epochs: int | None, retest: bool, variables: dict) -> str:
    """Bring a run to its end, from wherever it is; say how it went. A job executes this."""
    log, result = folder / 'log.txt', folder / 'result.json'
    environment = {**os.environ, **variables}

    def call(tool: str, *arguments: str | Path) -> None:
        command = [sys.executable, ROOT / 'tools' / tool, f'{folder}.py', *arguments]
        with log.open('a') as output:
            subprocess.run(
                [*command, '--work-dir', folder],
                **dict(env=environment, stdout=output, stderr=output, check=True),
                pass_fds=[lock.fileno()],  # which the tool holds, too, whatever kills this job
            )

    try:
        with portalocker.Lock(folder / 'lock', fail_when_locked=True) as lock:
            if result.is_file():
                return 'another process has done it'
            try:
                metrics = train_and_test(folder, epochs, retest, call)
            except subprocess.CalledProcessError as error:
                if error.returncode != DIVERGED:
                    tail = '\n'.join(log.read_text().splitlines()[-8:])
                    return f'failed:\n{tail}\nAll of its output is in {log}'
                metrics = {}
            # Here, as a job that is unpickled would else import torch first.
            from projects.vop.fileio import write_file

            facts |= {key: value for key, value in metrics.items() if '2' in key}
            write_file(result, json.dumps(facts, indent=1))
            return f't2v R@1 {metrics["t2v/R@1"]:.1f}' if metrics else 'diverged'
    except portalocker.AlreadyLocked:
        return 'another process is at it'


def environments(jobs: int | None) -> list[dict[str, str]]:
    """Variables for each run that goes at a time: its GPU, or its share of the cores."""
    count = torch.cuda.device_count()
    jobs = jobs or count or 1
    if count:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(count)))
        gpus = visible.split(',')
        return [{'CUDA_VISIBLE_DEVICES': gpus[i % count]} for i in range(jobs)]
    threads = max(1, available_cores() // jobs)
    return [{'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', str(threads))}] * jobs


def submit(run: Run, args: argparse.Namespace, variables: dict) -> submitit.Job:
    """Start a run as a job, unless Slurm still has one of it."""
    check_settings(run)
    settings = Path(f'{run.folder}.py')
    if not settings.is_file():
        write_file(settings, run.cfg.pretty_text)
    epochs = None if run.facts['lr'] is None else run.cfg.train_cfg.max_epochs
    retest = run.cfg.get('val_dataloader') != run.cfg.test_dataloader
    if args.slurm:
        cls, parameters = submitit.SlurmExecutor, dict(gres='gpu:1', cpus_per_task=8)
        # Without time, it is the partition's. A step of srun would get one core alone.
        parameters |= dict(time=None, use_srun=False, additional_parameters=args.slurm_args)
        parameters |= dict(job_name=run.name, partition=args.slurm)
    else:
        cls, parameters = submitit.LocalExecutor, dict(timeout_min=10**7)
    for path in run.folder.glob('*_submitted.pkl'):
        job = cls.job_class(run.folder, path.name.removesuffix('_submitted.pkl'))
        if not job.done(force_check=True):
            return job
    try:
        executor = cls(run.folder)
        executor.update_parameters(**parameters)
        return executor.submit(complete, run.folder, run.facts, epochs, retest, variables)
    except RuntimeError as error:  # there is no Slurm, or it refuses the job
        raise UserError(f'{run.name} cannot be submitted: {error}') from error


@dataclass
class Progress:
    """Says how far a run is, ten times at most."""

    label: str
    run: Run
    start: float = field(default_factory=time.time)  # when it was submitted
    first: tuple[int, float] | None = None  # an epoch, and when it was seen
    said: int = 0

    def update(self) -> None:
        """Say it, if it is a tenth further than last time."""
        if self.run.facts['lr'] is None:
            return
        epochs, now = self.run.cfg.train_cfg.get('max_epochs', 0), time.time()
        # A run that resumes goes back to its checkpoint, before what was logged last.
        epoch = read_log(self.run.folder, self.start)[-1:]
        epoch = epoch[0].get('epoch', 0) if epoch else 0
        if self.first is None and epoch:
            self.first, self.said = (epoch, now), epoch
        if self.first and epoch < epochs and 10 * (epoch - self.said) >= epochs:
            self.said = epoch
            left = (now - self.first[1]) * (epochs - epoch) / (epoch - self.first[0])
            time_left = tqdm.format_interval(round(left))
            print(f'{self.label}: epoch {epoch} of {epochs}, {time_left} left', flush=True)


def run_all(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Run all, as many at a time as there are slots, each the next when one ends."""
    slots = [{}] * (args.jobs or len(runs)) if args.slurm else environments(args.jobs)
    waiting, running = list(enumerate(runs, start=1)), {}
    next_look = time.time()
    try:
        while waiting or running:
            while waiting and slots:
                (number, run), variables = waiting.pop(0), slots.pop(0)
                progress = Progress(f'[{number}/{len(runs)}] {run.name}', run)
                running[submit(run, args, variables)] = progress, variables
                print(f'{progress.label}: started', flush=True)
            for job in [job for job in running if job.done()]:
                progress, variables = running.pop(job)
                slots.append(variables)
                try:
                    outcome = job.result()
                except UncompletedJobError as error:  # the job was killed, or has a bug
                    outcome = f'failed: {error}'
                seconds = time.time() - progress.start
                print(f'{progress.label}: {outcome} ({seconds:.0f} s)', flush=True)
            for progress, _ in running.values() if time.time() >= next_look else ():
                progress.update()
                next_look = time.time() + 5
            time.sleep(0.5)
    except KeyboardInterrupt:
        print('Interrupted; the same command resumes.', file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        for job in [] if args.slurm else running:  # Slurm keeps its jobs
            job.cancel()


def parse_args() -> argparse.Namespace:
    """The command line, with the grid and the settings spelt out."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add('dataset', help='msrvtt, moving_shapes, or one of configs/_base_/datasets, such as didemo')
    methods = 'configs by the name before _msrvtt, those of configs/ablations, too (default: all '
    methods += 'of Table 1)'
    add('--methods', nargs='+', default=list(TABLE_1), metavar='METHOD', help=methods)
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument('--lr', type=float, nargs='+', default=[], help='default: of each config')
    grid = dict(type=float, nargs=3, metavar=('MIN', 'MAX', 'N'))
    rates.add_argument('--lr-grid', **grid, help='N learning rates, evenly spaced in log')
    add('--seeds', type=int, nargs='+', default=[0])
    vary = 'values of a variable of an ablation, such as DEPTH=1-6,7-12'
    add('--vary', default='', metavar='NAME=V1,V2,...', help=vary)
    add('--work-dir', type=Path, help='default: work_dirs/reproduce/DATASET')
    jobs = 'runs that go at a time (default: one per GPU; one on CPUs; all with Slurm)'
    add('--jobs', type=int, help=jobs)
    add('--slurm', metavar='PARTITION', help='submit each run as a job with one GPU')
    pairs = dict(nargs='+', metavar='KEY=VALUE')
    options = 'options of sbatch, such as time=8:00:00 mem=32G'
    add('--slurm-args', **pairs, default=[], help=options)
    add('--amp', action='store_true', help='mixed precision (needs a GPU)')
    add('--dry-run', action='store_true', help='only check and list the runs')
    add('--no-report', action='store_true', help='only run')
    options = 'change the config of every run'
    add('--cfg-options', **pairs, action=DictAction, default={}, help=options)
    args = parser.parse_args()
    args.work_dir = (args.work_dir or Path('work_dirs/reproduce', args.dataset)).resolve()
    if args.lr_grid:
        low, high, count = args.lr_grid
        if not 0 < low <= high or count not in range(2, 1000):
            parser.error('--lr-grid takes MIN MAX N with 0 < MIN <= MAX and N at least 2')
        step = (high / low) ** (1 / (count - 1))
        # Few digits, for folders that can be read.
        args.lr = [float(f'{low * step**i:.3g}') for i in range(int(count))]
    if args.jobs is not None and args.jobs < 1:
        parser.error('--jobs must be at least 1')
    if args.amp and not args.slurm and get_device() == 'cpu':
        parser.error('--amp needs a GPU')
    options = (option.partition('=') for option in args.slurm_args)
    args.slurm_args = {key.replace('-', '_'): value or True for key, _, value in options}
    name, _, values = args.vary.partition('=')
    args.vary = [f'{name}={value}' if name else '' for value in values.split(',')]
    return args


def main() -> None:
    """Plan, run, and summarize."""
    args = parse_args()
    runs = plan(args)
    todo = [run for run in runs if not run.finished]
    print(f'{len(runs)} runs, of which {len(runs) - len(todo)} are done.', flush=True)
    if args.dry_run:
        print(*(run.name for run in todo), sep='\n')
        return
    run_all(todo, args)
    if not args.no_report:
        # Here, as it loads what draws plots.
        summary = runpy.run_path(str(ROOT / 'tools/analysis/summarize_runs.py'))
        try:
            summary['summarize'](args.work_dir)
        except UserError as error:  # no run is finished, or all diverged
            print(error)
    if failed := [run.name for run in todo if not run.finished]:
        names = ', '.join(failed)
        print(f'{len(failed)} runs failed: {names}. The same command tries them again.')
        raise SystemExit(1)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
