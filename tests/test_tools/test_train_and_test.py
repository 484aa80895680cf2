"""tools/train.py and tools/test.py, run as users run them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from projects.vop.errors import UserError
from projects.vop.models import open_towers

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 3
STEPS = 3  # 10 pairs in batches of 4, the last of 2

CONFIG = """
_base_ = '{root}/configs/moving_shapes/{method}.py'
model = dict(
    clip=dict(name='{clip}', pretrained='{weights}'),
    visual=dict(num_frames=4{temporal}))
pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=4, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='RandomResizedCrop', area_range=(0.5, 1.0)),
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(type='PackActionInputs', collect_keys=('imgs', 'text'),
         meta_keys=('video_id', ))
]
test_pipeline = [pipeline[0], dict(pipeline[1], test_mode=True), pipeline[2],
                 *pipeline[4:5], *pipeline[6:]]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(data_root='{videos}', data_prefix=dict(video=''),
                 pipeline=pipeline))
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{videos}', data_prefix=dict(video=''),
                 pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs={epochs}, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
log_processor = dict(window_size=1)
"""

# Ends the process as a power cut would.
KILL = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        if runner.iter == int(os.environ.get('KILL_AT', -1)):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope='module')
def config(tiny_clip, video_folder, tmp_path_factory):
    """Writes a config of a method; gives its path."""
    folder = tmp_path_factory.mktemp('configs')
    for seed, name in enumerate(('clip.pt', 'other_clip.pt')):
        torch.manual_seed(seed)
        towers = open_towers(tiny_clip)
        torch.save(
            {
                **towers.visual.state_dict(prefix='visual.'),
                **towers.text.state_dict(prefix='text.'),
                'logit_scale': towers.logit_scale,
            },
            folder / name,
        )

    def write(method='vop', extra=''):
        path = folder / f'{method}.py'
        path.write_text(
            CONFIG.format(
                root=ROOT,
                method=method,
                clip=tiny_clip,
                weights=folder / 'clip.pt',
                temporal=', temporal_layers=1' if '_f' in method else '',
                videos=video_folder,
                epochs=EPOCHS,
            )
            + extra
        )
        return str(path)

    return write


def run(*command, env=None, ok=True):
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(ROOT), *(env or {}).pop('PATHS', [])]),
        OMP_NUM_THREADS='1',
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]),
        **(env or {}),
    )
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if ok:
        assert done.returncode == 0, output[-3000:]
    return output


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def train(config, work_dir, *arguments, **kwargs):
    return run(
        sys.executable, 'tools/train.py', config, '--work-dir', str(work_dir), *arguments, **kwargs
    )


def records(work_dir):
    """All that a run and its resumptions logged, in order."""
    return [
        json.loads(line)
        for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]


def losses(work_dir):
    return {r['step']: r['loss'] for r in records(work_dir) if 'loss' in r}


def metrics(work_dir):
    return [{k: v for k, v in r.items() if '2' in k} for r in records(work_dir) if 't2v/R@1' in r]


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    train(config(), work_dir)
    return work_dir


def test_training_logs_losses_and_ten_metrics(trained):
    assert list(losses(trained)) == list(range(1, EPOCHS * STEPS + 1))
    assert len(metrics(trained)) == EPOCHS
    assert set(metrics(trained)[0]) == {
        f'{way}/{name}' for way in ('t2v', 'v2t') for name in ('R@1', 'R@5', 'R@10', 'MdR', 'MnR')
    }


def test_checkpoints_hold_what_was_trained(trained):
    checkpoint = torch.load(trained / f'epoch_{EPOCHS}.pth', weights_only=True)
    tensors = {
        name: value
        for name, value in checkpoint['state_dict'].items()
        if not name.endswith('_extra_state')
    }
    assert set(tensors) == {'visual.prompts.0.tokens', 'text.prompts.0.tokens'}
    assert list(trained.glob('best_t2v_R@1_epoch_*.pth'))
    published = torch.load(next(trained.glob('epoch_*-*.pth')), weights_only=True)
    assert set(published) == {'meta', 'state_dict'}


def test_test_py_gives_the_metrics_of_training(run_tool, trained, config, tmp_path):
    run_tool(
        'tools/test.py',
        config(),
        trained / f'epoch_{EPOCHS}.pth',
        '--work-dir',
        tmp_path,
        '--dump',
        tmp_path / 'predictions.pkl',
    )
    tested = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    for name, value in metrics(trained)[-1].items():
        assert tested[name] == pytest.approx(value)
    assert (tmp_path / 'predictions.pkl').stat().st_size > 0


def test_resumed_after_kill_9_the_losses_are_the_same(trained, config, tmp_path):
    (tmp_path / 'kill_hook.py').write_text(KILL)
    hooked = config(
        extra="custom_imports = dict(imports=['projects.vop', 'kill_hook'])\n"
        "custom_hooks = [dict(type='KillHook')]\n"
    )
    paths = dict(PATHS=[str(tmp_path)])
    work_dir = tmp_path / 'killed'
    train(hooked, work_dir, env=dict(paths, KILL_AT='4'), ok=False)
    assert max(losses(work_dir)) < EPOCHS * STEPS
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    train(hooked, work_dir, '--resume', env=dict(PATHS=[str(tmp_path)]))
    assert losses(work_dir) == losses(trained)
    assert metrics(work_dir)[-1] == metrics(trained)[-1]


def test_the_number_of_workers_changes_nothing(trained, config, tmp_path):
    train(
        config(),
        tmp_path,
        '--no-validate',
        '--cfg-options',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    )
    assert losses(tmp_path) == losses(trained)
    assert not metrics(tmp_path)


def test_another_seed_changes_the_run(trained, config, tmp_path):
    train(
        config(),
        tmp_path,
        '--no-validate',
        '--seed',
        '1',
        '--cfg-options',
        'train_cfg.max_epochs=1',
    )
    assert losses(tmp_path)[1] != losses(trained)[1]


def test_two_processes_train_and_test_as_one(trained, config, tmp_path):
    """Five test videos, which do not divide by two."""
    env = dict(PORT=free_port())
    run(
        'tools/dist_train.sh',
        config('vop'),
        '2',
        '--work-dir',
        str(tmp_path / 'train'),
        '--cfg-options',
        'train_dataloader.batch_size=2',
        env=dict(env),
    )
    ours = losses(tmp_path / 'train')
    assert ours.keys() == losses(trained).keys()
    for step, loss in losses(trained).items():
        assert ours[step] == pytest.approx(loss, rel=1e-4)
    run(
        'tools/dist_test.sh',
        config('vop'),
        str(trained / f'epoch_{EPOCHS}.pth'),
        '2',
        '--work-dir',
        str(tmp_path / 'test'),
        env=dict(env),
    )
    tested = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    for name, value in metrics(trained)[-1].items():
        assert tested[name] == value


@pytest.fixture
def refused(run_tool, trained, config):
    """Why tools/test.py refuses the trained checkpoint."""

    def refused(method='vop', *options):
        with pytest.raises(ValueError) as error:
            run_tool('tools/test.py', config(method), trained / f'epoch_{EPOCHS}.pth', *options)
        return str(error.value)

    return refused


def test_a_checkpoint_of_another_clip_is_refused(refused, config):
    other = Path(config()).with_name('other_clip.pt')
    why = refused('vop', '--cfg-options', f'model.clip.pretrained={other}')
    assert 'was trained on the CLIP' in why
    assert '/clip.pt)' in why and '/other_clip.pt)' in why


def test_a_checkpoint_of_another_method_is_refused(refused):
    why = refused('vop_p')
    assert f'epoch_{EPOCHS}.pth does not fit the config' in why
    assert 'it lacks visual.prompts.1.tokens' in why


def test_prompts_of_another_length_are_refused(refused):
    why = refused('vop', '--cfg-options', 'model.text.prompts.0.length=4')
    assert 'of another shape are text.prompts.0.tokens' in why


def test_zero_shot_is_tested_by_one_process_and_by_two(run_tool, config, tmp_path):
    path = config('zero_shot')
    run_tool('tools/test.py', path, '--work-dir', tmp_path / 'one')
    run(
        'tools/dist_test.sh',
        path,
        '2',
        '--work-dir',
        str(tmp_path / 'two'),
        env=dict(PORT=free_port()),
    )
    one, two = (
        json.loads(next((tmp_path / name).glob('*/*.json')).read_text()) for name in ('one', 'two')
    )
    assert 't2v/R@1' in one
    assert {k: v for k, v in one.items() if '2' in k} == {k: v for k, v in two.items() if '2' in k}


def test_a_checkpoint_can_be_named_to_resume(trained, config, tmp_path):
    train(config(), tmp_path, '--no-validate', '--resume', str(trained / 'epoch_2.pth'))
    assert losses(tmp_path) == {
        step: loss for step, loss in losses(trained).items() if step > 2 * STEPS
    }


@pytest.mark.parametrize(
    'script, arguments, wanted',
    [
        (
            'slurm_train.sh',
            ['part', 'job', 'c.py', '--amp'],
            ['tools/train.py c.py --launcher slurm --amp', '--ntasks=4'],
        ),
        (
            'slurm_test.sh',
            ['part', 'job', 'c.py', 'k.pth', '--dump', 'd.pkl'],
            ['tools/test.py c.py k.pth --dump d.pkl --launcher slurm'],
        ),
        ('slurm_test.sh', ['part', 'job', 'c.py'], ['tools/test.py c.py --launcher slurm']),
    ],
)
def test_slurm_scripts(tmp_path, script, arguments, wanted):
    """With a stand-in for ``srun`` that prints what it would start."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@" WORLD_SIZE=$WORLD_SIZE')
    srun.chmod(0o755)
    done = subprocess.run(
        [ROOT / 'tools' / script, *arguments],
        env=dict(os.environ, GPUS='4', PATH=f'{tmp_path}:{os.environ["PATH"]}'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for text in ('-p part --job-name=job --gres=gpu:4', *wanted):
        assert text in done.stdout
    if script == 'slurm_train.sh':
        assert 'WORLD_SIZE=4' in done.stdout


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_launchers_say_how_they_are_used(script):
    output = run(f'tools/{script}', ok=False)
    assert output.startswith('usage:')


def test_amp_without_a_gpu_says_why_not(run_tool, config, tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(SystemExit, match='--amp needs a GPU'):
        run_tool('tools/train.py', config(), '--work-dir', tmp_path, '--amp')


def test_learning_rate_scales_with_the_batch(config, tmp_path):
    train(
        config(),
        tmp_path,
        '--no-validate',
        '--auto-scale-lr',
        '--cfg-options',
        'train_cfg.max_epochs=1',
    )
    first = next(r for r in records(tmp_path) if 'lr' in r)
    assert first['lr'] == pytest.approx(1e-2 * 4 / 32)


def test_the_runner_compiles_the_model(trained, config, tmp_path):
    train(
        config(),
        tmp_path,
        '--no-validate',
        '--cfg-options',
        "compile.backend='aot_eager'",
        'train_cfg.max_epochs=1',
    )
    ours = losses(tmp_path)
    for step in ours:
        assert ours[step] == pytest.approx(losses(trained)[step], rel=1e-4)


def results_in(work_dir):
    metrics = json.loads(next(Path(work_dir).glob('*/*.json')).read_text())
    return {name: value for name, value in metrics.items() if '2' in name}


def test_a_bank_of_training_queries(run_tool, trained, config, tmp_path, capsys):
    """Dump the embeddings of the training set, then test with them."""
    checkpoint = str(trained / f'epoch_{EPOCHS}.pth')
    bank = tmp_path / 'bank.pt'
    run_tool(
        'tools/test.py',
        config(),
        checkpoint,
        '--work-dir',
        tmp_path / 'dump',
        '--dump-embeddings',
        bank,
        '--cfg-options',
        'test_dataloader.dataset.ann_file=train.json',
    )
    content = torch.load(bank, weights_only=True)
    assert content['video_id'] == [f'{number}.mp4' for number in range(5)]
    assert content['video_of_text'].tolist() == [n // 2 for n in range(10)]
    assert content['video'].shape == (5, 32)
    capsys.readouterr()
    run_tool(
        'tools/test.py',
        config(),
        checkpoint,
        '--work-dir',
        tmp_path / 'test',
        '--qb-norm',
        bank,
        '--dsl',
    )
    output = capsys.readouterr().out
    result = results_in(tmp_path / 'test')
    plain = metrics(trained)[-1]
    assert set(result) == {
        f'{prefix}{name}' for prefix in ('', 'dsl/', 'qb_norm/') for name in plain
    }
    assert {name: result[name] for name in plain} == pytest.approx(plain)
    assert output.count('Not to be compared with plain numbers') == 1
    assert '5 test videos are in the bank' in output

    with pytest.raises(UserError, match='was made with another model'):
        run_tool(
            'tools/test.py',
            config(),
            trained / 'epoch_1.pth',
            '--qb-norm',
            bank,
            '--work-dir',
            tmp_path / 'other',
        )
    assert 'Epoch(test)' not in capsys.readouterr().out

    run(
        'tools/dist_test.sh',
        config(),
        checkpoint,
        '2',
        '--work-dir',
        str(tmp_path / 'two'),
        '--qb-norm',
        str(bank),
        '--dsl',
        '--dump-embeddings',
        str(tmp_path / 'two.pt'),
        env=dict(PORT=free_port()),
    )
    assert results_in(tmp_path / 'two') == pytest.approx(result)
    two = torch.load(tmp_path / 'two.pt', weights_only=True)
    assert two['model_fingerprint'] == content['model_fingerprint']
    assert two['video_id'] == content['video_id']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--qb-norm', 'nowhere.pt'], 'There is no file nowhere.pt'),
        (['--qb-norm', 'setup.py'], 'setup.py is damaged, or holds no embeddings'),
        (['--dsl', '-3'], 'dsl must be a positive number'),
        (['--dump-embeddings', 'tools'], 'tools cannot be written'),
        (
            ['--dsl', '--cfg-options', 'test_evaluator.type=RetrievalMetric'],
            'need one vop.RetrievalMetric',
        ),
    ],
)
def test_what_is_wrong_is_said_before_clip_is_opened(
    run_tool, config, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as error:
        run_tool('tools/test.py', config('zero_shot'), *arguments)
    output = capsys.readouterr()
    assert message in f'{error.value}{output.err}'
    assert 'CLIP' not in output.out


def test_lambda_of_dsl_and_dump_to_pickle_together(run_tool, config, tmp_path):
    run_tool(
        'tools/test.py',
        config('zero_shot'),
        '--dsl',
        '30',
        '--dump',
        tmp_path / 'predictions.pkl',
        '--work-dir',
        tmp_path,
    )
    assert 'dsl/t2v/R@1' in results_in(tmp_path)
    saved = next(tmp_path.glob('*/vis_data/config.py')).read_text()
    assert 'scale=30.0' in saved
    assert (tmp_path / 'predictions.pkl').stat().st_size > 0
