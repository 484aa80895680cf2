"""tools/reproduce.py: grids of runs that are planned, run, cut off and resumed."""

import csv
import json
import os
import pickle
import runpy
import sys

import portalocker
import pytest
import torch
from helpers import ROOT, save_clip
from mmengine.config import Config

from projects.vop.errors import UserError

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
    weights = save_clip(tiny_clip, folder / 'clip.pt')
    for number in range(5):  # square, and of several sizes, so that the videos differ
        write_video(folder / f'{number}.mp4', 20, *2 * [64 + 32 * number])
    for split, videos in dict(train=5, val=2, test=5).items():
        captions = {f'{i}.mp4': [f'a caption of {i}', f'of {i} another'] for i in range(videos)}
        (folder / f'{split}.json').write_text(json.dumps(captions))
    (folder / 'kill_hook.py').write_text(KILL)
    data = {'dataset.data_root': folder, 'dataset.data_prefix.video': '.'}
    data |= dict(num_workers=0, persistent_workers=False)
    data = {f'{s}_dataloader.{k}': v for s in ('train', 'val', 'test') for k, v in data.items()}
    clip = {'model.clip.name': tiny_clip, 'model.clip.pretrained': weights}
    schedule = {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1}
    schedule |= {'default_hooks.checkpoint.interval': 1, 'train_dataloader.batch_size': 4}
    hook = {'custom_imports.imports': "['projects.vop','kill_hook']"}
    return {**clip, **data, 'val_dataloader.dataset.ann_file': 'val.json', **schedule, **hook}


@pytest.fixture
def reproduce(run_tool, forked_python, capsys, options, tmp_path, monkeypatch):
    """Runs the tool, by default on a small data set; gives what it ends with and prints."""
    monkeypatch.setattr(sys, 'executable', forked_python)
    folder = options['train_dataloader.dataset.data_root']
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{folder}')
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(ROOT)

    def run(*arguments, more={}):
        if more is not None:
            pairs = [f'{key}={value}' for key, value in {**options, **more}.items()]
            arguments = ['moving_shapes', *arguments, '--cfg-options', *pairs]
        end = ''
        try:
            run_tool('tools/reproduce.py', *arguments, '--work-dir', tmp_path)
        except (SystemExit, UserError) as error:
            end = str(error)
        return end, ''.join(capsys.readouterr())

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


def test_it_says_how_far_a_run_is(tmp_path, capsys, monkeypatch):
    """Of what this run has logged, and not of one before it that was cut off."""
    tool = runpy.run_path(str(ROOT / 'tools/reproduce.py'))
    cfg = Config(dict(train_cfg=dict(max_epochs=100)))
    now, log = [1000.0], tmp_path / 'run/scalars.json'
    monkeypatch.setattr(tool['time'], 'time', lambda: now[0])

    def reach(epoch, seconds, path=log):
        path.parent.mkdir(exist_ok=True)
        with path.open('a') as file:
            file.write(json.dumps(dict(epoch=epoch, loss=1.0)) + '\n')
        now[0] = 1000.0 + seconds
        os.utime(path, (now[0], now[0]))
        progress.update()
        return capsys.readouterr().out.strip()

    run = tool['Run']('vop', tmp_path, cfg, dict(lr=1e-2))
    progress = tool['Progress']('[1/2] vop', run, 1000.0)
    assert reach(90, -9, tmp_path / 'run/before.json') == ''
    assert reach(49, 10) == '' and reach(50, 11) == ''
    assert reach(69, 30) == '[1/2] vop: epoch 69 of 100, 00:31 left'
    assert reach(70, 31) == '' and 'epoch 80' in reach(80, 41) and reach(100, 61) == ''
    progress = tool['Progress']('zero', tool['Run']('zero', tmp_path, cfg, dict(lr=None)))
    assert reach(100, 61) == ''


@pytest.mark.slow
def test_a_grid_is_cut_off_resumed_and_summarized(reproduce, slurm, tmp_path, monkeypatch):
    grid = ['--methods', 'vop', '--lr', '1e-2', '1e30']
    # 3 steps an epoch: killed in the second, which lr=1e30 does not reach.
    monkeypatch.setenv('KILL_AT', '4')
    end, output = reproduce(*grid, '--jobs', '2', '--no-report')
    assert '2 runs, of which 0 are done' in output
    assert end == '1' and '1 runs failed: vop lr=0.01 seed=0' in output, output
    assert '[2/2] vop lr=1e+30 seed=0: diverged' in output
    run = tmp_path / 'vop/lr=0.01/seed=0'
    assert str(run / 'log.txt') in output
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('result.json')}
    assert {path.parent.parent.name for path in stamps} == {'lr=1e+30'}

    # The rest is done by Slurm, though a power cut left this file empty.
    monkeypatch.delenv('KILL_AT')
    (run / 'last_checkpoint').write_text('')
    end, output = reproduce(*grid, '--slurm', 'gpus', '--slurm-args', 'time=1:00:00', 'mem=8G')
    assert not end, output
    assert '2 runs, of which 1 are done' in output and '[1/1] vop lr=0.01' in output
    for option in ('--partition=gpus', '--gres=gpu:1', '--time=1:00:00', '--mem=8G'):
        assert f'#SBATCH {option}\n' in (slurm / 'job.sh').read_text()
    assert 'resumed epoch: 1' in (run / 'log.txt').read_text()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    with (tmp_path / 'results.csv').open() as file:
        rows = {(row['method'], row['lr']): row for row in csv.DictReader(file)}
    assert rows.keys() == {('vop', '0.01'), ('vop', '1e+30')}
    assert rows['vop', '1e+30']['t2v/R@1'] == ''
    # Numbers of the test split, which has 5 videos; 2 were watched.
    tested = json.loads(next(run.glob('2*/2*.json')).read_text())
    assert float(rows['vop', '0.01']['t2v/MnR']) == tested['t2v/MnR'] > 2
    # Layers, tokens, widths of the tiny CLIP.
    assert rows['vop', '0.01']['trained'] == str(3 * 8 * (64 + 48))
    assert (tmp_path / 'results.png').is_file()
    assert '| VoP ' in (tmp_path / 'results.md').read_text()

    # Other settings are refused.
    end, _ = reproduce(*grid, more={'optim_wrapper.optimizer.weight_decay': 0.5})
    assert str(run) in end and 'weight_decay=0.5' in end


@pytest.mark.slow
def test_a_run_of_another_process_is_left_alone(reproduce, slurm, tmp_path):
    (tmp_path / 'zero_shot').mkdir()
    with portalocker.Lock(tmp_path / 'zero_shot/lock'):
        end, output = reproduce('--methods', 'zero_shot', '--no-report')
    assert '1 runs failed: zero_shot' in output and 'another process is at it' in output
    # No setting of training matters to what only tests.
    more = {'optim_wrapper.optimizer.weight_decay': 0.5}
    assert not reproduce('--methods', 'zero_shot', '--dry-run', more=more)[0]
    # A job that is still in Slurm's queue is waited for; this one ends after a look at it.
    (tmp_path / 'zero_shot/7_submitted.pkl').touch()
    (slurm / 'result').write_bytes(pickle.dumps(('success', 'as the job says')))
    end = f'cp {slurm}/result {tmp_path}/zero_shot/7_0_result.pkl'
    (slurm / 'sacct').write_text(f'#!/bin/sh\necho "JobID|State\n7|RUNNING"\n{end}\n')
    _, output = reproduce('--methods', 'zero_shot', '--slurm', 'gpus', '--no-report')
    assert '[1/1] zero_shot: as the job says' in output and not (slurm / 'job.sh').exists()


VOP = ['--methods', 'vop']


@pytest.mark.parametrize(
    'arguments, more, name',
    [
        (VOP, {'model.visual.prompts.0.layers': 'video'}, 'layers 4 to 3'),
        (VOP, {'model.clip.pretrained': 'nowhere.pt'}, 'nowhere.pt'),
        (['--methods', 'zero_shot'], {'model.text.prompts.0.length': 16}, 'zero_shot'),
        (VOP, {'test_dataloader.dataset.ann_file': 'none.json'}, 'none.json'),
        ([*VOP, '--slurm', 'gpus'], {}, 'srun'),
        (['--methods', 'vop_q'], {}, 'vop_q'),
        (['--lr-grid', '1', '.1', '3'], {}, '--lr-grid'),
        (['--jobs', '0'], {}, '--jobs'),
        (['cats', *VOP], None, 'cats'),
        (['didemo', *VOP], None, 'tools/data/didemo.py'),
        (['msrvtt', '--methods', 'vop_length', '--vary', 'DEPTH=1-2'], None, 'DEPTH'),
        # No quarrel with a default.
        (['msrvtt', '--methods', 'vop_length', '--vary', 'LENGTH=8'], None, 'tools/data/msrvtt.py'),
    ],
)
def test_what_cannot_run_is_refused(reproduce, tmp_path, monkeypatch, arguments, more, name):
    monkeypatch.setenv('PATH', str(tmp_path))
    end, output = reproduce(*arguments, more=more)
    assert end and name in f'{end}{output}' and not [*tmp_path.rglob('log.txt')]


def test_a_grid_is_planned(reproduce, tmp_path):
    grid = ['--lr-grid', '1e-4', '1e-2', '3', '--seeds', '0', '1']
    _, output = reproduce('--methods', 'zero_shot', 'vop', *grid, '--dry-run')
    rates = [f'vop lr={lr} seed={seed}' for lr in ('0.0001', '0.001', '0.01') for seed in (0, 1)]
    assert output.splitlines() == ['7 runs, of which 0 are done.', 'zero_shot', *rates]
    (tmp_path / 'result.json').write_text('{"dataset": "didemo"}')
    assert 'didemo' in reproduce('--methods', 'zero_shot', '--dry-run')[0]


def test_runs_are_spread_over_gpus_or_cores(monkeypatch):
    environments = runpy.run_path(str(ROOT / 'tools/reproduce.py'))['environments']
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: range(8))
    for name in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES'):
        monkeypatch.delenv(name, raising=False)

    def values(gpus, jobs=None):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        return [value for variables in environments(jobs) for value in variables.values()]

    assert [values(0), values(0, 2), values(0, 16)] == [['8'], ['4', '4'], ['1'] * 16]
    assert [values(3, 2), values(2, 3)] == [['0', '1'], ['0', '1', '0']]
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,7')
    assert values(3) == ['4', '5', '7']
