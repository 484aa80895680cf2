"""Curves of a training in MMEngine's visualizer, next to its own file."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 2
STEPS = 3  # 10 pairs in batches of 4, the last of 2

CONFIG = """
_base_ = '{root}/configs/moving_shapes/vop.py'
model = dict(clip=dict(name='{clip}', pretrained=None))
pipeline = [
    dict(type='DecordInit'),
    dict(type='UniformSample', clip_len=4, num_clips=1, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(32, 32), keep_ratio=False),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='vop.CLIPTokenize'),
    dict(type='PackActionInputs', collect_keys=('imgs', 'text'),
         meta_keys=('video_id', ))
]
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='{videos}', data_prefix=dict(video=''),
                 pipeline=pipeline))
val_dataloader = dict(
    batch_size=5, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='{videos}', data_prefix=dict(video=''),
                 pipeline=pipeline))
train_cfg = dict(max_epochs={epochs}, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
"""
BOTH = """
visualizer = dict(vis_backends=[
    dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
"""


@pytest.fixture
def config(tmp_path, tiny_clip, video_folder):
    """Writes a config; gives its path."""

    def write(extra=''):
        path = tmp_path / 'vop.py'
        path.write_text(
            CONFIG.format(root=ROOT, clip=tiny_clip, videos=video_folder, epochs=EPOCHS) + extra
        )
        return str(path)

    return write


def curves(folder):
    """(step, value) of each curve of TensorBoard."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()['scalars']
    }


def test_tensorboard_beside_the_own_file(run_tool, config, tmp_path):
    run_tool('tools/train.py', config(BOTH), '--work-dir', tmp_path / 'work')
    (folder,) = tmp_path.glob('work/*/vis_data')
    records = [json.loads(line) for line in (folder / 'scalars.json').read_text().splitlines()]
    shown = curves(folder)
    for name in ('loss', 'lr', 't2v/R@1', 'v2t/MnR'):
        expected = [(record['step'], record[name]) for record in records if name in record]
        steps, values = zip(*shown[name])
        every = EPOCHS if '2' in name else EPOCHS * STEPS
        assert steps == tuple(range(1, every + 1))
        assert steps == tuple(step for step, _ in expected)
        assert values == pytest.approx([value for _, value in expected])


def test_another_backend_by_a_word_of_the_command_line(run_tool, config, tmp_path):
    run_tool(
        'tools/train.py',
        config(),
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'visualizer.vis_backends.0.type=TensorboardVisBackend',
    )
    (folder,) = tmp_path.glob('work/*/vis_data')
    assert not (folder / 'scalars.json').exists()
    shown = curves(folder)
    assert [step for step, _ in shown['loss']] == [1, 2, 3]
    assert [step for step, _ in shown['t2v/R@1']] == [1]
