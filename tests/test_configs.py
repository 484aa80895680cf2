"""Every config that a user runs."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, METRICS, MODELS, TRANSFORMS

from projects.vop.engine import open_config
from projects.vop.engine.parameters import build_without_weights, count_by_part

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ALL = sorted(
    path.relative_to(CONFIGS)
    for path in CONFIGS.rglob('*.py')
    if not any(part.startswith('_') for part in path.parts)
)


def types_in(part):
    """All types that a part of a config names. ``AvgConsensus`` is in no
    registry; heads of MMAction2 make it themselves."""
    if isinstance(part, dict):
        yield from [part['type']] if 'type' in part else []
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for value in part:
            yield from types_in(value)


@pytest.mark.parametrize('name', ALL, ids=str)
def test_every_part_that_a_config_names_exists(name):
    config = Config.fromfile(CONFIGS / name)
    assert len(list(types_in(config.model))) > 2
    for part, registry in (
        (config.model, MODELS),
        *(
            (config[f'{split}_dataloader'].sampler, DATA_SAMPLERS)
            for split in ('train', 'val', 'test')
        ),
        *(
            (config[f'{split}_dataloader'].dataset.pipeline, TRANSFORMS)
            for split in ('train', 'val', 'test')
        ),
        (config.test_evaluator, METRICS),
    ):
        for kind in types_in(part):
            assert (
                kind == 'AvgConsensus' or registry.get(kind) or registry.get(f'mmaction.{kind}')
            ), kind
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


@pytest.mark.parametrize(
    'dataset', ['activitynet', 'didemo', 'lsmdc', 'msrvtt', 'msrvtt_7k', 'msvd', 'vatex']
)
def test_another_data_root(monkeypatch, dataset):
    monkeypatch.setenv('DATA_ROOT', 'data/small_copy')
    config = open_config(CONFIGS / f'vop_{dataset}.py')
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        assert loader.dataset.data_root == 'data/small_copy'


# Of ViT-B/32, 12 layers each.
TEXT, VISUAL = 512, 768
CMM = dict(  # with the layer that makes tokens, for each token of a frame
    bilstm=9_449_472 + 4 * (2 * VISUAL + 1) * VISUAL,
    lstm=4 * (2 * VISUAL * VISUAL + 2 * VISUAL) + 4 * (VISUAL + 1) * VISUAL,
    transformer=12 * VISUAL + 4 * (12 * VISUAL**2 + 13 * VISUAL) + 4 * (VISUAL + 1) * VISUAL,
)


def specific(count):
    """Prompts of VoP^P with so many specific tokens."""
    return 12 * ((8 - count + 12 * count) * VISUAL + 8 * TEXT)


@pytest.mark.parametrize(
    'name, variable, values',
    [
        (
            'vop_depth',
            'DEPTH',
            {
                f'{i}-{j}': (j - i + 1) * 8 * (TEXT + VISUAL)
                for i, j in [(1, 12), (1, 1), (1, 6), (7, 12), (12, 12)]
            },
        ),
        ('vop_length', 'LENGTH', {n: 12 * n * (TEXT + VISUAL) for n in (1, 2, 4, 8, 16, 32)}),
        ('vop_p_specific', 'SPECIFIC', {n: specific(n) for n in range(9)}),
        (
            'vop_c_specific',
            'SPECIFIC',
            {
                n: 12 * (8 - n) * VISUAL
                + 12 * 8 * TEXT
                + (n > 0) * (9_449_472 + n * (2 * VISUAL + 1) * VISUAL)
                for n in range(9)
            },
        ),
        ('vop_c_cmm', 'CMM', {kind: 12 * (4 * VISUAL + 8 * TEXT) + n for kind, n in CMM.items()}),
        (
            'vop_c_update',
            'NOTHING',
            {0: 12 * 8 * (TEXT + VISUAL) + 9_449_472 + (2 * VISUAL + 1) * VISUAL},
        ),
        (
            'vop_f_depth',
            'K_S',
            {k: 12 * 8 * (TEXT + VISUAL) + (k < 12) * 12 * VISUAL for k in range(1, 13)},
        ),
    ],
)
def test_ablations_train_what_they_say(monkeypatch, name, variable, values):
    for value, trained in values.items():
        monkeypatch.setenv(variable, str(value))
        config = open_config(CONFIGS / f'ablations/{name}_msrvtt.py')
        parts = count_by_part(build_without_weights(config))
        assert sum(p.trained for p in parts.values()) == trained, value


@pytest.mark.parametrize('k', range(1, 13))
def test_frame_wise_layers_are_those_that_are_asked_for(monkeypatch, k):
    monkeypatch.setenv('K_S', str(k))
    model = build_without_weights(open_config(CONFIGS / 'ablations/vop_f_depth_msrvtt.py'))
    assert model.visual.spec.frame_layers == k


def test_ablations_are_the_family_at_the_values_of_the_paper(monkeypatch):
    for name, variable, value, method in [
        ('vop_depth', 'DEPTH', '1-12', 'vop'),
        ('vop_length', 'LENGTH', '8', 'vop'),
        ('vop_p_specific', 'SPECIFIC', '0', 'vop'),
        ('vop_p_specific', 'SPECIFIC', '4', 'vop_p'),
        ('vop_c_specific', 'SPECIFIC', '4', 'vop_c'),
        ('vop_c_cmm', 'CMM', 'bilstm', 'vop_c'),
        ('vop_f_depth', 'K_S', '8', 'vop_f'),
        ('vop_f_depth', 'K_S', '12', 'vop'),
    ]:
        models = []
        for path in (f'ablations/{name}_msrvtt.py', f'{method}_msrvtt.py'):
            monkeypatch.setenv(variable, value)
            model = build_without_weights(open_config(CONFIGS / path))
            models.append((repr(model), model.visual.spec))
            monkeypatch.delenv(variable)
        assert models[0] == models[1], (name, value)


@pytest.mark.parametrize(
    'name, variable, value, message',
    [
        ('vop_depth', 'DEPTH', '1-13', 'no layers 1 to 13'),
        ('vop_depth', 'DEPTH', '6', 'cannot be opened'),
        ('vop_length', 'LENGTH', '0', 'length must be at least 1'),
        ('vop_length', 'LENGTH', 'long', "cannot be opened.*'long'"),
        ('vop_p_specific', 'SPECIFIC', '9', 'length must be at least 1, got -1'),
        ('vop_c_cmm', 'CMM', 'gru', "got 'gru'"),
        ('vop_f_depth', 'K_S', '13', 'temporal_layers must be 0 to 12'),
    ],
)
def test_values_that_cannot_be_are_refused(monkeypatch, name, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        build_without_weights(open_config(CONFIGS / f'ablations/{name}_msrvtt.py'))
