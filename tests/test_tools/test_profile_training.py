"""The profiler of training."""

import itertools
import json
import multiprocessing
import time

import pytest
import torch
from helpers import ROOT, in_two_processes

from projects.vop.datasets import DecordKeep
from projects.vop.errors import UserError, VideoReadError
from projects.vop.models import RetrievalRecognizer
from projects.vop.registry import MODELS, TRANSFORMS

TOOL = 'tools/analysis/profile_training.py'
CONFIG = 'configs/moving_shapes/vop.py'
CFG_OPTIONS = (
    *('--cfg-options', 'model.clip.pretrained=None'),
    'train_dataloader.dataset.data_prefix.video=',
    'train_dataloader.dataset.pipeline.3.keep_ratio=False',
)
SLEEP = 0.3  # seconds for each video


@TRANSFORMS.register_module()
class SlowDecordKeep(DecordKeep):
    def transform(self, results):
        time.sleep(SLEEP)
        return super().transform(results)


@MODELS.register_module()
class SlowRecognizer(RetrievalRecognizer):
    """Has memory for 2 videos at most."""

    def forward(self, inputs, *args, **kwargs):
        if len(inputs['imgs']) > 2:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')
        time.sleep(SLEEP * len(inputs['imgs']))
        return super().forward(inputs, *args, **kwargs)


@pytest.fixture
def profile(run_tool, tmp_path, video_folder, monkeypatch):
    """Runs the tool; gives its figures."""
    monkeypatch.chdir(ROOT)

    def run(*arguments, videos=video_folder, options=()):
        figures = tmp_path / 'figures.json'
        setting = f'--batch-size 2 --num-workers 0 --data-root {videos} --steps 1 --warmup 0'
        options = (*CFG_OPTIONS, *options)
        run_tool(TOOL, CONFIG, *setting.split(), '--json', figures, *arguments, *options)
        return json.loads(figures.read_text())

    return run


@pytest.mark.slow
def test_every_combination_is_a_row_and_the_fastest_is_traced(
    profile, video_folder, tmp_path, capsys
):
    (tmp_path / 'copy').symlink_to(video_folder)
    roots, traced = [str(video_folder), str(tmp_path / 'copy')], tmp_path / 'trace.json'
    figures = profile('--batch-size', 1, 2, '--data-root', *roots, '--trace', traced)
    rows = [(row['batch_size'], row['data_root']) for row in figures['rows']]
    assert rows == list(itertools.product((1, 2), roots))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert len(lines) == 2 + len(rows)
    for row in figures['rows']:
        assert row['pairs_per_s'] == pytest.approx(1000 * row['batch_size'] / row['step_ms'])
        assert 0 < row['waiting_share'] < 1
    events = json.loads(traced.read_text())['traceEvents']
    assert 'ProfilerStep#5' in {event['name'] for event in events}


@pytest.mark.slow
def test_what_is_slow_is_the_bottleneck(profile, capsys):
    best = profile(options=['train_dataloader.dataset.pipeline.0.type=vop.SlowDecordKeep'])['best']
    assert best['bottleneck'] == 'reading'
    assert best['loader_alone_pairs_per_s'] < min(1 / SLEEP, best['model_alone_pairs_per_s'])
    model = ['model.type=vop.SlowRecognizer']
    # The first video waits for the process that reads it.
    setting = '--batch-size', 4, 2, '--num-workers', 1, '--warmup', 1
    figures = profile(*setting, options=model)
    assert [row['out_of_memory'] for row in figures['rows']] == [True, False]
    assert 'out of memory' in capsys.readouterr().out
    best = figures['best']
    assert (best['batch_size'], best['bottleneck']) == (2, 'computing')
    assert best['model_alone_pairs_per_s'] < min(1 / SLEEP, best['loader_alone_pairs_per_s'])
    assert not multiprocessing.active_children()
    with pytest.raises(UserError, match='--batch-size'):
        profile('--batch-size', 4, options=model)


@pytest.mark.slow
def test_wrong_input(profile, tmp_path, monkeypatch):
    (tmp_path / 'train.json').write_text('{"0.mp4": ["a caption"]}')
    (tmp_path / '0.mp4').write_text('no video')
    with pytest.raises(VideoReadError, match='0.mp4'):
        profile('--num-workers', 1, videos=tmp_path)
    with pytest.raises(UserError, match='optim_wrapper'):
        profile(options=['optim_wrapper=None'])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='--amp'):
        profile('--amp')
    with pytest.raises(SystemExit):
        profile('--num-workers', -1)


@pytest.mark.slow
def test_two_processes_are_one_table(run_tool, video_folder, tmp_path, monkeypatch, capfd):
    setting = f'--steps 2 --batch-size 2 --num-workers 0 --data-root {video_folder}'.split()
    more = ['--launcher', 'pytorch', '--json', tmp_path / '2.json', *CFG_OPTIONS]
    monkeypatch.chdir(ROOT)
    in_two_processes(run_tool, TOOL, CONFIG, *setting, *more)
    assert sum(line.startswith('|') for line in capfd.readouterr().out.splitlines()) == 3
    figures = json.loads((tmp_path / '2.json').read_text())
    assert figures['processes'] == 2
    assert figures['best']['pairs_per_s'] == pytest.approx(4000 / figures['best']['step_ms'])
