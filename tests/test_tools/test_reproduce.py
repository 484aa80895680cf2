"""tools/reproduce.py: grids of runs, started, cut off and gone on with."""
import csv
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from projects.vop.models import open_towers

ROOT = Path(__file__).resolve().parents[2]

# Ends the process as a power cut would.
KILL = '''
import os, signal
from mmengine.hooks import IterTimerHook
from mmengine.registry import HOOKS

@HOOKS.register_module(name='IterTimerHook', force=True)
class KillHook(IterTimerHook):
    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        if runner.iter == int(os.environ.get('KILL_AT', -1)):
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(scope='module')
def options(tiny_clip, write_video, tmp_path_factory):
    """What makes a run of MovingShapes' configs take seconds."""
    folder = tmp_path_factory.mktemp('reproduce')
    for number in range(5):
        # Square, and of several sizes, so that the videos differ.
        write_video(folder / f'{number}.mp4', 20, *2 * [64 + 32 * number])
    for split in ('train', 'test'):
        (folder / f'{split}.json').write_text(
            json.dumps({f'{i}.mp4': [f'a caption of {i}', f'of {i} another']
                        for i in range(5)}))
    torch.manual_seed(0)
    towers = open_towers(tiny_clip)
    torch.save(
        {
            **towers.visual.state_dict(prefix='visual.'),
            **towers.text.state_dict(prefix='text.'), 'logit_scale':
            towers.logit_scale
        }, folder / 'clip.pt')
    (folder / 'kill_hook.py').write_text(KILL)
    data = [
        f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
        for key in (f'dataset.data_root={folder}',
                    'dataset.data_prefix.video=.', 'num_workers=0',
                    'persistent_workers=False')
    ]
    return folder, [
        f'model.clip.name={tiny_clip}',
        f'model.clip.pretrained={folder}/clip.pt', *data,
        'train_dataloader.batch_size=4', 'train_cfg.max_epochs=2',
        'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1',
        "custom_imports.imports=['projects.vop','kill_hook']"
    ]


@pytest.fixture(scope='module')
def reproduce(options):
    """Runs the tool with a work dir; gives its code and its output."""
    folder, cfg_options = options

    def run(work_dir, *arguments, more=(), **env):
        done = subprocess.run(
            [sys.executable, 'tools/reproduce.py', 'moving_shapes',
             '--work-dir', str(work_dir), *arguments, '--cfg-options',
             *cfg_options, *more],
            cwd=ROOT, capture_output=True, text=True, env=dict(
                os.environ, PYTHONPATH=f'{ROOT}:{folder}',
                OMP_NUM_THREADS='1', **env))
        return done.returncode, done.stdout + done.stderr

    return run


GRID = ['--methods', 'zero_shot', 'vop', '--lr', '1e-2', '3e-3']
VOP = ['--methods', 'vop', '--lr', '1e-2']


@pytest.fixture(scope='module')
def finished(reproduce, tmp_path_factory):
    """The folder of a grid of three runs."""
    folder = tmp_path_factory.mktemp('finished')
    code, output = reproduce(folder, *GRID, '--jobs', '2')
    assert code == 0, output
    assert '3 runs, of which 0 are done' in output
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(finished, tmp_path / 'copy')


def results(folder):
    if not (folder / 'results.csv').is_file():
        return {}
    with (folder / 'results.csv').open() as file:
        return {(row['method'], row['lr'], row['seed']): row
                for row in csv.DictReader(file)}


def logged(folder):
    """The metrics that the last evaluation of a run logged."""
    records = [
        json.loads(line) for path in folder.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    return [record for record in records if 't2v/R@1' in record][-1]


def test_the_numbers_are_what_the_runs_logged(finished):
    runs = results(finished)
    assert set(runs) == {('zero_shot', '', '0'), ('vop', '0.01', '0'),
                         ('vop', '0.003', '0')}
    for lr in ('0.01', '0.003'):
        metrics = logged(finished / f'vop/lr={lr}/seed=0')
        for name in ('t2v/R@1', 'v2t/MnR'):
            assert float(runs['vop', lr, '0'][name]) == metrics[name]
    # 3 layers of width 64 and 48 in the tiny CLIP
    assert runs['vop', '0.01', '0']['trained'] == str(3 * 8 * (64 + 48))
    assert (finished / 'results.png').stat().st_size > 1000
    assert '| VoP ' in (finished / 'results.md').read_text()


def test_what_is_finished_is_not_run_again(reproduce, copied):
    stamps = {path: path.stat().st_mtime_ns
              for path in copied.rglob('result.json')}
    code, output = reproduce(copied, *VOP, '--seeds', '0', '1')
    assert code == 0, output
    assert '2 runs, of which 1 are done' in output
    assert len(results(copied)) == 4
    for path, stamp in stamps.items():
        assert path.stat().st_mtime_ns == stamp


def test_what_was_cut_off_is_resumed(reproduce, finished, tmp_path):
    # 3 steps an epoch: killed in the second.
    code, output = reproduce(tmp_path, *VOP, KILL_AT='4')
    assert code == 1 and '1 runs failed: vop lr=0.01 seed=0' in output
    run = tmp_path / 'vop/lr=0.01/seed=0'
    assert (run / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert not results(tmp_path)
    code, output = reproduce(tmp_path, *VOP)
    assert code == 0, output
    assert 'resumed epoch: 1' in (run / 'log.txt').read_text()
    key = 'vop', '0.01', '0'
    assert results(tmp_path) == {key: results(finished)[key]}


def test_a_missing_last_evaluation_is_made_up_for(reproduce, copied):
    before, run = results(copied), copied / 'vop/lr=0.01/seed=0'
    # As if killed behind the last checkpoint.
    (run / 'result.json').unlink()
    for path in run.glob('*/vis_data/*.json'):
        lines = [line for line in path.read_text().splitlines()
                 if '"step": 2' not in line or 't2v' not in line]
        path.write_text('\n'.join([*lines, '{"t2v/R@1": 1']))
    code, output = reproduce(copied, *VOP)
    assert code == 0, output
    assert results(copied) == before


def test_one_run_that_fails_does_not_stop_the_others(reproduce, tmp_path):
    code, output = reproduce(tmp_path, *GRID[:-2], '1e30')
    assert code == 1
    assert 'vop lr=1e+30 seed=0 failed; its output is in' in output
    assert 'not finite' in output
    assert '1 runs failed: vop lr=1e+30 seed=0' in output
    assert set(results(tmp_path)) == {('zero_shot', '', '0')}


def test_a_run_of_another_process_is_left_alone(reproduce, tmp_path):
    run = tmp_path / 'vop/lr=0.01/seed=0'
    run.mkdir(parents=True)
    with (run / 'lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, output = reproduce(tmp_path, *VOP, '--no-report')
    assert code == 0
    assert 'vop lr=0.01 seed=0: another process is at it' in output
    assert not (run / 'result.json').exists()


def test_slurm_jobs_are_runs_of_the_grid(reproduce, finished, tmp_path):
    """With a stand-in for ``sbatch`` that runs what it is given."""
    sbatch = tmp_path / 'bin' / 'sbatch'
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/jobs.txt\n'
                      'while [ "$1" != --wrap ]; do shift; done\nsh -c "$2"\n')
    sbatch.chmod(0o755)
    code, output = reproduce(
        tmp_path / 'out', *VOP, '--slurm', 'gpus',
        SBATCH_ARGS='--time=1:00:00 --mem=8G',
        PATH=f"{sbatch.parent}:{os.environ['PATH']}")
    assert code == 0, output
    assert '1 jobs were given to Slurm' in output
    job = (tmp_path / 'jobs.txt').read_text()
    assert '--partition=gpus' in job and '--gres=gpu:1' in job
    assert '--time=1:00:00 --mem=8G' in job
    assert not results(tmp_path / 'out')
    code, output = reproduce(tmp_path / 'out', *VOP)
    assert '1 runs, of which 1 are done' in output
    key = 'vop', '0.01', '0'
    assert results(tmp_path / 'out') == {key: results(finished)[key]}


def test_other_settings_are_not_mixed_in(reproduce, copied):
    code, output = reproduce(
        copied, *VOP, more=['optim_wrapper.optimizer.weight_decay=0.5'])
    assert code == 1 and 'holds a run with other settings' in output
    assert 'weight_decay=0.5' in output and 'Nothing was run' in output


def test_a_method_that_contradicts_itself_is_refused(tmp_path, reproduce):
    code, output = reproduce(
        tmp_path, *VOP, more=['model.visual.prompts.0.layers=video'])
    assert code == 1 and 'there are no layers 4 to 3' in output
    assert 'Nothing was run' in output and not list(tmp_path.iterdir())


def refused(*arguments):
    done = subprocess.run(
        [sys.executable, 'tools/reproduce.py', *arguments], cwd=ROOT,
        capture_output=True, text=True)
    assert done.returncode
    return done.stderr


@pytest.mark.parametrize('arguments, message', [
    (['moving_shapes', '--methods', 'vop_q'],
     'no method vop_q for moving_shapes, but adapter_attn, '),
    (['didemo', '--methods', 'vop_q'], 'no config'),
    (['cats', '--methods', 'vop'], 'a DATASET of'),
    (['didemo', '--methods', 'vop'], '`python tools/data/didemo.py` makes'),
    (['moving_shapes', '--methods', 'vop', '--lr-grid', '1', '.1', '3'],
     '--lr-grid takes MIN MAX N'),
    (['moving_shapes', '--lr', '1', '--lr-grid', '1', '2', '3'],
     'not allowed with'),
    (['msrvtt', '--methods', 'vop_length', '--vary', 'DEPTH=1-2'],
     'has no variable DEPTH'),
])
def test_bad_input_is_refused_before_anything_runs(tmp_path, arguments,
                                                   message):
    assert message in refused(*arguments, '--work-dir', str(tmp_path))
    assert not list(tmp_path.iterdir())



@pytest.fixture(scope='module')
def tool():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location(
        'reproduce', ROOT / 'tools/reproduce.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_are_spread_over_the_gpus(tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def devices(jobs=None):
        return [env['CUDA_VISIBLE_DEVICES'] for env in tool.environments(jobs)]

    assert devices() == ['0', '1', '2']
    assert devices(2) == ['0', '1']
    assert devices(6) == ['0', '1', '2'] * 2
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,7')
    assert devices() == ['4', '5', '7']


def test_runs_share_the_cores_of_a_machine_without_gpus(tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    for jobs, threads in ((None, 8), (2, 4), (16, 1)):
        envs = tool.environments(jobs)
        assert len(envs) == (jobs or 1)
        assert {env['OMP_NUM_THREADS'] for env in envs} == {str(threads)}


def test_a_grid_is_even_in_log(tool):
    assert tool.log_grid(['1e-6', '1e-2', '5']) == [1e-6, 1e-5, 1e-4, 1e-3,
                                                    1e-2]
