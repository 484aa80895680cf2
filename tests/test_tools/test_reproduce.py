"""tools/reproduce.py: grids of runs that are planned, run, cut off and resumed."""

import csv
import json
import os
import pickle
import runpy
from pathlib import Path

import open_clip
import portalocker
import pytest
import torch

from projects.vop.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

# Ends the process as a power cut would.
KILL = """
import os, signal
from mmengine.hooks import IterTimerHook
from mmengine.registry import HOOKS

@HOOKS.register_module(name='IterTimerHook', force=True)
class KillHook(IterTimerHook):
    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        if runner.iter == int(os.environ.get('KILL_AT', -1)):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope='module')
def options(tiny_clip, write_video, tmp_path_factory):
    """What makes a run take seconds; it is tested on another split than it is watched on."""
    folder = tmp_path_factory.mktemp('reproduce')
    clip = open_clip.CustomTextCLIP(**json.loads(Path(tiny_clip).read_text()))
    torch.save(clip.state_dict(), folder / 'clip.pt')
    for number in range(5):  # square, and of several sizes, so that the videos differ
        write_video(folder / f'{number}.mp4', 20, *2 * [64 + 32 * number])
    for split, videos in dict(train=5, val=2, test=5).items():
        captions = {f'{i}.mp4': [f'a caption of {i}', f'of {i} another'] for i in range(videos)}
        (folder / f'{split}.json').write_text(json.dumps(captions))
    (folder / 'kill_hook.py').write_text(KILL)
    data = {'dataset.data_root': folder, 'dataset.data_prefix.video': '.'}
    data |= dict(num_workers=0, persistent_workers=False)
    data = {f'{s}_dataloader.{k}': v for s in ('train', 'val', 'test') for k, v in data.items()}
    clip = {'model.clip.name': tiny_clip, 'model.clip.pretrained': folder / 'clip.pt'}
    schedule = {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1}
    schedule |= {'default_hooks.checkpoint.interval': 1, 'train_dataloader.batch_size': 4}
    hook = {'custom_imports.imports': "['projects.vop','kill_hook']"}
    return {**clip, **data, 'val_dataloader.dataset.ann_file': 'val.json', **schedule, **hook}


@pytest.fixture
def call(run_tool, capsys, monkeypatch):
    """Runs the tool; gives its exit status or message, and what it printed."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        try:
            run_tool('tools/reproduce.py', *arguments)
        except (SystemExit, UserError, FileNotFoundError) as error:
            return getattr(error, 'code', str(error)), ''.join(capsys.readouterr())
        return None, capsys.readouterr().out

    return run


@pytest.fixture
def reproduce(call, options, tmp_path, monkeypatch):
    """Runs the tool with these options and some more."""
    folder = options['train_dataloader.dataset.data_root']
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{folder}')
    monkeypatch.syspath_prepend(folder)

    def run(*arguments, more={}):
        pairs = [f'{key}={value}' for key, value in {**options, **more}.items()]
        return call('moving_shapes', '--work-dir', tmp_path, *arguments, '--cfg-options', *pairs)

    return run


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """Stands in for Slurm: ``sbatch`` starts a job and keeps its script in ``job.sh``."""
    folder = tmp_path_factory.mktemp('bin')
    run = f'cp "$1" {folder}/job.sh\nSLURM_JOB_ID=$$ sh {folder}/job.sh > /dev/null 2>&1 &'
    sbatch = f'{run}\necho "Submitted batch job $$"'
    for name, text in dict(srun='', sacct='echo "JobID|State"', sbatch=sbatch).items():
        (folder / name).write_text(f'#!/bin/sh\n{text}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    return folder


@pytest.mark.slow
def test_a_grid_is_cut_off_resumed_and_summarized(reproduce, slurm, tmp_path, monkeypatch):
    def rows():
        with (tmp_path / 'results.csv').open() as file:
            return {(row['method'], row['lr']): row for row in csv.DictReader(file)}

    grid = ['--methods', 'zero_shot', 'vop', '--lr', '1e-2', '1e30', '--jobs', '3']
    # 3 steps an epoch: killed in the second, which lr=1e30 does not reach.
    monkeypatch.setenv('KILL_AT', '4')
    code, output = reproduce(*grid)
    assert '3 runs, of which 0 are done' in output
    assert code.startswith('1 runs failed: vop lr=0.01 seed=0'), output
    assert '[1/3] zero_shot: t2v R@1' in output
    assert '[3/3] vop lr=1e+30 seed=0: diverged' in output
    run = tmp_path / 'vop/lr=0.01/seed=0'
    assert str(run / 'log.txt') in output
    assert set(rows()) == {('zero_shot', ''), ('vop', '1e+30')}
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('result.json')}

    # The rest is done by Slurm.
    monkeypatch.delenv('KILL_AT')
    code, output = reproduce(*grid, '--slurm', 'gpus', '--slurm-args', 'time=1:00:00', 'mem=8G')
    assert code is None, output
    assert '3 runs, of which 2 are done' in output and '[1/1] vop lr=0.01' in output
    for option in ('--partition=gpus', '--gres=gpu:1', '--time=1:00:00', '--mem=8G'):
        assert f'#SBATCH {option}\n' in (slurm / 'job.sh').read_text()
    assert 'resumed epoch: 1' in (run / 'log.txt').read_text()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    row = rows()['vop', '0.01']
    assert rows()['vop', '1e+30']['t2v/R@1'] == ''
    # Numbers of the test split, which has 5 videos; 2 were watched.
    tested = json.loads(next(run.glob('2*/2*.json')).read_text())
    assert float(row['t2v/MnR']) == tested['t2v/MnR'] > 2
    assert row['trained'] == str(3 * 8 * (64 + 48))  # layers, tokens, widths of the tiny CLIP
    assert (tmp_path / 'results.png').is_file()
    assert '| VoP ' in (tmp_path / 'results.md').read_text()

    # Other settings are refused, unless they do not matter, as to what only tests.
    more = {'optim_wrapper.optimizer.weight_decay': 0.5}
    code, _ = reproduce(*grid, more=more)
    assert str(run) in code and 'weight_decay=0.5' in code
    assert '1 runs, of which 1 are done' in reproduce(*grid[:2], '--dry-run', more=more)[1]


@pytest.mark.slow
def test_a_run_of_another_process_is_left_alone(reproduce, slurm, tmp_path):
    (tmp_path / 'zero_shot').mkdir()
    with portalocker.Lock(tmp_path / 'zero_shot/lock'):
        code, output = reproduce('--methods', 'zero_shot', '--no-report')
    assert '1 runs failed: zero_shot' in code and 'another process is at it' in output
    # A job that is still in Slurm's queue is waited for; this one ends after a look at it.
    (tmp_path / 'zero_shot/7_submitted.pkl').touch()
    (slurm / 'result').write_bytes(pickle.dumps(('success', 'as the job says')))
    end = f'cp {slurm}/result {tmp_path}/zero_shot/7_0_result.pkl'
    (slurm / 'sacct').write_text(f'#!/bin/sh\necho "JobID|State\n7|RUNNING"\n{end}\n')
    _, output = reproduce('--methods', 'zero_shot', '--slurm', 'gpus', '--no-report')
    assert '[1/1] zero_shot: as the job says' in output and not (slurm / 'job.sh').exists()


@pytest.mark.parametrize(
    'arguments, more, name',
    [
        ([], {'model.visual.prompts.0.layers': 'video'}, 'layers 4 to 3'),
        ([], {'model.clip.pretrained': 'nowhere.pt'}, 'nowhere.pt'),
        (['zero_shot'], {'model.text.prompts.0.length': 16}, 'zero_shot'),
        ([], {'test_dataloader.dataset.ann_file': 'none.json'}, 'none.json'),
        (['--slurm', 'gpus'], {}, 'srun'),
    ],
)
def test_what_cannot_run_is_refused(reproduce, tmp_path, monkeypatch, arguments, more, name):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert name in reproduce('--methods', 'vop', *arguments, more=more)[0]
    assert not [*tmp_path.rglob('log.txt')]


@pytest.mark.parametrize(
    'command, name',
    [
        ('moving_shapes --methods vop_q', 'vop_q for moving_shapes, but adapter_attn, '),
        ('cats --methods vop', 'cats'),
        ('didemo --methods vop', 'tools/data/didemo.py'),
        ('moving_shapes --lr-grid 1 .1 3', '--lr-grid'),
        ('moving_shapes --jobs 0', '--jobs'),
        ('msrvtt --methods vop_length --vary DEPTH=1-2', 'DEPTH'),
        # No quarrel with a default.
        ('msrvtt --methods vop_length --vary LENGTH=8', 'tools/data/msrvtt.py'),
    ],
)
def test_bad_input_is_refused(call, tmp_path, command, name):
    code, output = call(*command.split(), '--work-dir', tmp_path)
    assert code is not None and name in f'{code}{output}' and not list(tmp_path.iterdir())


def test_a_grid_is_planned(reproduce, tmp_path):
    grid = ['--lr-grid', '1e-4', '1e-2', '3', '--seeds', '0', '1']
    _, output = reproduce('--methods', 'zero_shot', 'vop', *grid, '--dry-run')
    rates = [f'vop lr={lr} seed={seed}' for lr in ('0.0001', '0.001', '0.01') for seed in (0, 1)]
    assert output.splitlines() == ['7 runs, of which 0 are done.', 'zero_shot', *rates]
    (tmp_path / 'result.json').write_text('{"dataset": "didemo"}')
    assert 'didemo' in reproduce('--methods', 'zero_shot', '--dry-run')[0]


def test_runs_are_spread_over_gpus_or_cores(monkeypatch):
    environments = runpy.run_path(str(ROOT / 'tools/reproduce.py'))['environments']
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    for name in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES'):
        monkeypatch.delenv(name, raising=False)

    def values(gpus, jobs=None):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        return [value for variables in environments(jobs) for value in variables.values()]

    assert [values(0), values(0, 2), values(0, 16)] == [['8'], ['4', '4'], ['1'] * 16]
    assert [values(3, 2), values(2, 3)] == [['0', '1'], ['0', '1', '0']]
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,7')
    assert values(3) == ['4', '5', '7']
