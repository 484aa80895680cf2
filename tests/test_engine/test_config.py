"""Configs by name, and their data."""

import json
from pathlib import Path

import pytest
from helpers import TINY_CLIP
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.optim import AmpOptimWrapper, ApexOptimWrapper, OptimWrapper

from projects.vop.clip_config import absolute_name, read_clip_config
from projects.vop.datasets import CLIPTokenize, VideoTextDataset
from projects.vop.engine import (
    build_runner,
    check_data,
    fit_pixels,
    fit_tokenizers,
    open_config,
    pin_memory,
    use_amp,
)
from projects.vop.errors import UserError


class Mine(VideoTextDataset):
    """A data set of somebody else, which no registry knows."""


def test_a_file_is_opened_as_it_is():
    ours = open_config('configs/vop_fp_msrvtt.py')
    assert ours.to_dict() == Config.fromfile('configs/vop_fp_msrvtt.py').to_dict()


@pytest.mark.parametrize('name', ['vop_fp', 'full', 'ablations/vop_depth'])
@pytest.mark.parametrize('dataset', ['didemo', 'msrvtt_7k'])
def test_a_name_is_composed_of_method_and_data_set(name, dataset):
    ours = open_config(f'configs/{name}_{dataset}.py')
    method = Config.fromfile(f'configs/{name}_msrvtt.py')
    data = Config.fromfile(f'configs/_base_/datasets/{dataset}.py')
    for key in data:
        assert ours[key] == data[key]
    for key in method:
        assert key in data or ours[key] == method[key]
    assert ours.train_dataloader != method.train_dataloader
    assert ours.filename == f'configs/{name}_{dataset}.py'


@pytest.mark.parametrize(
    'name',
    [
        'vop_q_didemo',
        'vop_fp_dideemo',
        'didemo',
        'vop',
        'moving_shapes/vop_q',
        'vop_fp__video_text',
        'vop_moving_shapes',
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(UserError) as error:
        open_config(f'configs/{name}.py')
    assert f'no config configs/{name}.py' in str(error.value)
    if '/' not in name:
        assert 'vop_fp, ' in str(error.value)
        assert 'didemo, ' in str(error.value)
        assert 'video_text' not in str(error.value).split('DATASET of')[1]


def test_a_composed_config_takes_its_variable(monkeypatch):
    monkeypatch.setenv('DEPTH', '2-3')
    config = open_config('configs/ablations/vop_depth_didemo.py')
    assert config.env_variables == dict(DEPTH='2-3')
    assert tuple(config.model.text.prompts[0].layers) == (2, 3)


def test_a_file_far_from_any_config_is_just_missing(tmp_path):
    with pytest.raises(UserError, match='no config'):
        open_config(str(tmp_path / 'vop_msrvtt.py'))


def test_memory_is_pinned_where_there_is_a_gpu(monkeypatch):
    config = open_config('configs/vop_msrvtt.py')
    config.test_dataloader.pin_memory = False
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    pin_memory(config)
    assert 'pin_memory' not in config.train_dataloader
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    config.val_dataloader = None
    pin_memory(config)
    assert config.train_dataloader.pin_memory
    assert not config.test_dataloader.pin_memory


def test_missing_data_of_another_root(monkeypatch):
    monkeypatch.setenv('DATA_ROOT', 'data/small_copy')
    with pytest.raises(UserError, match='small_copy.*DATA_ROOT'):
        check_data(open_config('configs/vop_lsmdc.py'), 'train')


def test_a_root_that_a_config_does_not_read(tmp_path, monkeypatch, logged_warnings):
    monkeypatch.setenv('DATA_ROOT', 'data/small_copy')
    config = open_config('configs/vop_lsmdc.py')
    config.train_dataloader.dataset.data_root = 'data/pets'
    with pytest.raises(UserError) as error:
        check_data(config, 'train')
    assert 'DATA_ROOT' not in str(error.value)
    assert 'DATA_ROOT=data/small_copy has no effect' in logged_warnings[0]


def test_missing_data_names_the_command_that_makes_it(tmp_path):
    config = open_config('configs/vop_lsmdc.py')
    with pytest.raises(UserError) as error:
        check_data(config, 'test')
    assert 'data/lsmdc/test.json of test_dataloader' in str(error.value)
    assert '`python tools/data/lsmdc.py`' in str(error.value)
    config.test_dataloader.dataset.data_root = str(tmp_path / 'pets')
    with pytest.raises(UserError, match='tools/data/custom.py'):
        check_data(config, 'test')


def test_a_missing_folder_of_videos_is_named(tmp_path):
    config = open_config('configs/vop_lsmdc.py')
    dataset = config.test_dataloader.dataset
    dataset.data_root = str(tmp_path)
    (tmp_path / 'test.json').write_text(json.dumps({'a.mp4': ['b']}))
    with pytest.raises(UserError, match=f'folder {tmp_path}/videos'):
        check_data(config, 'test')
    (tmp_path / 'videos').mkdir()
    check_data(config, 'test')
    dataset.data_prefix = dict(video='s3://bucket/videos')
    check_data(config, 'test')  # cannot be looked into
    dataset.update(data_root=None, ann_file=str(tmp_path / 'test.json'), data_prefix=dict(video=''))
    check_data(config, 'test')  # of whole paths


@pytest.mark.parametrize(
    'kind',
    ['vop.VideoTextDataset', 'projects.vop.datasets.VideoTextDataset', VideoTextDataset, Mine],
)
@pytest.mark.parametrize(
    'wrap',
    [
        lambda dataset: dataset,
        lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
        lambda dataset: dict(type=ConcatDataset, datasets=[dataset]),
    ],
)
def test_missing_data_of_a_class_and_of_data_sets_in_others(tmp_path, kind, wrap):
    dataset = dict(type=kind, ann_file='nothing.json', data_root=str(tmp_path))
    cfg = Config(dict(test_dataloader=dict(dataset=wrap(dataset))))
    with pytest.raises(UserError, match='nothing.json of test_dataloader'):
        check_data(cfg, 'test')


@pytest.mark.parametrize(
    'scope, kind', [('vop', 'VideoTextDataset'), ('mmaction', 'VideoTextDataset')]
)
def test_a_name_without_a_scope_is_of_the_default_one(scope, kind):
    """MMAction2 has a class of the same name."""
    dataset = dict(type=kind, ann_file='nothing.json')
    cfg = Config(dict(default_scope=scope, test_dataloader=dict(dataset=dataset)))
    if scope == 'vop':
        with pytest.raises(UserError, match='nothing.json'):
            check_data(cfg, 'test')
    else:
        check_data(cfg, 'test')


class MyAmp(AmpOptimWrapper):
    """One of somebody else."""


@pytest.mark.parametrize(
    'wrapper, wanted',
    [
        (dict(), 'AmpOptimWrapper'),
        (dict(type='mmengine.OptimWrapper'), 'AmpOptimWrapper'),
        (dict(type=OptimWrapper), 'AmpOptimWrapper'),
        (dict(type='AmpOptimWrapper'), 'AmpOptimWrapper'),
        (dict(type=MyAmp), MyAmp),
        (dict(type='ApexOptimWrapper'), None),
        (dict(type=ApexOptimWrapper), None),
        (dict(type='Nothing'), None),
    ],
)
def test_mixed_precision_with_each_optimizer_wrapper(wrapper, wanted):
    cfg = Config(dict(optim_wrapper=wrapper))
    if wanted is None:
        name = getattr(wrapper['type'], '__name__', wrapper['type'])
        with pytest.raises(UserError, match=name):
            use_amp(cfg)
    else:
        use_amp(cfg)
        assert cfg.optim_wrapper.type == wanted


@pytest.fixture
def write_clip(tmp_path):
    """Write the tiny CLIP's config with changes of its text tower; gives its path."""

    def write(**text):
        config = TINY_CLIP | dict(text_cfg=TINY_CLIP['text_cfg'] | text)
        (tmp_path / 'clip.json').write_text(json.dumps(config))
        return str(tmp_path / 'clip.json')

    return write


class OwnTokenize(CLIPTokenize):
    """As a user's."""


@pytest.mark.parametrize('kind', ['vop.CLIPTokenize', CLIPTokenize, OwnTokenize])
@pytest.mark.parametrize(
    'text, fits',
    [
        (dict(), True),
        (dict(context_length=32), True),
        (dict(context_length=248), False),
        (dict(hf_tokenizer_name='facebook/xlm-v-base', vocab_size=901629), False),
        (dict(tokenizer_kwargs=dict(clean='canonicalize')), False),
    ],
)
def test_captions_are_tokenised_for_the_clip(write_clip, kind, text, fits):
    clip = dict(name=write_clip(**text), pretrained='openai', cache_dir='downloads')
    step = dict(type=kind)
    data = dict(dataset=dict(datasets=[dict(pipeline=[dict(type='DecordInit'), step])]))
    for _ in range(2):  # as when a dumped config is opened again
        fit_tokenizers(data, clip)
        own = {} if fits else dict(name=clip['name'], cache_dir='downloads')
        assert step == dict(type=kind, **own)
    # Named, it is what it is, or refused.
    for step in (dict(type=kind, name='ViT-L-14'), dict(type='CLIPTokenize')):
        before = dict(step)
        if fits:
            fit_tokenizers([step], clip)
        else:
            with pytest.raises(UserError, match=r'clip\.json is not that of ViT'):
                fit_tokenizers([step], clip)
        assert step == before


@pytest.mark.parametrize(
    'name, size, interpolation',
    [
        ('ViT-B-32-quickgelu', 224, 'bicubic'),
        ('PE-Core-L-14-336', 336, 'bilinear'),
        ('ViT-B-16-SigLIP2-384', 384, 'bicubic'),
    ],
)
def test_pictures_are_made_as_the_clip_takes_them(name, size, interpolation):
    config = open_config('configs/vop_msrvtt.py')
    config.test_dataloader.dataset.pipeline[4].scale = (-1, 256)  # larger than the crop
    for _ in range(2):  # as when a dumped config is opened again
        for split in ('train', 'test'):
            fit_pixels(config[f'{split}_dataloader'], dict(name=name), 'mmaction')
    train, test = (config[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'test'))
    assert (train[5].scale, train[5].interpolation) == ((size, size), interpolation)
    larger = round(256 * size / 224)
    assert (test[4].scale, test[4].interpolation) == ((-1, larger), interpolation)
    assert test[5].crop_size == size
    mmaction = [dict(type='mmaction.Resize', scale=(224, 224), interpolation='nearest')]
    fit_pixels(mmaction, dict(name=name), None)
    assert (mmaction[0]['scale'], mmaction[0]['interpolation']) == ((size, size), 'nearest')
    scales = [dict(type='Resize', scale=(-1, 256)), dict(type='MultiScaleCrop', input_size=224)]
    fit_pixels(scales, dict(name=name), 'mmaction')
    assert (scales[0]['scale'], scales[1]['input_size']) == ((-1, larger), size)
    views = [dict(type='Resize', scale=(-1, 256)), dict(type='ThreeCrop', crop_size=224)]
    fit_pixels(views, dict(name=name), 'mmaction')
    assert (views[0]['scale'], views[1]['crop_size']) == ((-1, larger), size)
    fit_pixels(half := [dict(type='Resize', scale=0.5)], dict(name=name), 'mmaction')
    assert half == [dict(type='Resize', scale=0.5)]
    fit_pixels(other := [dict(type='Flip')], dict(name='none such'), 'mmaction')
    assert other == [dict(type='Flip')]


def test_what_a_run_reads_fits_its_clip(write_clip, tmp_path):
    config = open_config('configs/vop_msrvtt.py')
    config.work_dir = str(tmp_path)
    config.model.clip = dict(name=write_clip())
    config.train_dataloader = config.train_cfg = config.optim_wrapper = None
    config.param_scheduler = None
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    build_runner(config)
    assert config.test_dataloader.dataset.pipeline[5].crop_size == 32


def test_a_tokenizer_without_a_scope_is_of_the_default_one(write_clip):
    clip, step = dict(name=write_clip(context_length=248)), dict(type='CLIPTokenize')
    fit_tokenizers(step, clip, 'vop')
    assert step['name'] == clip['name']
    with pytest.raises(UserError, match='tokenizer'):  # MMAction2's, which takes no name
        fit_tokenizers(dict(type='CLIPTokenize'), clip, 'mmaction')


def test_words_that_a_clip_lacks_are_said(write_clip):
    with pytest.raises(UserError, match=r'clip\.json has 30522 words.*hf_tokenizer_name'):
        fit_tokenizers(dict(type='vop.CLIPTokenize'), dict(name=write_clip(vocab_size=30522)))


def test_a_run_that_does_not_fit_its_clip_is_refused(write_clip):
    config = open_config('configs/vop_msrvtt.py')
    config.model.clip = dict(name=write_clip(context_length=248))
    config.val_dataloader.dataset.pipeline[-2].name = 'ViT-B-32'
    with pytest.raises(UserError, match='tokenizer'):
        build_runner(config)
    assert config.train_dataloader.dataset.pipeline[-2].name == config.model.clip.name
    config = open_config('configs/mix/vop_recognizer_kinetics400.py')
    # Which was trained with another mean than OpenAI's.
    config.model.backbone.clip = dict(name='ViT-L-14', pretrained='laion2b_s32b_b82k')
    with pytest.raises(UserError, match=r'data_preprocessor\.mean .*127\.5'):
        build_runner(config)


def test_a_config_is_found_by_its_name_and_ones_own_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_config('vop_fp_didemo').test_dataloader.dataset.data_root == 'data/didemo'
    assert open_config('moving_shapes/vop').model.visual.num_frames == 8
    (tmp_path / 'configs/_base_/datasets').mkdir(parents=True)
    (tmp_path / 'configs/_base_/datasets/pets.py').write_text("data_root = 'my_pets'")
    assert open_config('vop_c_pets').data_root == 'my_pets'
    (tmp_path / 'configs/vop_msrvtt.py').write_text('is_mine = True')
    for name in ('vop_msrvtt', 'configs/vop_msrvtt.py'):
        assert open_config(name).is_mine
    for name in ('', '.', 'vop_c_dogs'):
        with pytest.raises(UserError, match='There is no config'):
            open_config(name)
    # The CLIP of MovingShapes is the package's, wherever one is.
    name = open_config('moving_shapes/vop').model.clip.name
    assert read_clip_config(name).size == (32, 32)
    assert Path(absolute_name(name)).is_file()
