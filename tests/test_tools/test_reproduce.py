"""tools/reproduce.py: grids of runs, started, cut off and gone on with."""

import csv
import fcntl
import importlib.util
import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from projects.vop.models import open_towers

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
    """What makes a run of MovingShapes' configs take seconds."""
    folder = tmp_path_factory.mktemp('reproduce')
    for number in range(5):
        # Square, and of several sizes, so that the videos differ.
        write_video(folder / f'{number}.mp4', 20, *2 * [64 + 32 * number])
    for split in ('train', 'test'):
        (folder / f'{split}.json').write_text(
            json.dumps({f'{i}.mp4': [f'a caption of {i}', f'of {i} another'] for i in range(5)})
        )
    torch.manual_seed(0)
    towers = open_towers(tiny_clip)
    torch.save(
        {
            **towers.visual.state_dict(prefix='visual.'),
            **towers.text.state_dict(prefix='text.'),
            'logit_scale': towers.logit_scale,
        },
        folder / 'clip.pt',
    )
    (folder / 'kill_hook.py').write_text(KILL)
    data = [
        f'{split}_dataloader.{key}'
        for split in ('train', 'val', 'test')
        for key in (
            f'dataset.data_root={folder}',
            'dataset.data_prefix.video=.',
            'num_workers=0',
            'persistent_workers=False',
        )
    ]
    return folder, [
        f'model.clip.name={tiny_clip}',
        f'model.clip.pretrained={folder}/clip.pt',
        *data,
        'train_dataloader.batch_size=4',
        'train_cfg.max_epochs=2',
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1',
        "custom_imports.imports=['projects.vop','kill_hook']",
    ]


@pytest.fixture(scope='module')
def tool():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location('reproduce', ROOT / 'tools/reproduce.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def call(tool):
    """Runs the tool, here; gives whether it went well, and its output."""

    def run(*arguments, **env):
        output, error = io.StringIO(), None
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, 'argv', ['reproduce', *map(str, arguments)])
            for name, value in env.items():
                patch.setenv(name, value)
            with redirect_stdout(output), redirect_stderr(output):
                try:
                    tool.main()
                except SystemExit as stop:
                    error = stop
        return error is None, output.getvalue() + str(error or '')

    return run


@pytest.fixture(scope='module')
def reproduce(call, options):
    """Runs the tool with runs that take seconds."""
    folder, cfg_options = options

    def run(work_dir, *arguments, more=(), **env):
        return call(
            'moving_shapes',
            '--work-dir',
            work_dir,
            *arguments,
            '--cfg-options',
            *cfg_options,
            *more,
            **{'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1', **env},
        )

    return run


GRID = ['--methods', 'zero_shot', 'vop', '--lr', '1e-2', '3e-3']
VOP = ['--methods', 'vop', '--lr', '1e-2']


@pytest.fixture(scope='module')
def finished(reproduce, tmp_path_factory):
    """The folder of a grid of three runs."""
    folder = tmp_path_factory.mktemp('finished')
    done, output = reproduce(folder, *GRID, '--jobs', '2')
    assert done, output
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
        return {(row['method'], row['lr'], row['seed']): row for row in csv.DictReader(file)}


def logged(folder):
    """The metrics that the last evaluation of a run logged."""
    records = [
        json.loads(line)
        for path in folder.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    return [record for record in records if 't2v/R@1' in record][-1]


def test_the_numbers_are_what_the_runs_logged(finished):
    runs = results(finished)
    assert set(runs) == {('zero_shot', '', '0'), ('vop', '0.01', '0'), ('vop', '0.003', '0')}
    for lr in ('0.01', '0.003'):
        metrics = logged(finished / f'vop/lr={lr}/seed=0')
        for name in ('t2v/R@1', 'v2t/MnR'):
            assert float(runs['vop', lr, '0'][name]) == metrics[name]
    # 3 layers of width 64 and 48 in the tiny CLIP
    assert runs['vop', '0.01', '0']['trained'] == str(3 * 8 * (64 + 48))
    assert (finished / 'results.png').stat().st_size > 1000
    assert '| VoP ' in (finished / 'results.md').read_text()


def test_what_is_finished_is_not_run_again(reproduce, copied):
    stamps = {path: path.stat().st_mtime_ns for path in copied.rglob('result.json')}
    done, output = reproduce(copied, *VOP, '--seeds', '0', '1')
    assert done, output
    assert '2 runs, of which 1 are done' in output
    assert len(results(copied)) == 4
    for path, stamp in stamps.items():
        assert path.stat().st_mtime_ns == stamp


def test_what_was_cut_off_is_resumed(reproduce, finished, tmp_path):
    # 3 steps an epoch: killed in the second.
    done, output = reproduce(tmp_path, *VOP, KILL_AT='4')
    assert not done and '1 runs failed: vop lr=0.01 seed=0' in output
    run = tmp_path / 'vop/lr=0.01/seed=0'
    assert (run / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert not results(tmp_path)
    done, output = reproduce(tmp_path, *VOP)
    assert done, output
    assert 'resumed epoch: 1' in (run / 'log.txt').read_text()
    key = 'vop', '0.01', '0'
    assert results(tmp_path) == {key: results(finished)[key]}


def test_a_missing_last_evaluation_is_made_up_for(reproduce, copied):
    before, run = results(copied), copied / 'vop/lr=0.01/seed=0'
    # As if killed behind the last checkpoint.
    (run / 'result.json').unlink()
    for path in run.glob('*/vis_data/*.json'):
        lines = [
            line
            for line in path.read_text().splitlines()
            if '"step": 2' not in line or 't2v' not in line
        ]
        path.write_text('\n'.join([*lines, '{"t2v/R@1": 1']))
    done, output = reproduce(copied, *VOP)
    assert done, output
    assert results(copied) == before


def test_a_run_that_diverges_is_a_result(reproduce, copied):
    done, output = reproduce(copied, *VOP[:-1], '1e30')
    assert done, output
    assert 'vop lr=1e+30 seed=0: diverged' in output
    assert results(copied)['vop', '1e+30', '0']['t2v/R@1'] == ''
    assert '1 runs, of which 1 are done' in reproduce(copied, *VOP[:-1], '1e30')[1]


def test_one_run_that_fails_does_not_stop_the_others(reproduce, tmp_path):
    done, output = reproduce(
        tmp_path, '--methods', 'vop', 'zero_shot', more=['train_dataloader.batch_size=0']
    )
    assert not done
    assert '[1/2] vop lr=0.01 seed=0 failed; its output is in' in output
    assert 'batch_size' in output
    assert '1 runs failed: vop lr=0.01 seed=0' in output
    assert set(results(tmp_path)) == {('zero_shot', '', '0')}


def test_numbers_are_of_the_test_split(reproduce, options, tmp_path):
    """Where training is watched on another one."""
    captions = json.loads((options[0] / 'test.json').read_text())
    (options[0] / 'val.json').write_text(json.dumps(dict(list(captions.items())[:2])))
    done, output = reproduce(tmp_path, *VOP, more=['val_dataloader.dataset.ann_file=val.json'])
    assert done, output
    # 5 videos and 10 captions: R@1 is a multiple of 10, MnR up to 5.
    result = results(tmp_path)['vop', '0.01', '0']
    watched = logged(tmp_path / 'vop/lr=0.01/seed=0')
    assert watched['t2v/MnR'] <= 2
    tested = next((tmp_path / 'vop/lr=0.01/seed=0').glob('2*/2*.json'))
    assert (
        json.loads(tested.read_text())['t2v/MnR'] == float(result['t2v/MnR']) != watched['t2v/MnR']
    )


def test_a_run_of_another_process_is_left_alone(reproduce, tmp_path):
    run = tmp_path / 'vop/lr=0.01/seed=0'
    run.mkdir(parents=True)
    with (run / 'lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done, output = reproduce(tmp_path, *VOP)
    assert done and 'Traceback' not in output
    assert 'vop lr=0.01 seed=0: another process is at it' in output
    assert not (run / 'result.json').exists()


def test_slurm_jobs_are_runs_of_the_grid(reproduce, finished, tmp_path):
    """With a stand-in for ``sbatch`` that runs what it is given."""
    sbatch = tmp_path / 'bin' / 'sbatch'
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/jobs.txt\n'
        'while [ "$1" != --wrap ]; do shift; done\nsh -c "$2"\n'
    )
    sbatch.chmod(0o755)
    done, output = reproduce(
        tmp_path / 'out',
        *VOP,
        '--slurm',
        'gpus',
        SBATCH_ARGS='--time=1:00:00 --mem=8G',
        PATH=f'{sbatch.parent}:{os.environ["PATH"]}',
    )
    assert done, output
    assert '1 jobs were given to Slurm' in output
    job = (tmp_path / 'jobs.txt').read_text()
    assert '--partition=gpus' in job and '--gres=gpu:1' in job
    assert '--time=1:00:00 --mem=8G' in job
    assert not results(tmp_path / 'out')
    done, output = reproduce(tmp_path / 'out', *VOP)
    assert '1 runs, of which 1 are done' in output
    key = 'vop', '0.01', '0'
    assert results(tmp_path / 'out') == {key: results(finished)[key]}


def test_other_settings_are_not_mixed_in(reproduce, copied):
    done, output = reproduce(copied, *VOP, more=['optim_wrapper.optimizer.weight_decay=0.5'])
    assert not done and 'holds a run with other settings' in output
    assert 'weight_decay=0.5' in output and 'Nothing was run' in output
    # Which matters only to what trains.
    done, output = reproduce(
        copied,
        '--methods',
        'zero_shot',
        '--no-report',
        more=['optim_wrapper.optimizer.weight_decay=0.5'],
    )
    assert done and '1 runs, of which 1 are done' in output


def test_a_method_that_contradicts_itself_is_refused(tmp_path, reproduce):
    done, output = reproduce(tmp_path, *VOP, more=['model.visual.prompts.0.layers=video'])
    assert not done and 'there are no layers 4 to 3' in output
    assert 'Nothing was run' in output and not list(tmp_path.iterdir())


def test_missing_weights_are_named_before_anything_runs(tmp_path, reproduce):
    done, output = reproduce(tmp_path, *VOP, more=['model.clip.pretrained=nowhere.pt'])
    assert not done and 'nowhere.pt' in output
    assert 'Nothing was run' in output and not list(tmp_path.iterdir())


def test_an_option_that_a_method_cannot_take_names_it(tmp_path, reproduce):
    done, output = reproduce(tmp_path, *GRID, more=['model.text.prompts.0.length=16'])
    assert not done and output.splitlines()[-2].startswith('zero_shot')
    assert 'Nothing was run' in output


def test_a_folder_of_another_data_set_is_left_alone(reproduce, copied):
    path = copied / 'zero_shot/result.json'
    path.write_text(path.read_text().replace('moving_shapes', 'didemo'))
    done, output = reproduce(copied, *VOP)
    assert not done and 'holds runs on didemo' in output


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['moving_shapes', '--methods', 'vop_q'],
            'no method vop_q for moving_shapes, but adapter_attn, ',
        ),
        (['didemo', '--methods', 'vop_q'], 'no config'),
        (['cats', '--methods', 'vop'], 'a DATASET of'),
        (['didemo', '--methods', 'vop'], '`python tools/data/didemo.py` makes'),
        (
            ['moving_shapes', '--methods', 'vop', '--lr-grid', '1', '.1', '3'],
            '--lr-grid takes MIN MAX N',
        ),
        (['moving_shapes', '--lr', '1', '--lr-grid', '1', '2', '3'], 'not allowed with'),
        (['msrvtt', '--methods', 'vop_length', '--vary', 'DEPTH=1-2'], 'has no variable DEPTH'),
        (
            ['msrvtt', '--methods', 'vop_length', '--vary', 'LENGTH=8'],
            '`python tools/data/msrvtt.py` makes',
        ),  # no quarrel with a default
        (['moving_shapes', '--jobs', '0'], '--jobs must be at least 1'),
    ],
)
def test_bad_input_is_refused_before_anything_runs(call, tmp_path, arguments, message):
    done, output = call(*arguments, '--work-dir', tmp_path)
    assert not done and message in output
    assert not list(tmp_path.iterdir())


def test_runs_are_spread_over_the_gpus(tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def devices(jobs=None):
        return [env['CUDA_VISIBLE_DEVICES'] for env in tool.environments(jobs)]

    assert devices() == ['0', '1', '2']
    assert devices(2) == ['0', '1']
    assert devices(6) == ['0', '1', '2'] * 2
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,7,99')
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
    assert tool.log_grid(['1e-6', '1e-2', '5']) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
