"""tools/train.py and tools/test.py, run as users run them."""

import copy
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    ROOT,
    TINY_CLIP,
    free_port,
    in_two_processes,
    records,
    run,
    run_forked,
    save_clip,
)
from kinds import write_small_clip
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization import LocalVisBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from projects.vop.apis import VoPInferencer
from projects.vop.engine import to_safetensors
from projects.vop.errors import NotFiniteError, UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('read_here')]

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
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{videos}', data_prefix=dict(video=''),
                 pipeline=pipeline, timeout=60))
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{videos}', data_prefix=dict(video=''),
                 pipeline=test_pipeline, timeout=60))
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
        save_clip(tiny_clip, folder / name, seed)

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


def train(config, work_dir, *arguments, **kwargs):
    """Train in a process of its own."""
    return run_forked('tools/train.py', config, '--work-dir', work_dir, *arguments, **kwargs)


def losses(work_dir):
    return {r['step']: r['loss'] for r in records(work_dir) if 'loss' in r}


def only_metrics(record):
    return {name: value for name, value in record.items() if '2' in name}


def metrics(work_dir):
    return [only_metrics(r) for r in records(work_dir) if 't2v/R@1' in r]


def results_of(work_dir):
    """What tools/test.py logged."""
    return only_metrics(json.loads(next(Path(work_dir).glob('*/*.json')).read_text()))


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    train(config(), work_dir)
    return work_dir


@pytest.fixture
def train_here(run_tool, config, tmp_path):
    """Trains in this process, without validation; gives the losses."""

    def train(*arguments):
        options = '--work-dir', tmp_path, '--no-validate', *arguments
        run_tool('tools/train.py', config(), *options)
        return losses(tmp_path)

    return train


def test_training_logs_losses_and_ten_metrics(trained):
    assert list(losses(trained)) == list(range(1, EPOCHS * STEPS + 1))
    assert len(metrics(trained)) == EPOCHS
    assert set(metrics(trained)[0]) == {
        f'{direction}/{name}'
        for direction in ('t2v', 'v2t')
        for name in ('R@1', 'R@5', 'R@10', 'MdR', 'MnR')
    }


@pytest.mark.slow
@pytest.mark.parametrize('kind, words', [('mobileclip_b', 'causal'), ('siglip', 'siglip')])
def test_another_clip_is_named_and_nothing_else(run_tool, config, tmp_path, kind, words):
    """Its pictures are smaller; one has batch normalisation, whose statistics stay."""
    name = write_small_clip(tmp_path, kind, words)
    weights, work_dir = save_clip(name, tmp_path / 'other.pt'), tmp_path / 'run'
    options = ['--cfg-options', f'model.clip.name={name}', f'model.clip.pretrained={weights}']
    path = config('vop_fc', "pipeline[4]['scale'] = (64, 64)\n")
    run_tool('tools/train.py', path, '--work-dir', work_dir, *options)
    checkpoint = work_dir / f'epoch_{EPOCHS}.pth'
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert not [key for key in state if 'backbone' in key]
    run_tool('tools/test.py', path, checkpoint, '--work-dir', work_dir / 'test', *options)
    assert results_of(work_dir / 'test') == pytest.approx(metrics(work_dir)[-1])


def test_checkpoints_hold_what_was_trained(trained):
    checkpoint = torch.load(trained / f'epoch_{EPOCHS}.pth', weights_only=True)
    names = {name for name in checkpoint['state_dict'] if not name.endswith('_extra_state')}
    assert names == {'visual.prompts.0.tokens', 'text.prompts.0.tokens'}
    assert list(trained.glob('best_t2v_R@1_epoch_*.pth'))
    published = torch.load(next(trained.glob('epoch_*-*.pth')), weights_only=True)
    assert set(published) == {'meta', 'state_dict'}


def test_test_py_gives_the_metrics_of_training(run_tool, trained, config, tmp_path):
    dump = tmp_path / 'predictions.pkl'
    checkpoint = trained / f'epoch_{EPOCHS}.pth'
    run_tool('tools/test.py', config(), checkpoint, '--work-dir', tmp_path, '--dump', dump)
    assert results_of(tmp_path) == pytest.approx(metrics(trained)[-1])
    assert dump.stat().st_size > 0
    weights = tmp_path / 'weights.safetensors'
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    weights.write_bytes(to_safetensors(state))
    run_tool('tools/test.py', config(), weights, '--work-dir', tmp_path / 'again')
    assert results_of(tmp_path / 'again') == results_of(tmp_path)


def test_resumed_after_kill_9_the_losses_are_the_same(trained, config, tmp_path):
    (tmp_path / 'kill_hook.py').write_text(KILL)
    hooked = config(
        extra="custom_imports = dict(imports=['projects.vop', 'kill_hook'])\n"
        "custom_hooks = [dict(type='KillHook')]\n"
    )
    work_dir = tmp_path / 'killed'
    train(hooked, work_dir, paths=[tmp_path], KILL_AT='4', exitcode=-signal.SIGKILL)
    assert max(losses(work_dir)) < EPOCHS * STEPS
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    train(hooked, work_dir, '--resume', paths=[tmp_path])
    assert losses(work_dir) == losses(trained)
    assert metrics(work_dir)[-1] == metrics(trained)[-1]


def test_a_checkpoint_can_be_named_to_resume(trained, train_here):
    later = {step: loss for step, loss in losses(trained).items() if step > 2 * STEPS}
    assert train_here('--resume', trained / 'epoch_2.pth') == later


def test_the_number_of_workers_changes_nothing(trained, train_here):
    assert train_here('--cfg-options', 'train_dataloader.num_workers=2') == losses(trained)


def test_another_seed_changes_the_run(trained, train_here):
    ours = train_here('--seed', '1', '--cfg-options', 'train_cfg.max_epochs=1')
    assert ours[1] != losses(trained)[1]


@pytest.mark.parametrize('method', ['bias', 'full'])
def test_averages_of_weights_are_saved_resumed_and_tested(run_tool, config, tmp_path, method):
    hook = "custom_hooks = [dict(type='EMAHook', momentum=0.3)]\n"
    path, last = config(method, hook), f'epoch_{EPOCHS}.pth'
    options = ['--cfg-options', 'optim_wrapper.optimizer.lr=1e-3']
    for name, resumed in dict(run=(), resumed=['--resume', tmp_path / 'run/epoch_1.pth']).items():
        run_tool('tools/train.py', path, '--work-dir', tmp_path / name, *resumed, *options)
    ours, theirs = (torch.load(tmp_path / n / last, weights_only=True) for n in ('run', 'resumed'))
    averages, trained = ours['state_dict'], ours['ema_state_dict']
    assert trained.keys() == {'steps', *(f'module.{name}' for name in averages)}
    differ = {name for name in averages if not averages[name].equal(trained[f'module.{name}'])}
    assert differ == {name for name in averages if not name.endswith('_extra_state')}
    for state in ('state_dict', 'ema_state_dict'):
        for name, value in ours[state].items():
            assert value.equal(theirs[state][name]), name
    run_tool('tools/test.py', path, tmp_path / 'run' / last, '--work-dir', tmp_path / 'test')
    assert results_of(tmp_path / 'test') == pytest.approx(metrics(tmp_path / 'run')[-1])


def test_learning_rate_scales_with_the_batch(train_here, tmp_path):
    train_here('--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=1')
    first = next(r for r in records(tmp_path) if 'lr' in r)
    assert first['lr'] == pytest.approx(1e-2 * 4 / 32)


def test_curves_in_tensorboard(train_here, tmp_path):
    """Another backend by a word of the command line."""
    backend = 'visualizer.vis_backends.0.type=TensorboardVisBackend'
    assert not train_here('--cfg-options', 'train_cfg.max_epochs=1', backend)
    [folder] = tmp_path.glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars('loss')] == list(range(1, STEPS + 1))


def test_a_compiled_model_trains_as_a_plain_one(run_tool, config, tmp_path):
    """By SGD, whose weights tell the gradients apart."""
    clip = copy.deepcopy(TINY_CLIP)  # a layer of each kind
    clip['vision_cfg']['layers'], clip['text_cfg']['layers'] = 2, 1
    (tmp_path / 'clip.json').write_text(json.dumps(clip))
    weights = save_clip(tmp_path / 'clip.json', tmp_path / 'clip.pt')
    options = [f'model.clip.name={tmp_path}/clip.json', f'model.clip.pretrained={weights}']
    options += ['train_cfg.max_epochs=1', 'optim_wrapper.optimizer.type=SGD']
    options += ['optim_wrapper.optimizer.lr=1.0']
    options += ['train_dataloader.drop_last=True']  # of one size, as each is compiled
    for name, more in dict(plain=[], compiled=["compile.backend='aot_eager'"]).items():
        options += more
        work_dir = '--work-dir', tmp_path / name, '--no-validate'
        run_tool('tools/train.py', config('vop_fc'), *work_dir, '--cfg-options', *options)
    plain, compiled = tmp_path / 'plain', tmp_path / 'compiled'
    assert len(losses(plain)) == STEPS - 1
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    ours, theirs = (
        torch.load(folder / 'epoch_1.pth', weights_only=True)['state_dict']
        for folder in (compiled, plain)
    )
    for name, value in theirs.items():
        if not name.endswith('_extra_state'):
            assert torch.allclose(ours[name], value, atol=1e-6), name


def test_a_trained_model_is_exported_and_tested(run_tool, trained, config, tmp_path):
    run_tool('tools/export.py', trained / f'epoch_{EPOCHS}.pth', tmp_path / 'shared')
    card = (tmp_path / 'shared/README.md').read_text()
    wanted = metrics(trained)[-1]
    assert f'| t2v | {wanted["t2v/R@1"]:.2f} |' in card and f'| epochs | {EPOCHS} |' in card
    assert 'Text-video retrieval by VoP,' in card
    run_tool('tools/test.py', config(), tmp_path / 'shared', '--work-dir', tmp_path / 'test')
    assert results_of(tmp_path / 'test') == pytest.approx(wanted)
    (trained / 'other.py').write_text('')
    with pytest.raises(UserError, match='2 configs.*--config'):
        run_tool('tools/export.py', trained / f'epoch_{EPOCHS}.pth', tmp_path / 'shared')
    (trained / 'other.py').unlink()


def test_a_flexible_runner_trains_resumes_and_tests(run_tool, trained, config, tmp_path):
    path, last = config(extra="runner_type = 'FlexibleRunner'\n"), f'epoch_{EPOCHS}.pth'
    run_tool('tools/train.py', path, '--work-dir', tmp_path / 'run')
    assert losses(tmp_path / 'run') == losses(trained)
    resumed = '--work-dir', tmp_path / 'resumed', '--resume', tmp_path / 'run/epoch_2.pth'
    run_tool('tools/train.py', path, *resumed)
    later = {step: loss for step, loss in losses(trained).items() if step > 2 * STEPS}
    assert losses(tmp_path / 'resumed') == later
    run_tool('tools/test.py', path, tmp_path / 'run' / last, '--work-dir', tmp_path / 'test')
    assert results_of(tmp_path / 'test') == pytest.approx(metrics(trained)[-1])
    with pytest.raises(UserError, match='text.prompts.0.tokens'):
        other = '--cfg-options', 'model.text.prompts.0.length=4'
        run_tool('tools/test.py', path, tmp_path / 'run' / last, '--work-dir', tmp_path, *other)
    zero_shot = config('zero_shot', "runner_type = 'FlexibleRunner'\n")
    with pytest.raises(UserError, match='Nothing trains'):
        run_tool('tools/train.py', zero_shot, '--work-dir', tmp_path / 'run')
    run_tool('tools/test.py', zero_shot, '--work-dir', tmp_path / 'zero')
    assert results_of(tmp_path / 'zero')


# What torchrun takes for Python: the first process starts anew, the other is forked.
ONE_ANEW = f"""#!/bin/sh
[ "$LOCAL_RANK" = 0 ] && exec {sys.executable} "$@"
exec "$FORKED_PYTHON" "$@"
"""


def test_two_processes_train_and_test_as_one(run_tool, forked_python, trained, config, tmp_path):
    """Five test videos, which do not divide by two."""
    (tmp_path / 'python').write_text(ONE_ANEW)
    (tmp_path / 'python').chmod(0o755)
    work_dir, batch = tmp_path / 'train', 'train_dataloader.batch_size=2'
    command = 'tools/dist_train.sh', config(), 2, '--work-dir', work_dir, '--cfg-options', batch
    env = dict(PYTHON_EXEC=str(tmp_path / 'python'), FORKED_PYTHON=forked_python)
    run(*command, PORT=free_port(), **env)
    assert losses(work_dir) == pytest.approx(losses(trained), rel=1e-4)

    checkpoint = trained / f'epoch_{EPOCHS}.pth'
    bank, dump = tmp_path / 'bank.pt', tmp_path / 'two.pt'
    options = (
        '--dump-embeddings',
        bank,
        '--cfg-options',
        'test_dataloader.dataset.ann_file=train.json',
    )
    one = '--work-dir', tmp_path / 'one'
    run_tool('tools/test.py', config(), checkpoint, *one, *options)
    options = '--qb-norm', bank, '--dsl', '--dump-embeddings', dump, '--launcher', 'pytorch'
    command = 'tools/test.py', config(), checkpoint, '--work-dir', tmp_path / 'two'
    in_two_processes(run_tool, *command, *options)
    results, plain = results_of(tmp_path / 'two'), metrics(trained)[-1]
    assert {name: results[name] for name in plain} == plain
    assert len(results) == 3 * len(plain)
    ours, theirs = (torch.load(path, weights_only=True) for path in (dump, bank))
    assert ours['weights_fingerprint'] == theirs['weights_fingerprint']
    assert ours['video_id'] == theirs['video_id']


def test_zero_shot_is_tested_by_one_process_and_by_two(run_tool, config, tmp_path):
    path = config('zero_shot')
    run_tool('tools/test.py', path, '--work-dir', tmp_path / 'one')
    two = '--work-dir', tmp_path / 'two', '--launcher', 'pytorch'
    in_two_processes(run_tool, 'tools/test.py', path, *two)
    assert results_of(tmp_path / 'one') == results_of(tmp_path / 'two') != {}


@pytest.mark.parametrize(
    'method, options, named',
    [
        ('vop', ['model.clip.pretrained={folder}/other_clip.pt'], ['/clip.pt', '/other_clip.pt']),
        ('vop_p', ['load_from={checkpoint}'], ['{checkpoint}', 'visual.prompts.1.tokens']),
        ('vop', ['model.text.prompts.0.length=4'], ['{checkpoint}', 'text.prompts.0.tokens']),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    run_tool, trained, config, method, options, named
):
    path, checkpoint = config(method), trained / f'epoch_{EPOCHS}.pth'
    places = dict(folder=Path(path).parent, checkpoint=checkpoint)
    options = [option.format(**places) for option in options]
    with pytest.raises(UserError) as error:
        run_tool('tools/test.py', path, checkpoint, '--cfg-options', *options)
    for name in named:
        assert name.format(**places) in str(error.value)


def test_a_bank_of_training_queries(run_tool, trained, config, tmp_path, capsys):
    """Dump the embeddings of the training set, then test with them."""
    bank = tmp_path / 'bank.pt'

    def run_test(epoch, *options):
        run_tool('tools/test.py', config(), trained / f'epoch_{epoch}.pth', *options)

    train_set = 'test_dataloader.dataset.ann_file=train.json'
    dump = '--work-dir', tmp_path / 'dump', '--dump-embeddings', bank
    run_test(EPOCHS, *dump, '--cfg-options', train_set)
    content = torch.load(bank, weights_only=True)
    assert content['video_id'] == [f'{number}.mp4' for number in range(5)]
    assert content['video_of_text'].tolist() == [n // 2 for n in range(10)]
    assert content['video'].shape == (5, 32)

    run_test(EPOCHS, '--work-dir', tmp_path / 'test', '--qb-norm', bank, '--dsl')
    result, plain = results_of(tmp_path / 'test'), metrics(trained)[-1]
    assert set(result) == {
        f'{prefix}{name}' for prefix in ('', 'dsl/', 'qb_norm/') for name in plain
    }
    assert {name: result[name] for name in plain} == pytest.approx(plain)
    capsys.readouterr()
    with pytest.raises(UserError, match='bank.pt'):  # of another epoch
        run_test(1, '--qb-norm', bank, '--work-dir', tmp_path / 'other')
    assert 'Epoch(test)' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, named',
    [
        (['--qb-norm', 'nowhere.pt'], 'nowhere.pt'),
        (['--qb-norm', 'setup.py'], 'setup.py'),
        (['--dsl', '-3'], '-3'),
        (['--dump-embeddings', 'tools'], 'tools'),
        (['--dsl', '--cfg-options', 'test_evaluator.type=RetrievalMetric'], 'vop.RetrievalMetric'),
    ],
)
def test_what_is_wrong_is_said_before_clip_is_opened(
    run_tool, config, monkeypatch, capsys, arguments, named
):
    monkeypatch.chdir(ROOT)
    with pytest.raises((UserError, SystemExit)) as error:
        run_tool('tools/test.py', config('zero_shot'), *arguments)
    output = capsys.readouterr()
    assert named in f'{error.value}{output.err}'
    assert 'CLIP' not in output.out


@pytest.mark.parametrize('tool', ['train', 'test'])
@pytest.mark.parametrize('work_dir', ['setup.py', 'setup.py/run', '/proc/run', 'a' * 300])
def test_a_work_dir_that_cannot_be_made(run_tool, config, monkeypatch, tool, work_dir):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=f'work dir {work_dir} cannot be made'):
        run_tool(f'tools/{tool}.py', config(), '--work-dir', work_dir)


@VISBACKENDS.register_module()
class OnFullDisk(LocalVisBackend):
    """A limit on the size of files stands for a full disk."""

    def add_config(self, config, **kwargs):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            super().add_config(config, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_a_disk_that_is_full_at_once_is_named(run_tool, config, tmp_path, tool):
    path = config(extra="visualizer = dict(vis_backends=[dict(type='OnFullDisk')])\n")
    with pytest.raises(UserError, match=f'{tmp_path}.*File too large'):
        run_tool(f'tools/{tool}.py', path, '--work-dir', tmp_path)


def test_a_strategy_that_needs_a_launcher(run_tool, config, tmp_path):
    path = config(extra="runner_type = 'FlexibleRunner'\nstrategy = dict(type='DDPStrategy')\n")
    with pytest.raises(UserError, match='DDPStrategy.*torchrun'):
        run_tool('tools/train.py', path, '--work-dir', tmp_path)


@pytest.mark.parametrize('option', ['--dump', '--dump-embeddings', '--report'])
def test_what_cannot_be_written_loses_no_metrics(run_tool, bad_config, tmp_path, capsys, option):
    path = bad_config(
        'zero_shot', f"custom_hooks = [dict(type='LoseFolder', folder='{tmp_path}/out')]"
    )
    out = tmp_path / 'out' / ('p.pkl' if option == '--dump' else 'page')
    with pytest.raises(UserError, match=str(out)):
        run_tool('tools/test.py', path, '--work-dir', tmp_path / 'run', option, out)
    assert 't2v/R@1: ' in capsys.readouterr().out
    assert (tmp_path / 'out').read_text() == 'in the way'


def test_lambda_of_dsl_and_dump_to_pickle_together(run_tool, config, tmp_path):
    dump = tmp_path / 'predictions.pkl'
    options = '--dsl', '30', '--dump', dump, '--work-dir', tmp_path
    run_tool('tools/test.py', config('zero_shot'), *options)
    assert 'dsl/t2v/R@1' in results_of(tmp_path)
    assert 'scale=30.0' in next(tmp_path.glob('*/vis_data/config.py')).read_text()
    assert dump.stat().st_size > 0


# A bad pixel of one video, a step that goes wrong, and a folder that is lost.
BAD = """
import pathlib
import shutil
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

@TRANSFORMS.register_module(force=True)
class BadPixel(BaseTransform):
    def transform(self, results):
        results['imgs'] = results['imgs'].astype(np.float32)
        if results['video_id'] == '3.mp4':
            results['imgs'].flat[5] = np.nan
        return results

@HOOKS.register_module(force=True)
class BadStep(Hook):
    def __init__(self, step):
        self.step = step

    def before_train(self, runner):
        runner.optim_wrapper.optimizer.register_step_post_hook(self.spoil)

    def spoil(self, optimizer, args, kwargs):
        self.step -= 1
        if not self.step:
            params = optimizer.param_groups[0]['params']
            next(p for p in params if p.requires_grad).data.flatten()[3] = torch.nan

@HOOKS.register_module(force=True)
class LoseFolder(Hook):
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def before_test(self, runner):
        shutil.rmtree(self.folder)
        self.folder.write_text('in the way')
"""
BAD_PIXEL = "pipeline.insert(-2, dict(type='BadPixel'))\n"


@pytest.fixture
def bad_config(config, tmp_path, monkeypatch):
    """Writes a config of a method with one of these."""
    (tmp_path / 'bad.py').write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'bad', raising=False)
    imports = "custom_imports = dict(imports=['projects.vop', 'bad'])\n"
    return lambda method, extra: config(method, f'{imports}{extra}')


@pytest.fixture
def train_badly(run_tool, bad_config, tmp_path):
    """Trains with one of these, until it stops; gives the error."""

    def train(extra, *options):
        path = bad_config('vop', extra)
        options = ('--cfg-options', *options) if options else ()
        work_dir = '--no-validate', '--work-dir', tmp_path / 'run'
        with pytest.raises(UserError) as error:
            run_tool('tools/train.py', path, *work_dir, *options)
        assert isinstance(error.value, NotFiniteError) is (extra != BAD_PIXEL)
        return str(error.value)

    return train


def test_a_loss_that_is_not_finite_stops_before_the_step(train_badly, tmp_path):
    said = train_badly(BAD_PIXEL)
    assert 'frames of 3.mp4 are not finite' in said and '0.mp4' not in said

    assert all(math.isfinite(loss) for loss in losses(tmp_path / 'run').values())
    assert not list(tmp_path.glob('run/*.pth'))


@pytest.mark.parametrize(
    'step, checkpoints', [(4, ['epoch_1']), (6, ['epoch_1']), (9, ['epoch_1', 'epoch_2'])]
)
def test_weights_that_are_not_finite_are_not_kept(train_badly, tmp_path, step, checkpoints):
    said = train_badly(f"custom_hooks = [dict(type='BadStep', step={step})]\n")
    assert 'prompts.0.tokens' in said
    assert ('.mp4' in said) == (step == 4)  # else the epoch is over
    assert sorted(path.stem for path in tmp_path.glob('run/*.pth')) == checkpoints
    assert max(losses(tmp_path / 'run')) == step


def test_a_learning_rate_that_is_far_too_high(train_badly, tmp_path):
    said = train_badly('', 'optim_wrapper.optimizer.lr=1e30')
    assert '.mp4' in said and 'learning rate' in said


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_a_checkpoint_that_is_not_finite_is_not_used(run_tool, trained, config, tmp_path, tool):
    path = tmp_path / 'bad.pth'
    checkpoint = torch.load(trained / 'epoch_1.pth', weights_only=True)
    checkpoint['state_dict']['text.prompts.0.tokens'][1] = torch.nan
    torch.save(checkpoint, path)
    with pytest.raises(NotFiniteError, match='text.prompts.0.tokens.*bad.pth'):
        options = [path] if tool == 'test' else ['--resume', path, '--no-validate']
        run_tool(f'tools/{tool}.py', config(), *options, '--work-dir', tmp_path)


def test_classes_in_place_of_names(run_tool, config, with_classes, tmp_path, video_folder):
    """MMEngine's pure Python style, with subclasses."""
    path = with_classes(Config.fromfile(config()))
    assert "type='vop" not in path.read_text()
    last = tmp_path / 'run' / 'epoch_1.pth'
    run_tool(
        *('tools/train.py', path, '--work-dir', last.parent),
        *('--cfg-options', 'train_cfg.max_epochs=1'),
    )
    options = '--dsl', '--dump-embeddings', tmp_path / 'e.pt', '--report', tmp_path / 'page'
    run_tool('tools/test.py', path, last, '--work-dir', tmp_path / 'test', *options)
    assert 'dsl/t2v/R@1' in results_of(tmp_path / 'test')
    tested = torch.load(tmp_path / 'e.pt', weights_only=True)
    assert (tmp_path / 'page/index.html').is_file()
    inferencer = VoPInferencer(str(path), str(last), show_progress=False)
    videos = [video_folder / name for name in tested['video_id']]
    found = inferencer.encode_videos(videos, num_workers=0).embeddings
    assert torch.allclose(found, tested['video'], atol=1e-5)


@pytest.mark.parametrize('listed', [False, True])
def test_the_metric_in_an_evaluator(run_tool, config, tmp_path, listed):
    metric = "dict(type='vop.RetrievalMetric', rescoring=[dict(type=DSL, scale=3.0)])"
    metric = f'[{metric}]' if listed else metric
    extra = f'test_evaluator = dict(_delete_=True, metrics={metric})\n'
    extra = f'from projects.vop.evaluation import DSL\n{extra}'
    dump = tmp_path / 'predictions.pkl'
    options = '--dsl', '30', '--dump', dump, '--work-dir', tmp_path
    run_tool('tools/test.py', config('zero_shot', extra), *options)
    assert 'dsl/t2v/R@1' in results_of(tmp_path)
    assert 'scale=30.0' in next(tmp_path.glob('*/vis_data/config.py')).read_text()
    assert dump.stat().st_size > 0


def test_amp_without_a_gpu_says_why_not(run_tool, config, tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(UserError, match='--amp needs a GPU'):
        run_tool('tools/train.py', config(), '--work-dir', tmp_path, '--amp')


def test_a_user_error_is_one_line_and_a_bug_keeps_its_traceback(tmp_path):
    """Exit code 2 against Python's own 1."""
    printed = run_forked('tools/train.py', 'configs/nothing.py', exitcode=2)
    [line] = [line for line in printed.splitlines() if 'nothing.py' in line]
    assert line.startswith('train.py: error: ')
    assert 'Traceback' not in printed
    buggy = tmp_path / 'buggy.py'
    buggy.write_text("model = dict(type='vop.VideoEncoder', clip=dict(nam='ViT-B-32'))\n")
    assert 'Traceback' in run_forked('tools/train.py', buggy, exitcode=1)


@pytest.mark.parametrize(
    'script, arguments, wanted',
    [
        ('slurm_train.sh', ['c.py', '--amp'], 'tools/train.py c.py --amp --launcher slurm'),
        (
            'slurm_test.sh',
            ['c.py', 'k.pth', '--dump', 'd.pkl'],
            'tools/test.py c.py k.pth --dump d.pkl --launcher slurm',
        ),
        ('slurm_test.sh', ['c.py'], 'tools/test.py c.py --launcher slurm'),
    ],
)
def test_slurm_scripts(tmp_path, script, arguments, wanted):
    """With a stand-in for ``srun`` that prints what it would start."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@" WORLD_SIZE=$WORLD_SIZE')
    srun.chmod(0o755)
    done = subprocess.run(
        [ROOT / 'tools' / script, 'part', 'job', *arguments],
        env=dict(os.environ, GPUS='4', PATH=f'{tmp_path}:{os.environ["PATH"]}'),
        capture_output=True,
        text=True,
        check=True,
    )
    for text in ('-p part --job-name=job --gres=gpu:4', '--ntasks=4', wanted):
        assert text in done.stdout
    if script == 'slurm_train.sh':
        assert 'WORLD_SIZE=4' in done.stdout


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_launchers_say_how_they_are_used(script):
    assert run(f'tools/{script}', ok=False).startswith('usage:')
