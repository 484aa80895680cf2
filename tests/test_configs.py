"""Every config that a user runs."""

import pytest
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, METRICS, MODELS, TRANSFORMS

from projects.vop.engine import open_config
from projects.vop.engine.parameters import build_without_weights, count_by_part

CONFIGS = ROOT / 'configs'
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
    parts = [(config.model, MODELS), (config.test_evaluator, METRICS)]
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        parts += [(loader.sampler, DATA_SAMPLERS), (loader.dataset.pipeline, TRANSFORMS)]
    for part, registry in parts:
        for kind in set(types_in(part)) - {'AvgConsensus'}:
            assert registry.get(kind) or registry.get(f'mmaction.{kind}'), kind
    assert config.test_dataloader.dataset.test_mode
    assert not config.train_dataloader.dataset.get('test_mode', False)


@pytest.mark.parametrize('processes', [1, 2, 8, 64])
def test_the_batch_is_32_in_all(monkeypatch, processes):
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    config = Config.fromfile(CONFIGS / 'vop_msrvtt.py')
    assert config.train_dataloader.batch_size == max(1, 32 // processes)


@pytest.mark.parametrize(
    'dataset', ['activitynet', 'didemo', 'lsmdc', 'msrvtt', 'msrvtt_7k', 'msvd', 'vatex']
)
def test_a_data_set_of_another_root(monkeypatch, dataset):
    monkeypatch.setenv('DATA_ROOT', 'data/small_copy')
    config = open_config(CONFIGS / f'vop_{dataset}.py')
    data = [config[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')]
    assert {each.data_root for each in data} == {'data/small_copy'}
    if dataset == 'msrvtt_7k':
        assert (data[0].ann_file, data[2].ann_file) == ('train_7k.json', 'test_1k.json')


# Of ViT-B/32, 12 layers each.
TEXT, VISUAL = 512, 768
CMM = dict(  # with the layer that makes tokens, for each token of a frame
    bilstm=9_449_472 + 4 * (2 * VISUAL + 1) * VISUAL,
    lstm=4 * (2 * VISUAL * VISUAL + 2 * VISUAL) + 4 * (VISUAL + 1) * VISUAL,
    transformer=12 * VISUAL + 4 * (12 * VISUAL**2 + 13 * VISUAL) + 4 * (VISUAL + 1) * VISUAL,
)


BOTH = 12 * 8 * (TEXT + VISUAL)


def build(monkeypatch, name, variable, value):
    monkeypatch.setenv(variable, str(value))
    return build_without_weights(open_config(CONFIGS / f'ablations/{name}_msrvtt.py'))


@pytest.mark.parametrize(
    'name, variable, values',
    [
        ('vop_depth', 'DEPTH', {'1-12': BOTH, '1-1': BOTH / 12, '7-12': BOTH / 2}),
        ('vop_length', 'LENGTH', {n: BOTH * n / 8 for n in (1, 8, 32)}),
        ('vop_p_specific', 'SPECIFIC', {n: BOTH + 12 * 11 * n * VISUAL for n in (0, 1, 8)}),
        (
            'vop_c_specific',
            'SPECIFIC',
            {0: BOTH}
            | {
                n: BOTH - 12 * n * VISUAL + 9_449_472 + n * (2 * VISUAL + 1) * VISUAL
                for n in (1, 8)
            },
        ),
        ('vop_c_cmm', 'CMM', {kind: BOTH - 12 * 4 * VISUAL + n for kind, n in CMM.items()}),
        ('vop_c_update', 'NOTHING', {0: BOTH + 9_449_472 + (2 * VISUAL + 1) * VISUAL}),
        ('vop_f_depth', 'K_S', {k: BOTH + (k < 12) * 12 * VISUAL for k in (1, 7, 12)}),
    ],
)
def test_ablations_train_what_they_say(monkeypatch, name, variable, values):
    for value, trained in values.items():
        model = build(monkeypatch, name, variable, value)
        assert sum(part.trained for part in count_by_part(model).values()) == trained, value
        if variable == 'K_S':
            assert model.visual.spec.frame_layers == value


@pytest.mark.parametrize(
    'method, values',
    [
        ('vop', [('depth', '1-12'), ('length', 8), ('p_specific', 0), ('f_depth', 12)]),
        ('vop_p', [('p_specific', 4)]),
        ('vop_c', [('c_specific', 4), ('c_cmm', 'bilstm')]),
        ('vop_f', [('f_depth', 8)]),
    ],
)
def test_ablations_are_the_family_at_the_values_of_the_paper(monkeypatch, method, values):
    wanted = build_without_weights(open_config(CONFIGS / f'{method}_msrvtt.py'))
    for name, value in values:
        variable = 'K_S' if name == 'f_depth' else name.rpartition('_')[2].upper()
        model = build(monkeypatch, f'vop_{name}', variable, value)
        assert (repr(model), model.visual.spec) == (repr(wanted), wanted.visual.spec), name


@pytest.mark.parametrize(
    'name, variable, value, fault',
    [
        ('vop_depth', 'DEPTH', '1-13', '1 to 13'),
        ('vop_depth', 'DEPTH', '6', 'vop_depth_msrvtt.py'),
        ('vop_length', 'LENGTH', '0', 'length'),
        ('vop_length', 'LENGTH', 'long', "'long'"),
        ('vop_p_specific', 'SPECIFIC', '9', 'length .* -1'),
        ('vop_c_cmm', 'CMM', 'gru', "'gru'"),
        ('vop_f_depth', 'K_S', '13', 'temporal_layers'),
    ],
)
def test_values_that_cannot_be_are_refused(monkeypatch, name, variable, value, fault):
    with pytest.raises(ValueError, match=fault):
        build(monkeypatch, name, variable, value)
