"""The configs of configs/mix: MMAction2's parts and ours in one run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmaction
import open_clip
import packaging
import pytest
import torch
from mmaction.apis import inference_recognizer, init_recognizer
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from projects.vop.datasets.moving_shapes import write_moving_shapes
from projects.vop.engine import open_config
from projects.vop.errors import UserError
from projects.vop.evaluation import RetrievalMetric, evaluate_similarity

ROOT = Path(__file__).resolve().parents[1]
MIX = ROOT / 'configs/mix'
MMACTION2 = Path(mmaction.__file__).parent / '.mim'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """MovingShapes, and short lists of it: 12 clips for training and 6."""
    folder = tmp_path_factory.mktemp('moving_shapes')
    write_moving_shapes(folder)
    for split, number in dict(train=12, test=6).items():
        lines = (folder / f'{split}_directions.txt').read_text().splitlines()
        (folder / f'{split}_few.txt').write_text('\n'.join(lines[:number]))
        captions = json.loads((folder / f'{split}.json').read_text())
        (folder / f'{split}_few.json').write_text(json.dumps(dict(list(captions.items())[:number])))
    return folder


@pytest.fixture(scope='module')
def clip(tiny_clip, tmp_path_factory):
    """Arguments that open the tiny CLIP, with the same weights each time."""
    path = tmp_path_factory.mktemp('weights') / 'clip.pt'
    torch.manual_seed(0)
    torch.save(
        open_clip.CustomTextCLIP(**json.loads(Path(tiny_clip).read_text())).state_dict(), path
    )
    return dict(name=tiny_clip, pretrained=str(path))


def shrink(config, clip, folder, frames=None):
    """Let a config read another folder, and short lists if it has them, with
    the tiny CLIP and no workers."""
    if config.model.get('backbone'):
        config.model.backbone.clip = clip
        if config.model.backbone.temporal_layers:
            config.model.backbone.temporal_layers = 1
        head = config.model.cls_head
        if head.type == 'vop.CaptionHead':
            head.clip = clip
            head.classes = str(folder / Path(head.classes).name)
        else:
            head.in_channels = 32
    elif 'clip' in config.model:
        config.model.clip = clip
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        data = loader.dataset
        lists = Path(data.ann_file)
        few = f'{"train" if split == "train" else "test"}_few{lists.suffix}'
        data.update(
            data_root=str(folder),
            ann_file=few if (folder / few).is_file() else lists.name,
            data_prefix=dict(video=Path(data.data_prefix.video).name),
            serialize_data=False,
        )  # which takes a gc.collect
    for pipeline in [
        config.get('test_pipeline', []),
        *(config[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'val', 'test')),
    ]:
        for step in pipeline:
            if step.type == 'Resize':
                step.scale = tuple(min(size, 32) for size in step.scale)
            elif step.type == 'CenterCrop':
                step.crop_size = 32
            elif step.type == 'UniformSample' and frames:
                step.clip_len = frames
    return config


@pytest.fixture
def run(run_tool, tmp_path):
    """Runs tools/train.py or tools/test.py in this process on a config."""

    def start(tool, config, *arguments):
        path = tmp_path / 'config.py'
        config.dump(path)
        run_tool(f'tools/{tool}.py', path, *arguments)

    return start


def logged(work_dir, key):
    """All values of a key that a run logged, in order."""
    return [
        record[key]
        for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
        for record in map(json.loads, path.read_text().splitlines())
        if key in record
    ]


def results_of(work_dir):
    [path] = work_dir.glob('*/*.json')
    return json.loads(path.read_text())


# Recognition of the directions of MovingShapes


@pytest.fixture(scope='module')
def two_scenes(shapes):
    """Two test clips and their reverses: frames [n x 3 x f x h x w] and
    labels, as the config reads them."""
    config = Config.fromfile(MIX / 'vop_recognizer_moving_shapes.py')
    from mmaction.datasets import VideoDataset

    dataset = VideoDataset(
        ann_file='test_directions.txt',
        data_root=str(shapes),
        data_prefix=dict(video='videos'),
        pipeline=config.test_dataloader.dataset.pipeline,
        test_mode=True,
    )
    items = [dataset[i] for i in (0, 1, 4, 5)]
    data = dict(
        inputs=[item['inputs'] for item in items],
        data_samples=[item['data_samples'] for item in items],
    )
    labels = [int(s.gt_label) for s in data['data_samples']]
    assert len(set(labels)) == 4
    for clip, reverse in ((0, 1), (2, 3)):
        assert torch.equal(data['inputs'][clip], data['inputs'][reverse].flip(2))
    return data, labels


def train_steps(config, data, steps):
    """Trains the model of a config on one batch; gives it and its losses."""
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    data = model.data_preprocessor(dict(data))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = model.train()(**data, mode='loss')['loss_cls']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


@pytest.mark.parametrize(
    'name, sees_order', [('vop_recognizer', True), ('vop_recognizer', False), ('vop_tsn', True)]
)
def test_recognizers_learn_the_order_of_frames(clip, shapes, two_scenes, name, sees_order):
    """Blind for order, two of the four clips are all that can be right."""
    config = shrink(Config.fromfile(MIX / f'{name}_moving_shapes.py'), clip, shapes)
    config.model.cls_head.dropout_ratio = 0  # it takes steps
    if not sees_order:
        config.model.backbone.update(
            temporal_layers=0, prompts=[dict(type='vop.LearnedPrompt', length=8)]
        )
    data, labels = two_scenes
    if name == 'vop_tsn':
        data = dict(data, inputs=[video[0].transpose(0, 1) for video in data['inputs']])
    model, losses = train_steps(config, data, 100)
    samples = model(**model.data_preprocessor(dict(data)), mode='predict')
    right = sum(int(sample.pred_label) == label for sample, label in zip(samples, labels))
    if sees_order:
        assert right == 4
        assert losses[-1] < 0.5
    else:
        assert right <= 2
        assert min(losses) > 0.69  # log 2


def test_prompts_learn_with_classes_as_captions(clip, shapes, two_scenes):
    config = shrink(Config.fromfile(MIX / 'vop_captions_moving_shapes.py'), clip, shapes)
    model, losses = train_steps(config, two_scenes[0], 15)
    assert model.cls_head.num_classes == 12
    assert losses[-1] < losses[0] * 0.7
    assert 'cls_head.text.prompts.0.tokens' in {
        name for name, p in model.named_parameters() if p.grad is not None
    }


def test_train_test_and_resume_with_accuracy(clip, shapes, run, tmp_path):
    """With MMAction2's VideoDataset and AccMetric."""
    config = shrink(Config.fromfile(MIX / 'vop_recognizer_moving_shapes.py'), clip, shapes)
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint.interval = 1
    work_dir = tmp_path / 'train'
    run('train', config, '--work-dir', work_dir)
    assert len(logged(work_dir, 'loss_cls')) == 3
    [accuracy] = logged(work_dir, 'acc/top1')
    best = work_dir / 'best_acc_top1_epoch_1.pth'
    state = torch.load(best, weights_only=True)['state_dict']
    assert {k for k in state if not k.endswith('_extra_state')} == {
        'backbone.frame_positional_embedding',
        'cls_head.fc_cls.weight',
        'cls_head.fc_cls.bias',
        *(f'backbone.prompts.{i}.tokens' for i in range(3)),
    }
    run('test', config, best, '--work-dir', tmp_path / 'test')
    assert results_of(tmp_path / 'test')['acc/top1'] == accuracy

    config.train_cfg.max_epochs = 2
    run('train', config, '--work-dir', work_dir, '--resume')
    assert len(logged(work_dir, 'acc/top1')) == 2
    states = [torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=True) for epoch in (1, 2)]
    assert [s['meta']['iter'] for s in states] == [3, 6]
    before, after = (s['state_dict']['backbone.prompts.1.tokens'] for s in states)
    # Three steps from where it stood, not from a new start.
    assert 0 < (after - before).abs().max() < 0.04


def test_zero_shot_needs_no_checkpoint_and_nothing_trains(clip, shapes, run, tmp_path):
    config = shrink(Config.fromfile(MIX / 'zero_shot_captions_moving_shapes.py'), clip, shapes)
    run('test', config, '--work-dir', tmp_path / 'test')
    assert set(results_of(tmp_path / 'test')) >= {'acc/top1', 'acc/top5'}
    with pytest.raises(UserError, match='Nothing trains'):
        run('train', config, '--work-dir', tmp_path / 'train')


# Kinetics-400


@pytest.fixture(scope='module')
def kinetics(video_folder, tmp_path_factory):
    """Five videos laid out as MMAction2's Kinetics-400."""
    folder = tmp_path_factory.mktemp('kinetics400')
    for split in ('train', 'val'):
        (folder / f'videos_{split}').symlink_to(video_folder)
        (folder / f'kinetics400_{split}_list_videos.txt').write_text(
            ''.join(f'{number}.mp4 {99 * number}\n' for number in range(5))
        )
    (folder / 'label_map_k400.txt').write_text(
        ''.join(f'doing thing {number}\n' for number in range(400))
    )
    return folder


@pytest.mark.parametrize('name', ['vop_recognizer', 'vop_tsn', 'vop_captions'])
def test_kinetics_trains_and_is_tested(clip, kinetics, run, tmp_path, name):
    config = shrink(Config.fromfile(MIX / f'{name}_kinetics400.py'), clip, kinetics)
    config.train_cfg.max_epochs = 1
    config.default_hooks.logger.interval = 1
    if name == 'vop_captions':
        config.model.cls_head.templates = ['{}']
    run('train', config, '--work-dir', tmp_path / 'train')
    losses = logged(tmp_path / 'train', 'loss_cls')
    assert len(losses) == 2 and all(0 < loss < 50 for loss in losses)
    [best] = (tmp_path / 'train').glob('best_acc_top1_epoch_1.pth')
    run('test', config, best, '--work-dir', tmp_path / 'test')
    assert results_of(tmp_path / 'test')['acc/top5'] == logged(tmp_path / 'train', 'acc/top5')[0]
    state = torch.load(best, weights_only=True)['state_dict']
    assert ('cls_head.text.prompts.0.tokens' in state) is (name == 'vop_captions')
    # MMAction2's inference reads the config's `test_pipeline`.
    model = init_recognizer(config, str(best), device='cpu')
    sample = inference_recognizer(model, str(kinetics / 'videos_val/0.mp4'))
    assert sample.pred_score.sum().item() == pytest.approx(1)


def test_kinetics_zero_shot(clip, kinetics, run, tmp_path):
    config = shrink(Config.fromfile(MIX / 'zero_shot_captions_kinetics400.py'), clip, kinetics)
    config.model.cls_head.templates = ['{}']
    assert not any(p.requires_grad for p in MODELS.build(config.model).parameters())
    run('test', config, '--work-dir', tmp_path)
    assert 0 <= results_of(tmp_path)['acc/mean1'] <= 1


def test_kinetics_has_one_schedule():
    ours, theirs = (
        Config.fromfile(MIX / f'{name}_kinetics400.py') for name in ('vop_recognizer', 'vop_tsn')
    )
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    assert ours.train_cfg.max_epochs == theirs.train_cfg.max_epochs
    assert ours.auto_scale_lr == theirs.auto_scale_lr


@pytest.mark.parametrize(
    'path',
    sorted(MIX.glob('*kinetics400.py')) + sorted(MIX.glob('*_moving_shapes.py')),
    ids=lambda path: path.stem,
)
def test_pixels_are_normalised_as_clip_was_trained(path):
    config = Config.fromfile(path)
    preprocessor = config.get('data_preprocessor') or config.model.get('data_preprocessor')
    if preprocessor is None:
        assert config.model.type == 'vop.RetrievalRecognizer'  # which knows
        return
    for values, clips in (
        (preprocessor.mean, open_clip.OPENAI_DATASET_MEAN),
        (preprocessor.std, open_clip.OPENAI_DATASET_STD),
    ):
        assert values == pytest.approx([255 * v for v in clips], abs=1e-3)


@pytest.mark.parametrize('path', sorted(MIX.glob('[!_]*.py')), ids=lambda path: path.stem)
def test_mmaction2s_own_tools_find_this_project(path):
    assert 'projects.vop' in Config.fromfile(path).custom_imports.imports


# MMAction2's temporal adapters


def test_an_adapter_trains_and_is_tested(clip, shapes, run, tmp_path):
    config = shrink(Config.fromfile(MIX / 'vop_transformer_adapter_moving_shapes.py'), clip, shapes)
    config.model.adapter.update(transformer_width=32, transformer_heads=2)
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.checkpoint.interval = 1
    work_dir = tmp_path / 'train'
    run('train', config, '--work-dir', work_dir)
    checkpoint = work_dir / 'epoch_1.pth'
    saved = torch.load(checkpoint, weights_only=True)
    state, rates = (
        saved['state_dict'],
        {group['initial_lr'] for group in saved['optimizer']['param_groups']},
    )
    assert max(rates) == pytest.approx(10 * min(rates))
    # The Runner has drawn it before training, with a small deviation.
    assert 0 < state['adapter.positional_embedding'].std() < 0.05
    assert not any('.backbone.' in name for name in state)
    run('test', config, checkpoint, '--work-dir', tmp_path / 'test')
    metrics = results_of(tmp_path / 'test')
    assert metrics['t2v/MnR'] == logged(work_dir, 't2v/MnR')[0]


def test_the_simple_mean_trains_and_is_tested(clip, shapes, run, tmp_path):
    config = shrink(Config.fromfile(MIX / 'vop_simple_mean_msrvtt.py'), clip, shapes, frames=4)
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.logger.interval = 1
    work_dir = tmp_path / 'train'
    run('train', config, '--work-dir', work_dir)
    assert len(logged(work_dir, 'loss')) == 3
    checkpoint = work_dir / 'epoch_1.pth'
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert {name for name in state if not name.endswith('_extra_state')} == {
        'visual.prompts.0.tokens',
        'text.prompts.0.tokens',
    }
    run('test', config, checkpoint, '--work-dir', tmp_path / 'test')
    assert results_of(tmp_path / 'test')['t2v/MnR'] == logged(work_dir, 't2v/MnR')[0]


def test_adapters_are_there_for_every_data_set():
    for name, kind in (
        ('vop_simple_mean', 'SimpleMeanAdapter'),
        ('vop_transformer_adapter', 'TransformerAdapter'),
    ):
        config = open_config(MIX / f'{name}_didemo.py')
        assert config.model.adapter.type == kind
        assert config.train_dataloader.dataset.data_root == 'data/didemo'
    shapes = Config.fromfile(MIX / 'vop_transformer_adapter_moving_shapes.py')
    assert config.optim_wrapper.paramwise_cfg == shapes.optim_wrapper.paramwise_cfg


# MMAction2's CLIP4Clip


@pytest.fixture(scope='module')
def archive(write_archive, tmp_path_factory):
    """A small CLIP as an archive of OpenAI's."""
    path = tmp_path_factory.mktemp('archive') / 'ViT-tiny.pt'
    torch.manual_seed(0)
    write_archive(
        open_clip.CLIP(
            embed_dim=32,
            quick_gelu=True,
            vision_cfg=dict(image_size=32, patch_size=16, layers=1, width=64),
            text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=1),
        ),
        path,
    )
    return str(path)


@pytest.fixture
def openai_clip(monkeypatch):
    """OpenAI's package ``clip``, whose release asks for a part of setuptools that is gone."""
    if importlib.util.find_spec('pkg_resources') is None:
        monkeypatch.setitem(sys.modules, 'pkg_resources', SimpleNamespace(packaging=packaging))
    return pytest.importorskip('clip')


def runner_of(config, work_dir):
    config.work_dir = str(work_dir)
    config.train_cfg.max_epochs = 1
    config.default_hooks.logger.interval = 1
    # The schedule of five epochs does not fit into one.
    config.param_scheduler = None
    return Runner.from_cfg(config)


def test_clip4clip_with_our_metric(openai_clip, archive, clip, shapes, tmp_path):
    """MMAction2's model, data set, pipeline and preprocessor."""
    config = shrink(Config.fromfile(MIX / 'clip4clip_with_vop_metric.py'), clip, shapes, frames=4)
    config.model.clip_arch = archive
    runner = runner_of(config, tmp_path)
    assert type(runner.model).__module__.startswith('mmaction.')
    before = {n: p.clone() for n, p in runner.model.named_parameters()}
    runner.train()
    assert len(logged(tmp_path, 'sim_loss_t2v')) == 3
    changed = {n for n, p in runner.model.named_parameters() if not torch.equal(p, before[n])}
    assert 'clip.visual.transformer.resblocks.0.attn.in_proj_weight' in changed
    assert 'clip.token_embedding.weight' not in changed  # frozen_layers=0

    metrics = runner.test()
    features = [
        sample.features
        for data in runner.test_dataloader
        for sample in runner.model.test_step(data)
    ]
    video, text = (
        torch.stack([f[name] for f in features]).double()
        for name in ('video_feature', 'text_feature')
    )
    assert metrics == evaluate_similarity(text @ video.T, torch.arange(6))
    assert metrics['v2t/MnR'] > 1


def test_our_recognizer_on_its_data(openai_clip, clip, shapes, tmp_path):
    config = shrink(Config.fromfile(MIX / 'vop_on_clip4clip_data.py'), clip, shapes, frames=4)
    runner = runner_of(config, tmp_path)
    assert type(runner.train_dataloader.dataset).__module__.startswith('mmaction.')
    runner.train()
    assert len(logged(tmp_path, 'loss_t2v')) == 3
    [best] = tmp_path.glob('best_t2v_R@1_epoch_1.pth')
    state = torch.load(best, weights_only=True)['state_dict']
    assert {'visual.prompts.0.tokens', 'text.prompts.0.tokens'} == {
        name for name in state if not name.endswith('_extra_state')
    }
    theirs = runner.test()

    # The same test set read as ours: the same numbers.
    ours = config.copy()
    ours.test_dataloader.dataset.type = 'vop.VideoTextDataset'
    ours.test_dataloader.dataset.pipeline[-2].type = 'vop.CLIPTokenize'
    ours.load_from = str(best)
    assert runner_of(ours, tmp_path / 'ours').test() == theirs


def test_a_video_with_several_captions_counts_several_times(
    openai_clip, clip, video_folder, tmp_path
):
    """Unless the test set is read by our data set."""
    counted = []
    for kind, tokenize in (
        ('VideoTextDataset', 'CLIPTokenize'),
        ('vop.VideoTextDataset', 'vop.CLIPTokenize'),
    ):
        config = shrink(
            Config.fromfile(MIX / 'vop_on_clip4clip_data.py'), clip, video_folder, frames=4
        )
        config.test_dataloader.dataset.update(
            type=kind, ann_file='test.json', data_prefix=dict(video='')
        )
        config.test_dataloader.dataset.pipeline[-2].type = tokenize
        runner = runner_of(config, tmp_path / kind)
        runner.test()
        [metric] = runner.test_evaluator.metrics
        counted.append((len(metric.tested.video), len(metric.tested.text)))
    assert counted == [(15, 15), (5, 15)]


def test_nothing_leaks_from_videos_without_names(tmp_path, logged_warnings):
    """MMAction2's data set gives them none."""
    samples = [dict(features=dict(video_feature=row, text_feature=row)) for row in torch.eye(3)]
    bank = str(tmp_path / 'bank.pt')
    for kwargs in (dict(dump=bank), dict(rescoring=[dict(type='vop.QBNorm', bank=bank)])):
        metric = RetrievalMetric(**kwargs)
        metric.process({}, samples)
        assert metric.evaluate(3)['t2v/R@1'] == 100
    assert not logged_warnings
    samples[1]['features']['text_feature'] = torch.full((3,), torch.nan)
    metric.process({}, samples)
    with pytest.raises(ValueError, match='of video number 1 is not finite'):
        metric.evaluate(3)


# Dropped into a checkout of MMAction2

PROJECT = """
import projects.vop
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SayWhereHook(Hook):

    def before_run(self, runner):
        runner.logger.info(f'VoP is in {projects.vop.__file__}.')
"""

IN_CHECKOUT = """
_base_ = '../../configs/_base_/default_runtime.py'

custom_imports = dict(
    imports=['projects.vop', 'projects.example_project.hook'],
    allow_failed_imports=False)
custom_hooks = [dict(type='SayWhereHook')]
"""


def test_in_a_checkout_of_mmaction2(clip, shapes, tmp_path):
    """Its own tools/train.py and tools/test.py; the config says the rest."""
    for folder in ('tools', 'configs/_base_'):
        shutil.copytree(MMACTION2 / folder, tmp_path / folder)
    (tmp_path / 'mmaction').symlink_to(MMACTION2.parent)
    shutil.copytree(
        ROOT / 'projects/vop',
        tmp_path / 'projects/vop',
        ignore=shutil.ignore_patterns('__pycache__'),
    )
    example = tmp_path / 'projects/example_project'
    example.mkdir()
    (example / 'hook.py').write_text(PROJECT)
    config = shrink(Config.fromfile(MIX / 'vop_recognizer_moving_shapes.py'), clip, shapes)
    config.train_cfg.update(max_epochs=1, val_interval=1)
    keys = (
        'model',
        'train_cfg',
        'val_cfg',
        'test_cfg',
        'optim_wrapper',
        *(f'{split}_dataloader' for split in ('train', 'val', 'test')),
        'val_evaluator',
        'test_evaluator',
    )
    (example / 'vop.py').write_text(
        IN_CHECKOUT + Config({key: config[key] for key in keys}).pretty_text
    )

    def start(*command):
        done = subprocess.run(
            [sys.executable, *command, '--work-dir', 'runs'],
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=str(tmp_path), OMP_NUM_THREADS='1'),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    output = start('tools/train.py', 'projects/example_project/vop.py')
    assert f'VoP is in {tmp_path}/projects/vop/__init__.py.' in output
    [accuracy] = logged(tmp_path / 'runs', 'acc/top1')
    checkpoint = tmp_path / 'runs/epoch_1.pth'
    assert checkpoint.stat().st_size < 2**20
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert 'cls_head.fc_cls.weight' in state
    assert not any('backbone.backbone' in name for name in state)

    output = start('tools/test.py', 'projects/example_project/vop.py', str(checkpoint))
    assert f'acc/top1: {accuracy:.4f}' in output
