"""Every config that a user runs."""
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, METRICS, MODELS, TRANSFORMS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ALL = sorted(
    path.relative_to(CONFIGS) for path in CONFIGS.rglob('*.py')
    if not any(part.startswith('_') for part in path.parts))


@pytest.mark.parametrize('name', ALL, ids=str)
def test_every_part_that_a_config_names_exists(name):
    config = Config.fromfile(CONFIGS / name)
    assert MODELS.get(config.model.type)
    for encoder in (config.model.visual, config.model.text):
        for part in (encoder, *encoder.prompts):
            assert MODELS.get(part.type)
    for loader in (config.train_dataloader, config.test_dataloader):
        assert DATA_SAMPLERS.get(loader.sampler.type)
        for transform in loader.dataset.pipeline:
            assert TRANSFORMS.get(transform.type) or TRANSFORMS.get(
                f'mmaction.{transform.type}')
    assert METRICS.get(config.test_evaluator.type)
    assert config.test_dataloader.dataset.test_mode
    assert not config.train_dataloader.dataset.get('test_mode', False)


@pytest.mark.parametrize('processes', [1, 2, 8, 64])
def test_the_batch_is_32_in_all(monkeypatch, processes):
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    config = Config.fromfile(CONFIGS / 'vop_msrvtt.py')
    assert config.train_dataloader.batch_size == max(1, 32 // processes)


def test_the_7k_split_is_one_line_away():
    config = Config.fromfile(CONFIGS / '_base_/datasets/msrvtt_7k.py')
    assert config.train_dataloader.dataset.ann_file == 'train_7k.json'
    assert config.test_dataloader.dataset.ann_file == 'test_1k.json'
