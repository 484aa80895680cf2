"""tools/analysis/profile_training.py."""

import importlib.util
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from projects.vop.datasets import ReproducibleSampler
from projects.vop.engine import profiling

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = 'tools/analysis/profile_training.py'
PARTS = {'data', 'transfer', 'forward', 'backward', 'optimizer'}
# 10 pairs: 5 steps of 2, or 3 of 4.
PAIRS = 10

CONFIG = """
_base_ = ['{root}/configs/_base_/models/vop.py',
          '{root}/configs/_base_/schedules/adamw_5e.py',
          '{root}/configs/_base_/runtime.py']
custom_imports = dict(imports=['projects.vop', 'profile_parts'],
                      allow_failed_imports=False)
experiment_name = '{name}'  # MMEngine has one logger a name and second
model = dict(
    type='{model}',
    clip=dict(name='{clip}', pretrained=None),
    visual=dict(num_frames=2))
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=True,  # which torch refuses without workers
    sampler=dict(type='vop.ReproducibleSampler', shuffle=True),
    dataset=dict(
        type='vop.VideoTextDataset',
        data_root='{videos}',
        ann_file='train.json',
        pipeline=[
            dict(type='DecordInit'),
            dict(type='UniformSample', clip_len=2, num_clips=1),
            dict(type='DecordDecode'),
            dict(type='Resize', scale=(32, 32), keep_ratio=False),
            dict(type='Flip', flip_ratio=0.5),
            dict(type='FormatShape', input_format='NCHW'),
            dict(type='vop.CLIPTokenize'),
            dict(type='Sleep', seconds={read}),
            dict(type='PackActionInputs', collect_keys=('imgs', 'text'),
                 meta_keys=('video_id', ))
        ]))
"""

RECOGNIZER = """
_base_ = ['{root}/configs/_base_/schedules/adamw_5e.py',
          '{root}/configs/_base_/runtime.py']
model = dict(
    type='Recognizer2D',
    backbone=dict(type='ResNet', depth=18, pretrained=None),
    cls_head=dict(type='TSNHead', num_classes=3, in_channels=512),
    data_preprocessor=dict(type='ActionDataPreprocessor', mean=[127.5] * 3,
                           std=[127.5] * 3, format_shape='NCHW'))
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='VideoDataset',
        data_prefix=dict(video='{videos}'),
        ann_file='{annotations}',
        pipeline=[
            dict(type='DecordInit'),
            dict(type='SampleFrames', clip_len=1, num_clips=2),
            dict(type='DecordDecode'),
            dict(type='Resize', scale=(32, 32), keep_ratio=False),
            dict(type='FormatShape', input_format='NCHW'),
            dict(type='PackActionInputs')
        ]))
"""

# What tests put into a config.
MODULE = '''
import time
import torch
from mmcv.transforms import BaseTransform
from projects.vop.models import RetrievalRecognizer
from projects.vop.registry import MODELS
from mmaction.registry import TRANSFORMS

@TRANSFORMS.register_module()
class Sleep(BaseTransform):
    def __init__(self, seconds):
        self.seconds = seconds

    def transform(self, results):
        time.sleep(self.seconds)
        return results

@MODELS.register_module()
class SleepingRecognizer(RetrievalRecognizer):
    def forward(self, *args, **kwargs):
        time.sleep(.1)
        return super().forward(*args, **kwargs)

@MODELS.register_module()
class SmallMemory(RetrievalRecognizer):
    """Has memory for 2 videos at a time, or for none."""
    videos = 2

    def forward(self, inputs, *args, **kwargs):
        if len(inputs['imgs']) > self.videos:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')
        return super().forward(inputs, *args, **kwargs)

@MODELS.register_module()
class NoMemory(SmallMemory):
    videos = 0

class RunOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory.')

@MODELS.register_module()
class BackwardMemory(RetrievalRecognizer):
    """Runs out of memory in the backward of the second step with a batch of
    more than 2."""
    passes = 0

    def encode_video(self, frames):
        video = super().encode_video(frames)
        self.passes += len(frames) > 2
        return RunOut.apply(video) if self.passes > 2 else video

    def forward(self, inputs, *args, **kwargs):
        if len(inputs['imgs']) <= 2:
            self.passes = 0
        return super().forward(inputs, *args, **kwargs)

@MODELS.register_module()
class LateMemory(RetrievalRecognizer):
    """Runs out of memory in a later step."""
    passes = 0

    def forward(self, inputs, *args, **kwargs):
        self.passes += 1
        if self.passes > 4:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')
        return super().forward(inputs, *args, **kwargs)
'''


@pytest.fixture(scope='module')
def tool():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location('profile_training', ROOT / SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def modules(tmp_path_factory):
    """Folder of the module that the configs import."""
    folder = tmp_path_factory.mktemp('modules')
    (folder / 'profile_parts.py').write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def config(tmp_path, tiny_clip, video_folder, modules):
    """Writes a config; gives its path."""

    def write(extra='', model='vop.RetrievalRecognizer', read=0.0):
        path = tmp_path / 'config.py'
        path.write_text(
            CONFIG.format(
                root=ROOT,
                name=tmp_path.name,
                clip=tiny_clip,
                videos=video_folder,
                model=model,
                read=read,
            )
            + extra
        )
        return str(path)

    return write


@pytest.fixture
def profile(tool, tmp_path, monkeypatch, capsys):
    """Runs the script in this process; gives its figures and its output."""

    def run(config, *arguments, steps=3):
        file = tmp_path / 'figures.json'
        monkeypatch.setattr(
            sys,
            'argv',
            [
                SCRIPT,
                config,
                '--steps',
                str(steps),
                '--warmup',
                '1',
                '--json',
                str(file),
                *map(str, arguments),
            ],
        )
        tool.main()
        return json.loads(file.read_text()), capsys.readouterr().out

    return run


def run(modules, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=dict(
            os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(modules)]), OMP_NUM_THREADS='1'
        ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def table(output):
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in output.splitlines()
        if line.startswith('|')
    ]
    assert len({len(row) for row in rows}) == 1
    return [dict(zip(rows[0], row)) for row in rows[2:]]


def check(row):
    """Figures of a row that must agree with each other."""
    assert set(row['share']) == set(row['part_ms']) == PARTS
    assert all(share > 0 for share in row['share'].values())
    assert sum(row['share'].values()) == pytest.approx(1)
    assert sum(row['part_ms'].values()) == pytest.approx(row['split_step_ms'])
    for part in PARTS:
        assert row['share'][part] == pytest.approx(row['part_ms'][part] / row['split_step_ms'])
    assert row['pairs_in_data_set'] == PAIRS
    assert row['epoch_s'] == pytest.approx(PAIRS / row['pairs_per_s'] + row['start_up_s'])
    for key in ('read_alone_pairs_per_s', 'model_alone_pairs_per_s'):
        assert row[key] > 0


def test_every_combination_is_a_row(config, modules, video_folder, tmp_path):
    (tmp_path / 'copy').symlink_to(video_folder)
    before = set(ROOT.rglob('work_dirs/**')) | set(ROOT.iterdir())
    output = run(
        modules,
        SCRIPT,
        config(),
        '--steps',
        2,
        '--warmup',
        1,
        '--batch-size',
        1,
        2,
        '--num-workers',
        0,
        2,
        '--data-root',
        video_folder,
        tmp_path / 'copy',
        '--json',
        tmp_path / 'figures.json',
    )
    assert set(ROOT.rglob('work_dirs/**')) | set(ROOT.iterdir()) == before
    figures = json.loads((tmp_path / 'figures.json').read_text())
    wanted = [
        (batch, workers, str(root))
        for batch in (1, 2)
        for root in (video_folder, tmp_path / 'copy')
        for workers in (0, 2)
    ]
    assert [
        (row['batch_size'], row['num_workers'], row['data_root']) for row in figures['rows']
    ] == wanted
    assert [(row['batch'], row['workers'], row['data']) for row in table(output)] == [
        tuple(map(str, row)) for row in wanted
    ]
    for row in figures['rows']:
        check(row)
        # Both batches divide the 10 pairs: every step has the same number.
        assert row['pairs_per_s'] == pytest.approx(1000 * row['batch_size'] / row['step_ms'])
    best = max(figures['rows'], key=lambda row: row['pairs_per_s'])
    assert figures['best'] == dict(
        best, **{key: figures['best'][key] for key in figures['best'].keys() - best.keys()}
    )
    for text in (
        f'Best: batch {best["batch_size"]} and '
        f'{best["num_workers"]} workers, {best["data_root"]}: ',
        'An epoch of 10 pairs takes ',
        'Bottleneck: ',
        'What to do: ',
        'What keeps the ',
    ):
        assert text in output
    assert (
        'The config trains on 4 pairs a step in all; 1, 2 in all changes what is trained'
    ) in output


def test_two_processes_are_measured_together(config, modules, tmp_path):
    """Also after both ran out of memory amid an exchange of gradients."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    output = run(
        modules,
        '-m',
        'torch.distributed.run',
        '--nproc_per_node',
        2,
        '--master_port',
        port,
        SCRIPT,
        config(model='vop.BackwardMemory'),
        '--launcher',
        'pytorch',
        '--steps',
        2,
        '--warmup',
        1,
        '--num-workers',
        1,
        '--batch-size',
        4,
        1,
        '--json',
        tmp_path / 'figures.json',
    )
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['processes'] == 2
    assert len(table(output)) == 2  # printed by one of them
    large, one = figures['rows']
    assert large['out_of_memory']
    check(one)
    assert one['pairs_per_s'] == pytest.approx(2 * 1000 / one['step_ms'])
    assert ' in each process' in output
    assert (
        'The config trains on 8 pairs a step in all; 2 in all changes what is trained'
    ) in output


def test_of_several_ranks_the_slowest_counts():
    def rank(seconds):
        return dict(seconds=seconds, pairs=20, steps=10)

    def parts(data):
        return dict(data=data, transfer=1, forward=1, backward=8 - data, optimizer=0)

    row = profiling.summarize(
        dict(batch_size=2),
        model=[rank(1), rank(2)],
        start=[rank(3), rank(1)],
        read=[rank(4), rank(1)],
        train=[dict(rank(5), memory=7), dict(rank(2), memory=9)],
        split=[parts(2), parts(6)],
        pairs=80,
        steps_in_epoch=20,
    )
    assert row['model_alone_pairs_per_s'] == 40 / 2
    assert row['read_alone_pairs_per_s'] == 40 / 4
    assert row['pairs_per_s'] == 40 / 5
    assert row['step_ms'] == 500
    assert row['start_up_s'] == 3
    assert row['epoch_s'] == 80 / 8 + 3
    assert row['share']['data'] == 0.6
    assert row['peak_gpu_memory_bytes'] == 9


@pytest.mark.parametrize(
    'options', ['', 'optim_wrapper = dict(accumulative_counts=2, clip_grad=dict(max_norm=.01))\n']
)
def test_split_steps_end_in_the_weights_of_mmengines_own(tool, config, tmp_path, options):
    """Also on the last step, where fewer gradients are accumulated."""
    cfg = Config.fromfile(
        config(f"{options}train_cfg = dict(max_epochs=3)\nwork_dir = '{tmp_path}'\n")
    )
    cfg.train_dataloader.persistent_workers = False
    tool.leave_training_alone(cfg)

    def trained(split):
        runner = Runner.from_cfg(cfg)
        clock = profiling.Clock()
        if not split:
            runner.train()
        else:
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            with profiling.split_steps(runner.model, runner.optim_wrapper, clock) as step:
                runner.model.train_step = lambda data, optim_wrapper: step(data)
                runner.train()
        assert runner.iter == 9
        return runner.model.state_dict(), set(clock.seconds)

    (ours, parts), (theirs, _) = trained(True), trained(False)
    assert parts == PARTS - {'data'}
    start = Runner.from_cfg(cfg).model.state_dict()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert torch.equal(ours[name], value)
            assert not torch.equal(start[name], value)


def test_reading_is_named_where_the_pipeline_sleeps(config, profile):
    figures, output = profile(config(read=0.05))
    assert figures['best']['bound'] == 'reading'
    assert 'Bottleneck: reading.' in output
    [row] = figures['rows']
    assert row['read_alone_pairs_per_s'] < row['model_alone_pairs_per_s']
    # A worker reads less than 20 pairs/s, as it sleeps for 50 ms for each.
    assert figures['best']['worker_pairs_per_s'] < 20
    assert figures['best']['workers_needed'] >= 2


def test_computing_is_named_where_the_model_sleeps(config, profile):
    figures, output = profile(
        config(model='vop.SleepingRecognizer'), '--num-workers', 2, '--batch-size', 2, steps=4
    )
    [row] = figures['rows']
    assert row['part_ms']['forward'] >= 100
    assert row['step_ms'] >= 100
    assert row['read_alone_pairs_per_s'] > row['model_alone_pairs_per_s']
    assert figures['best']['bound'] == 'computing'
    assert 'Bottleneck: computing.' in output
    assert 'reading is fast enough; ' in output


def test_out_of_memory_is_a_row(config, profile):
    figures, output = profile(config(model='vop.SmallMemory'), '--batch-size', 4, 2)
    assert [row['out_of_memory'] for row in figures['rows']] == [True, False]
    check(figures['rows'][1])
    large, small = table(output)
    assert large['pairs/s'] == 'out of memory'
    assert small['pairs/s'] != 'out of memory'
    assert figures['best']['batch_size'] == 2


def test_memory_can_run_out_in_a_later_step(config, profile):
    with pytest.raises(SystemExit, match='Give a smaller --batch-size'):
        profile(config(model='vop.LateMemory'), '--num-workers', 2)
    assert not multiprocessing.active_children()


def test_out_of_memory_everywhere(config, profile, tmp_path):
    """The figures are written row by row, so they are there."""
    with pytest.raises(SystemExit, match='Give a smaller --batch-size'):
        profile(config(model='vop.NoMemory'), '--batch-size', 1, 4)
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert [row['out_of_memory'] for row in figures['rows']] == [True, True]


@pytest.mark.parametrize('persistent', [True, False])
def test_workers_are_gone_between_settings(config, profile, tool, monkeypatch, persistent):
    alive = []
    add = tool.Report.add
    monkeypatch.setattr(
        tool.Report,
        'add',
        lambda self, row: (alive.append(multiprocessing.active_children()), add(self, row)),
    )
    profile(
        config(),
        '--num-workers',
        2,
        1,
        '--cfg-options',
        f'train_dataloader.persistent_workers={persistent}',
    )
    assert alive == [[], []]


def test_a_small_data_set_is_read_for_several_epochs(config, profile, monkeypatch):
    epochs = []
    set_epoch = ReproducibleSampler.set_epoch
    monkeypatch.setattr(
        ReproducibleSampler,
        'set_epoch',
        lambda self, epoch: (epochs.append(epoch), set_epoch(self, epoch)),
    )
    figures, output = profile(config(), '--batch-size', 4, steps=7)
    assert epochs == list(range(len(epochs)))
    # The model's batch; 1 + 1 + 7 batches that are read alone, and
    # 1 + 7 + 7 steps, in epochs of 3.
    assert len(epochs) == 1 + 8
    [row] = figures['rows']
    # Batches of 4, 4 and 2.
    assert row['pairs_per_s'] < 1000 * 4 / row['step_ms']
    assert 'An epoch has 3 steps, fewer than were measured' in output


def test_a_recognizer_of_mmaction(profile, video_folder, tmp_path):
    (tmp_path / 'annotations.txt').write_text(
        ''.join(f'{number}.mp4 {number % 3}\n' for number in range(5))
    )
    path = tmp_path / 'tsn.py'
    path.write_text(
        RECOGNIZER.format(root=ROOT, videos=video_folder, annotations=tmp_path / 'annotations.txt')
    )
    figures, output = profile(str(path))
    [row] = figures['rows']
    assert row['pairs_in_data_set'] == 5
    assert sum(row['share'].values()) == pytest.approx(1)
    assert 'Bottleneck: ' in output


BOUND = dict(
    batch_size=32,
    num_workers=4,
    data_root='data/msrvtt',
    out_of_memory=False,
    steps=50,
    steps_in_epoch=5000,
    pairs_per_s=100.0,
    share=dict(data=0.5, transfer=0.05, forward=0.2, backward=0.2, optimizer=0.05),
    read_alone_pairs_per_s=100.0,
    model_alone_pairs_per_s=200.0,
)
FREE = dict(
    BOUND,
    pairs_per_s=195.0,
    share=dict(data=0.01, transfer=0.15, forward=0.4, backward=0.4, optimizer=0.04),
    read_alone_pairs_per_s=400.0,
)
MORE = dict(BOUND, num_workers=8)


@pytest.mark.parametrize(
    'row, others, machine, amp, wanted, unwanted',
    [
        (
            BOUND,
            [],
            (16, 1, 1),
            False,
            ['take --num-workers 8.', ': 8 workers.'],
            ['compress_videos', '--amp'],
        ),
        (
            BOUND,
            [],
            (6, 1, 1),
            False,
            ['take --num-workers 6, as many as there are cores, and a copy'],
            [],
        ),
        (
            BOUND,
            [],
            (4, 1, 1),
            False,
            ['only share the 4 cores: take a copy', 'compress_videos.py'],
            ['--num-workers'],
        ),
        (
            BOUND,
            [MORE],
            (16, 1, 1),
            False,
            ['more workers were tried, and are no faster: take a copy'],
            ['--num-workers'],
        ),
        # Workers that share 2 cores: each core reads 50 pairs/s.
        (BOUND, [], (2, 1, 1), False, [': 4 workers.'], ['--num-workers']),
        # Two processes with 4 workers each: 12.5 pairs/s a worker.
        (
            BOUND,
            [],
            (16, 2, 2),
            False,
            ['take --num-workers 8.', ': 8 workers in each process.'],
            [],
        ),
        # Of which the second is on another machine.
        (BOUND, [], (8, 1, 2), False, ['take --num-workers 8.'], []),
        (
            dict(BOUND, read_alone_pairs_per_s=250.0),
            [],
            (4, 1, 1),
            False,
            ['share 4 cores, which is too few for both', '2.0 times as slow'],
            [],
        ),
        (
            dict(BOUND, num_workers=0),
            [],
            (4, 1, 1),
            False,
            ['take --num-workers 2.'],
            ['times as slow'],
        ),
        (
            FREE,
            [],
            (16, 1, 1),
            False,
            ['Bottleneck: computing', 'mixed precision (--amp)', ': 2 workers.'],
            ['compress_videos', '--num-workers'],
        ),
        (FREE, [], (16, 1, 1), True, ['a larger batch'], ['--amp']),
    ],
)
def test_advice(tool, row, others, machine, amp, wanted, unwanted):
    text = '\n'.join(tool.advise(row, [row, *others], *machine, amp=amp, gpu=True))
    for words in wanted:
        assert words in text
    for words in unwanted:
        assert words not in text


def test_settings_that_are_as_fast_are_named(tool, capsys):
    args = SimpleNamespace(config='c.py', steps=50, warmup=5, json=None)
    report = tool.Report(
        args,
        Config(
            dict(train_dataloader=dict(batch_size=32), optim_wrapper=dict(type='AmpOptimWrapper'))
        ),
    )
    report.begin(16, 1)
    common = dict(
        part_ms={},
        step_ms=300.0,
        start_up_s=2.0,
        epoch_s=3725.4,
        pairs_in_data_set=180000,
        peak_gpu_memory_bytes=3 * 2**30,
    )
    for workers, rate in ((4, 99.0), (8, 100.0), (12, 80.0)):
        report.add(dict(BOUND, **common) | dict(num_workers=workers, pairs_per_s=rate))
    report.add(dict(BOUND, **common) | dict(batch_size=64, pairs_per_s=120.0))
    report.end()
    output = capsys.readouterr().out
    assert 'mixed precision' in output
    assert [row['GPU memory'] for row in table(output)] == ['3.0 GiB'] * 4
    assert (
        'Best: batch 64 and 4 workers, data/msrvtt: 120 pairs/s, 300 ms '
        'a step. An epoch of 180,000 pairs takes 1 h 2 min, start-up '
        'included.'
    ) in output
    assert 'As fast' not in output
    assert "Best with the config's batch: batch 32 and 8 workers" in output
    report.rows.pop()
    report.end()
    output = capsys.readouterr().out
    assert 'As fast, within 3%: batch 32 and 4 workers, data/msrvtt.' in output
    assert 'changes what is trained' not in output


@pytest.mark.parametrize(
    'extra, arguments, message',
    [
        ('train_cfg = None\n', [], 'does not train: it lacks train_cfg.'),
        (
            '',
            ['--data-root', 'data/nowhere'],
            'The annotation file data/nowhere/train.json of train_dataloader is missing',
        ),
        (
            '',
            ['--cfg-options', 'model.visual.prompts=[]', 'model.text.prompts=[]'],
            'Nothing trains in',
        ),
        (
            '',
            ['--cfg-options', 'train_dataloader.drop_last=True', '--batch-size', '16'],
            'has 10 items, which is not enough for one batch of 16',
        ),
        ('', ['--cfg-options', 'model.clip.name=ViT-Z'], "no model 'ViT-Z'"),
        ('', ['--launcher', 'slurm'], "launcher 'slurm' needs one"),
        ('', ['--amp'], '--amp needs a GPU'),
        ('', ['--json', 'nowhere/figures.json'], 'There is no folder for'),
    ],
)
def test_bad_input(config, profile, extra, arguments, message):
    if arguments[:1] in (['--launcher'], ['--amp']) and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(SystemExit) as error:
        profile(config(extra), *arguments)
    assert message in error.value.code


def test_a_config_that_is_not_there(profile, tmp_path):
    with pytest.raises(SystemExit, match='There is no config'):
        profile(str(tmp_path / 'nothing.py'))


@pytest.mark.parametrize(
    'option, value', [('--batch-size', 0), ('--num-workers', -1), ('--steps', 'many')]
)
def test_numbers_are_checked(config, profile, capsys, option, value):
    with pytest.raises(SystemExit):
        profile(config(), option, value)
    assert f'argument {option}: ' in capsys.readouterr().err


def test_missing_videos_are_named_before_anything_is_measured(
    config, profile, video_folder, tmp_path, capsys
):
    (tmp_path / 'copy').mkdir()
    (tmp_path / 'copy' / 'train.json').symlink_to(video_folder / 'train.json')
    with pytest.raises(SystemExit, match='5 of the 5 videos .* are missing'):
        profile(config(), '--data-root', video_folder, tmp_path / 'copy')
    assert len(table(capsys.readouterr().out)) == 0


@pytest.mark.parametrize('workers', [0, 1])
def test_a_video_that_cannot_be_read_is_named(config, profile, video_folder, tmp_path, workers):
    for file in video_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / '3.mp4').unlink()
    (tmp_path / '3.mp4').write_bytes(b'no video')
    with pytest.raises(SystemExit) as error:
        profile(config(), '--data-root', tmp_path, '--num-workers', workers)
    assert '3.mp4 cannot be read' in error.value.code
    assert '\n' not in error.value.code
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_mixed_precision_on_a_gpu(config, profile):
    figures, output = profile(config(), '--amp', '--num-workers', 2)
    [row] = figures['rows']
    check(row)
    assert row['peak_gpu_memory_bytes'] > 0
    assert 'GiB' in table(output)[0]['GPU memory']
