"""Trainings that are killed, moved, copied, or resumed with other settings."""

import errno
import itertools
import math
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, records, save_clip
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook as MMEngineHook
from mmengine.logging import MessageHub
from mmengine.registry import METRICS

from projects.vop.engine import CheckpointHook, find_checkpoint, use_checkpoint_hook
from projects.vop.engine.checkpoint_hook import rule_of
from projects.vop.errors import UserError
from projects.vop.fileio import file_lock

pytestmark = pytest.mark.usefixtures('read_here')

STEPS = 3  # 10 pairs in batches of 4
SCORES = [1.0, 3.0, 2.0, 4.0]

CONFIG = """
_base_ = '{root}/configs/moving_shapes/{method}.py'
model = dict(clip=dict(name='{clip}', pretrained='{weights}'), visual=dict(num_frames=2))
pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=2, num_clips=1),
    dict(type='DecordDecode'),
    dict(type='RandomResizedCrop', area_range=(0.5, 1.0)),
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(type='PackActionInputs', collect_keys=('imgs', 'text'), meta_keys=('video_id', ))
]
test_pipeline = [pipeline[0], dict(pipeline[1], test_mode=True), pipeline[2], *pipeline[4:]]
loader = dict(num_workers=0, persistent_workers=False)
data = dict(data_root='{videos}', data_prefix=dict(video=''), timeout=60)
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=pipeline, **data), **loader)
val_dataloader = dict(batch_size=5, dataset=dict(pipeline=test_pipeline, **data), **loader)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=3, val_interval=1)
val_evaluator = [dict(type='vop.RetrievalMetric'), dict(type='ScoreOfEpoch')]
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=1, save_best='score', rule='greater'))
log_processor = dict(window_size=1)
"""


BY_ITERATIONS = """
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=9, val_interval=3)
param_scheduler = dict(
    _delete_=True, type='CosineAnnealingLR', eta_min=0, T_max=9, by_epoch=False)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=3, by_epoch=False, save_best='score', rule='greater'))
log_processor = dict(window_size=1, by_epoch=False)
"""


@METRICS.register_module()
class ScoreOfEpoch(BaseMetric):
    """So that the best epoch is known."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        epoch = (MessageHub.get_current_instance().get_info('iter') + 1) // STEPS
        return dict(score=SCORES[epoch - 1], neg=-SCORES[epoch - 1])


@pytest.fixture(scope='module')
def config(tiny_clip, video_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp('configs')
    places = dict(root=ROOT, clip=tiny_clip, videos=video_folder)
    places['weights'] = save_clip(tiny_clip, folder / 'clip.pt')
    for method in ('vop', 'vop_p'):
        (folder / f'{method}.py').write_text(CONFIG.format(method=method, **places))
    (folder / 'iterations.py').write_text(f'{CONFIG.format(method="vop", **places)}{BY_ITERATIONS}')
    return folder / 'vop.py'


@pytest.fixture
def train(run_tool, config):
    def train(work_dir, *arguments, options=(), method='vop'):
        options = ['--cfg-options', *options] if options else []
        path = config.with_stem(method)
        run_tool('tools/train.py', path, '--work-dir', work_dir, *arguments, *options)

    return train


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('trained')


@pytest.fixture
def trained(train, folder):
    """The folder of an uninterrupted run; not to be changed."""
    if not (folder / 'last_checkpoint').exists():
        train(folder)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / 'copied')


def kill(train, *arguments, event, name, number=1, **kwargs):
    """Train in a process that is killed right before its `number`-th `event` of a file."""
    pid = os.fork()
    if not pid:
        count = itertools.count(1)

        def audit(what, values):
            if what == event and Path(str(values[what == 'os.rename'])).name == name:
                if next(count) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            train(*arguments, **kwargs)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
    status = os.waitpid(pid, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL, f'{name} had fewer than {number} {event}'


def result(work_dir):
    """What must not depend on interruptions."""
    logged = records(work_dir)
    metrics = {
        record['step']: {key: value for key, value in record.items() if '2' in key}
        for record in logged
        if 'score' in record
    }
    losses = {record['step']: record['loss'] for record in logged if 'loss' in record}
    rates = {record['step']: record['lr'] for record in logged if 'loss' in record}
    names = {path.name.split('-')[0] for path in work_dir.iterdir() if path.is_file()}
    states = {path.name: state(path) for path in work_dir.glob('*.pth') if '-' not in path.name}
    return dict(metrics=metrics, losses=losses, rates=rates, names=names, states=states)


def state(path):
    checkpoint = torch.load(path, weights_only=True)
    weights = {k: v.tolist() for k, v in checkpoint['state_dict'].items()}
    known = {k: checkpoint['meta'][k] for k in ('epoch', 'iter', 'seed')}
    hub = checkpoint['message_hub']['runtime_info']
    return weights, known, hub.get('best_score'), Path(hub.get('best_ckpt', '')).name


KILLS = [
    ('os.rename', 'last_checkpoint', 3),  # epoch_2 is written
    ('os.rename', 'best_score_epoch_2.pth', 1),
    ('os.remove', 'best_score_epoch_1.pth', 1),
    ('os.rename', 'epoch_2.pth', 2),  # the old best is removed
    ('os.rename', 'epoch_3.pth', 2),  # the last one is validated
]


@pytest.mark.slow
@pytest.mark.parametrize('event, name, number', KILLS)
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    train, trained, tmp_path, event, name, number
):
    kill(train, tmp_path, event=event, name=name, number=number)
    assert [*tmp_path.glob('best_*.pth')]
    train(tmp_path, '--resume')
    assert result(tmp_path) == result(trained)


@pytest.mark.slow
def test_with_one_checkpoint_kept_there_is_one_at_any_time(train, tmp_path):
    keep = dict(options=['default_hooks.checkpoint.max_keep_ckpts=1'])
    kill(train, tmp_path, event='os.remove', name='epoch_1.pth', **keep)
    assert {p.name for p in tmp_path.glob('epoch*')} == {'epoch_1.pth', 'epoch_2.pth'}
    kill(train, tmp_path, '--resume', event='os.rename', name='epoch_3.pth', **keep)
    assert {p.name for p in tmp_path.glob('epoch*')} == {'epoch_2.pth', 'epoch_3.pth.part'}
    train(tmp_path, '--resume', **keep)
    assert {p.name.split('-')[0] for p in tmp_path.glob('epoch*')} == {'epoch_3', 'epoch_3.pth'}


@pytest.mark.slow
def test_training_by_iterations_is_killed_and_resumed(train, tmp_path, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # MMEngine's, between epochs
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    train(whole, method='iterations')
    name = 'best_score_iter_6.pth'
    assert (whole / name).exists()
    kill(train, cut, event='os.rename', name=name, method='iterations')
    train(cut, '--resume', method='iterations')
    assert result(cut) == result(whole)


CUT = [(4, 1, 'epoch 2, which is repeated'), (6, 2, 'the last of epoch 2')]


@pytest.mark.slow
def test_checkpoints_by_iterations_in_epochs_are_resumed_at_an_epoch(train, tmp_path, said):
    options = [f'default_hooks.checkpoint.{o}' for o in ('by_epoch=False', 'interval=2')]
    whole = tmp_path / 'whole'
    train(whole, '--no-validate', options=options)
    rates = {record['step']: record['lr'] for record in records(whole)}
    said()
    for step, epochs, where in CUT:
        cut = tmp_path / str(step)
        train(cut, '--no-validate', '--resume', whole / f'iter_{step}.pth', options=options)
        [line] = (line for line in said() if 'was written at' in line)
        assert f'iter_{step}.pth' in line and where in line
        steps = range(epochs * STEPS + 1, 3 * STEPS + 1)
        found = {record['step']: record['lr'] for record in records(cut)}
        assert found == {step: pytest.approx(rates[step]) for step in steps}
        state_of_whole, state_of_cut = state(whole / 'iter_9.pth'), state(cut / 'iter_9.pth')
        assert (state_of_whole == state_of_cut) is (step == epochs * STEPS)


@pytest.mark.slow
@pytest.mark.parametrize('other', [(None, 0, None), ('epoch_2.pth', 6, 'another')])
def test_processes_that_read_different_checkpoints_are_refused(
    train, trained, tmp_path, monkeypatch, other
):
    monkeypatch.setattr('projects.vop.engine.resume.all_gather_object', lambda ours: [ours, other])
    with pytest.raises(
        UserError, match='different checkpoints: .*epoch_2.pth .step 6, 20'
    ) as error:
        train(tmp_path, '--resume', trained / 'epoch_2.pth')
    assert f'{other[0]} (step {other[1]}, {other[2]})' in str(error.value)


def test_a_checkpoint_that_does_not_say_its_settings_is_remarked(train, trained, tmp_path, said):
    path = tmp_path / 'epoch_3.pth'
    checkpoint = torch.load(trained / 'epoch_3.pth', weights_only=True)
    checkpoint['meta']['cfg'] = 'model = ('
    torch.save(checkpoint, path)
    train(tmp_path, '--resume', '--no-validate')
    assert any(f'{path} does not say with which settings' in line for line in said())


# Folders


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def cut_back(folder, epoch):
    """Leave of a run what it was after an epoch; the best one is of epoch 1."""
    for path in [*folder.glob('best*'), *folder.glob('epoch*')]:
        if path.name > f'epoch_{epoch}.pth' or path.name.startswith('best'):
            path.unlink()
    (folder / 'last_checkpoint').write_text(str(folder / f'epoch_{epoch}.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('moved', [True, False])
def test_a_folder_can_be_moved_or_copied(train, trained, copied, tmp_path, moved):
    """The paths in its files are of the place where it was."""
    before = contents(trained)
    cut_back(copied, 1)
    if moved:
        (copied / 'last_checkpoint').write_text('/nowhere/else/epoch_1.pth')
    else:
        (copied / 'last_checkpoint').write_text(str(trained / 'epoch_1.pth'))
    train(copied, '--resume')
    assert result(copied) == result(trained)
    assert contents(trained) == before


@pytest.mark.slow
@pytest.mark.parametrize('epoch, best', [(2, 2), (3, 2), (1, 2)])
def test_a_run_that_goes_on_elsewhere_leaves_the_first_folder_alone(
    train, trained, tmp_path, epoch, best
):
    before = contents(trained)
    train(tmp_path, '--resume', trained / f'epoch_{epoch}.pth')
    assert contents(trained) == before
    [path] = (p for p in tmp_path.glob('best*.pth') if '-' not in p.name)
    assert path.name == f'best_score_epoch_{best}.pth'
    assert state(path)[0] == state(trained / path.name)[0]
    assert len([*tmp_path.glob('best*-*.pth')]) == 1


@pytest.mark.slow
def test_a_run_whose_files_are_numbered_with_zeros_goes_on_elsewhere(train, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    zeros = dict(options=['default_hooks.checkpoint.filename_tmpl=epoch_{:03d}.pth'])
    train(first, **zeros)
    train(second, '--resume', first / 'epoch_002.pth', **zeros)
    assert {path.name for path in second.glob('best*.pth') if '-' not in path.name} == {
        'best_score_epoch_002.pth'
    }


@pytest.mark.slow
def test_a_best_checkpoint_that_is_lost_is_made_again(train, trained, copied):
    """As of a run that an older version cut off between two best ones."""
    for path in copied.glob('best*'):
        path.unlink()
    train(copied, '--resume')
    best = 'best_score_epoch_2.pth'
    assert state(copied / best)[:2] == state(trained / best)[:2]
    for path in [*copied.glob('best*'), copied / 'epoch_2.pth']:
        path.unlink()
    train(copied, '--resume', options=['train_cfg.max_epochs=4'])
    assert (copied / 'best_score_epoch_4.pth').exists()


# Damage


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose(path):
    """A block of it, in its tensors."""
    data = path.read_bytes()
    start = len(data) // 3
    path.write_bytes(data[:start] + bytes(512) + data[start + 512 :])


DAMAGE = dict(
    lost=lambda f: lose(f / 'epoch_3.pth'),
    half=lambda f: half(f / 'epoch_3.pth'),
    empty=lambda f: ((f / 'epoch_3.pth').unlink(), (f / 'last_checkpoint').write_text('')),
    binary=lambda f: ((f / 'epoch_3.pth').unlink(), (f / 'last_checkpoint').write_bytes(b'\xff\0')),
    missing=lambda f: (f / 'epoch_3.pth').unlink(),
)


@pytest.fixture
def said(capsys):
    """Warnings of a run."""

    def read():
        text = ''.join(capsys.readouterr())
        return [line for line in text.splitlines() if 'WARNING' in line and 'prefix' not in line]

    return read


@pytest.mark.slow
@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_the_newest_checkpoint_that_can_be_read_is_taken(train, trained, copied, said, damage):
    damage(copied)
    train(copied, '--resume')
    assert any(str(copied / 'epoch_2.pth') in line for line in said())
    assert result(copied) == result(trained)


@pytest.mark.slow
def test_where_no_checkpoint_can_be_read_training_starts_again(train, trained, copied, said):
    for path in copied.glob('*.pth'):
        half(path)
    train(copied, '--resume')
    assert any(str(copied / 'epoch_3.pth') in line for line in said())
    assert result(copied) == result(trained)


@pytest.mark.slow
def test_what_is_no_checkpoint_of_a_training_is_named(train, trained, config, tmp_path):
    published = next(trained.glob('epoch_3-*.pth'))
    best = trained / 'best_score_epoch_2.pth'
    for path, named in [
        (published, trained / 'epoch_3.pth'),
        (best, trained / 'epoch_2.pth'),
        (next(trained.glob('best*-*.pth')), trained / 'epoch_2.pth'),
        (shutil.copy(published, tmp_path), 'epoch_N.pth'),
        (config.with_name('clip.pt'), 'load_from='),
        (trained, 'folder'),
        (tmp_path / 'none.pth', 'none.pth'),
    ]:
        with pytest.raises(UserError) as error:
            train(tmp_path / 'work', '--resume', path)
        assert str(path) in str(error.value) and str(named) in str(error.value)


@pytest.mark.parametrize(
    'fault, raised',
    [
        (OSError(errno.EIO, 'Input/output error'), UserError),
        (OSError(errno.EMFILE, 'Too many open files'), UserError),
        (MemoryError(), MemoryError),
        (RuntimeError("can't allocate"), RuntimeError),  # of torch
    ],
)
def test_what_the_system_cannot_read_is_not_passed_over(trained, monkeypatch, fault, raised):
    load = torch.load

    def fail(path, *args, mmap=False, **kwargs):
        if Path(path).name == 'epoch_3.pth' and not mmap:
            raise fault
        return load(path, *args, mmap=mmap, **kwargs)

    monkeypatch.setattr(torch, 'load', fail)
    with pytest.raises(raised) as error:
        find_checkpoint(Config(dict(work_dir=str(trained))))
    if raised is UserError:
        assert f'epoch_3.pth cannot be read: {fault.strerror}' in str(error.value)


# Other settings


@pytest.mark.slow
def test_what_differs_is_said_once_and_the_rate_follows(train, copied, said):
    cut_back(copied, 2)
    rate = 'optim_wrapper.optimizer.lr=1e-3'
    train(copied, '--resume', '--seed', '7', options=[rate, 'train_cfg.max_epochs=4'])
    rates = {record['step']: record['lr'] for record in records(copied) if 'loss' in record}
    for step in range(2 * STEPS + 1, 4 * STEPS + 1):
        share = (1 + math.cos(math.pi * (step - 1) / (4 * STEPS))) / 2
        assert rates[step] == pytest.approx(1e-3 * share)
    lines = said()
    [line] = (line for line in lines if 'other settings' in line)
    for text in ('lr=0.001 (was 0.01)', 'max_epochs=4 (was 3)', 'learning rate is now 0.0005'):
        assert text in line
    assert len([line for line in lines if 'seed 7' in line]) == 1
    assert (copied / 'best_score_epoch_4.pth').exists()


@pytest.mark.slow
def test_another_batch(train, copied, said):
    cut_back(copied, 2)
    train(copied, '--resume', '--no-validate', options=['train_dataloader.batch_size=2'])
    [line] = (line for line in said() if 'other settings' in line)
    assert 'batch_size in total=2 (was 4)' in line and 'steps in an epoch=5 (was 3)' in line
    last = torch.load(copied / 'epoch_3.pth', weights_only=True)
    assert (last['meta']['epoch'], last['meta']['iter']) == (3, 15)
    assert records(copied)[-1]['lr'] < 3e-4  # of the last step: the schedule came to its end


@pytest.mark.slow
@pytest.mark.parametrize(
    'options, named',
    [
        (dict(method='vop_p'), 'visual.prompts.1.tokens'),
        (dict(options=['model.text.prompts.0.length=4']), 'text.prompts.0.tokens'),
        (dict(options=['optim_wrapper.optimizer.type=Adam']), 'AdamW'),
        (dict(method='iterations'), 'EpochBasedTrainLoop'),
        (dict(options=['optim_wrapper.paramwise_cfg.norm_decay_mult=0.0']), 'groups'),
    ],
)
def test_what_cannot_be_resumed_is_refused(train, trained, tmp_path, options, named):
    with pytest.raises(UserError) as error:
        train(tmp_path, '--resume', trained / 'epoch_2.pth', **options)
    assert named in str(error.value) and str(trained / 'epoch_2.pth') in str(error.value)


@pytest.mark.slow
def test_the_same_settings_are_not_remarked(train, copied, said):
    cut_back(copied, 2)
    train(copied, '--resume', '--no-validate', options=['default_hooks.logger.interval=2'])
    assert not [line for line in said() if 'settings' in line or 'epoch_2' in line]


# The work dir


def test_two_trainings_do_not_share_a_folder(train, tmp_path):
    """The other is a process that stands still with the lock."""
    ready, write = os.pipe()
    pid = os.fork()
    if not pid:
        with file_lock(tmp_path / '.lock'):
            os.write(write, b'.')
            signal.pause()
    os.read(ready, 1)
    try:
        with pytest.raises(UserError, match=f'Another run .* {tmp_path} .*process {pid} '):
            train(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


@pytest.mark.slow
def test_a_full_disk_names_the_checkpoint_and_the_run_is_resumed(train, trained, copied):
    cut_back(copied, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (copied / 'epoch_1.pth').stat().st_size  # a best one lacks the optimizer's state
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 2000, limits[1]))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(UserError, match='epoch_2.pth cannot be written'):
            train(copied, '--resume')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*copied.glob('*.part')]
    train(copied, '--resume')
    assert result(copied) == result(trained)


# Rules


@pytest.mark.parametrize('metric', ['t2v/MnR', 'v2t/MdR', 'qb_norm/t2v/MnR', 'top/t2v/MnR', 'loss'])
def test_less_of_these_is_better(metric):
    assert rule_of(metric) == 'less'
    hook = CheckpointHook(save_best=['t2v/R@1', metric])
    assert hook.rules == ['greater', 'less']
    assert CheckpointHook(save_best=metric, rule='greater').rules == ['greater']
    assert CheckpointHook(save_best=metric, greater_keys=metric).rules == ['greater']


@pytest.mark.parametrize('metric', ['t2v/R@1', 'dsl/v2t/R@10', 'acc/top1', 'mAP', 'Rsum'])
def test_more_of_these_is_better(metric):
    assert CheckpointHook(save_best=metric).rules == ['greater']


def test_a_metric_that_tells_nothing_is_named():
    with pytest.raises(UserError, match='save_best=odd.*rule'):
        CheckpointHook(save_best='odd')
    assert CheckpointHook(save_best='odd', rule='less').rules == ['less']


@pytest.mark.slow
def test_the_best_by_several_metrics_in_a_config_of_mmengine(train, tmp_path, said):
    hook = 'default_hooks.checkpoint'
    options = [f'{hook}.save_best=score,neg', f'{hook}.rule=greater,less']
    train(tmp_path, options=[f'{hook}.type=CheckpointHook', *options])
    best = {path.name for path in tmp_path.glob('best*.pth') if '-' not in path.name}
    assert best == {'best_score_epoch_2.pth', 'best_neg_epoch_2.pth'}
    # Of another metric, the scores so far are not comparable.
    train(tmp_path, '--resume', options=[f'{hook}.save_best=neg', f'{hook}.rule=greater'])
    assert any('save_best' in line for line in said())
    # That run had come to its end: what was published is not published again.
    assert len([*tmp_path.glob('epoch_3-*.pth')]) == 1


@pytest.mark.slow
def test_a_metric_that_is_not_there_is_named(train, tmp_path):
    with pytest.raises(UserError, match=r'save_best=t2v/R@2 .* t2v/R@1, '):
        train(tmp_path, options=['default_hooks.checkpoint.save_best=t2v/R@2'])


class OwnHook(MMEngineHook):
    pass


def test_a_hook_of_ones_own_stays():
    for kind, taken in [
        ('CheckpointHook', True),
        ('mmengine.CheckpointHook', True),
        (MMEngineHook, True),
        (OwnHook, False),
    ]:
        cfg = Config(dict(default_hooks=dict(checkpoint=dict(type=kind))))
        use_checkpoint_hook(cfg)
        assert (cfg.default_hooks.checkpoint.type == 'vop.CheckpointHook') is taken
    cfg = Config(dict(default_hooks=dict(checkpoint=None)))
    use_checkpoint_hook(cfg)
    assert cfg.default_hooks.checkpoint is None
