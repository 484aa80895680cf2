"""The configs of configs/mix: MMAction2's parts and ours in one run."""

import importlib.util
import json
import shutil
import sys
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import mmaction
import open_clip
import packaging
import pytest
import torch
from helpers import MODELSCOPE_CLIP, ROOT, save_clip
from helpers import run as run_command
from mmaction.apis import inference_recognizer, init_recognizer
from mmaction.registry import DATASETS, MODELS
from mmengine.config import Config

from projects.vop.datasets.moving_shapes import write_moving_shapes
from projects.vop.engine import open_config
from projects.vop.errors import UserError
from projects.vop.evaluation import Embeddings, RetrievalMetric, evaluate_similarity

pytestmark = pytest.mark.usefixtures('read_here')

MIX = ROOT / 'configs/mix'
MMACTION2 = Path(mmaction.__file__).parent / '.mim'
BACKBONE = {
    'backbone.frame_positional_embedding',
    *(f'backbone.prompts.{i}.tokens' for i in range(3)),
}
LINEAR = {'cls_head.fc_cls.weight', 'cls_head.fc_cls.bias'}
PROMPTS = {'visual.prompts.0.tokens', 'text.prompts.0.tokens'}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('moving_shapes')
    write_moving_shapes(folder)
    return folder


@pytest.fixture(scope='module')
def kinetics(video_folder, tmp_path_factory):
    """Five videos laid out as MMAction2's Kinetics-400."""
    folder = tmp_path_factory.mktemp('kinetics400')
    for split in ('train', 'val'):
        (folder / f'videos_{split}').symlink_to(video_folder)
        labels = ''.join(f'{number}.mp4 {99 * number}\n' for number in range(5))
        (folder / f'kinetics400_{split}_list_videos.txt').write_text(labels)
    classes = ''.join(f'doing thing {number}\n' for number in range(400))
    (folder / 'label_map_k400.txt').write_text(classes)
    return folder


@pytest.fixture(scope='module')
def clip(tiny_clip, tmp_path_factory):
    """Arguments that open the tiny CLIP, with the same weights each time."""
    weights = save_clip(tiny_clip, tmp_path_factory.mktemp('weights') / 'clip.pt')
    return dict(name=tiny_clip, pretrained=weights)


def shrink(name, clip, folder):
    """A config for an epoch on 12 clips of a folder and a test on 6, with the tiny CLIP."""
    config = Config.fromfile(MIX / f'{name}.py')
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.logger.interval = config.default_hooks.checkpoint.interval = 1
    if 'backbone' in config.model:
        config.model.backbone.clip = clip
        config.model.backbone.temporal_layers = min(1, config.model.backbone.temporal_layers)
        head = config.model.cls_head
        if head.type == 'vop.CaptionHead':
            head.clip = clip
            head.classes = str(folder / Path(head.classes).name)
            head.templates = ['{}']
        else:
            head.in_channels = 32
    elif 'clip' in config.model:
        config.model.clip = clip
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        data = loader.dataset
        own = 'train.json' if split == 'train' else 'test.json'
        data.update(
            data_root=str(folder),
            ann_file=own if data.ann_file.endswith('.json') else Path(data.ann_file).name,
            data_prefix=dict(video=Path(data.data_prefix.video).name),
            indices=12 if split == 'train' else 6,
            serialize_data=False,  # which takes a gc.collect
        )
    loaded = [config[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'val', 'test')]
    for step in sum(map(list, loaded), []):
        if step.type == 'UniformSample' and step.clip_len == 12:
            step.clip_len = 4
    # Those of data loaders follow the CLIP.
    has_clip = 'clip' in {**config.model, **config.model.get('backbone', {})}
    for step in sum([] if has_clip else map(list, loaded), list(config.get('test_pipeline', []))):
        if step.type == 'Resize':
            step.scale = tuple(min(size, 32) for size in step.scale)
        elif step.type == 'CenterCrop':
            step.crop_size = 32
    return config


def logged(work_dir, key):
    """All values of a key that a run logged, in order."""
    return [
        record[key]
        for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
        for record in map(json.loads, path.read_text().splitlines())
        if key in record
    ]


def metrics(work_dir):
    """What a test wrote last."""
    files = sorted(work_dir.glob('*/*.json'))
    return json.loads(files[-1].read_text()) if files else None


def trained(checkpoint):
    """The tensors of a checkpoint."""
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    return {name: value for name, value in state.items() if not name.endswith('_extra_state')}


@pytest.fixture
def run(run_tool, tmp_path):
    """Runs tools/train.py or tools/test.py on a config in ``tmp_path / tool``."""

    def start(tool, config, *arguments):
        path = tmp_path / 'config.py'
        config.dump(path)
        run_tool(f'tools/{tool}.py', path, *arguments, '--work-dir', tmp_path / tool)
        return metrics(tmp_path / tool)

    return start


def train_and_test(run, tmp_path, config, metric):
    """Trains a config and tests what it wrote; gives the checkpoint and the metrics."""
    run('train', config)
    losses = logged(tmp_path / 'train', 'loss')
    assert len(losses) in (2, 3) and all(0 < loss < 50 for loss in losses)
    [best] = (tmp_path / 'train').glob('best_*_epoch_1.pth')
    results = run('test', config, best)
    assert results[metric] == logged(tmp_path / 'train', metric)[0]
    return best, results


# Recognition


@pytest.fixture(scope='module')
def two_scenes(shapes):
    """Two test clips and their reverses, as the config reads them, and their labels."""
    config = Config.fromfile(MIX / 'vop_recognizer_moving_shapes.py').test_dataloader.dataset
    dataset = DATASETS.build(config | dict(data_root=str(shapes)))
    items = [dataset[i] for i in (0, 1, 4, 5)]
    data = {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}
    labels = [int(sample.gt_label) for sample in data['data_samples']]
    assert len(set(labels)) == 4
    assert torch.equal(data['inputs'][0], data['inputs'][1].flip(2))
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


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, sees_order', [('vop_recognizer', True), ('vop_recognizer', False), ('vop_tsn', True)]
)
def test_recognizers_learn_the_order_of_frames(clip, shapes, two_scenes, name, sees_order):
    """Blind for order, two of the four clips are all that can be right."""
    config = shrink(f'{name}_moving_shapes', clip, shapes)
    config.model.cls_head.dropout_ratio = 0  # it takes steps
    if not sees_order:
        prompts = [dict(type='vop.LearnedPrompt', length=8)]
        config.model.backbone.update(temporal_layers=0, prompts=prompts)
    data, labels = two_scenes
    if name == 'vop_tsn':
        data = dict(data, inputs=[video[0].transpose(0, 1) for video in data['inputs']])
    model, losses = train_steps(config, data, 70)
    samples = model(**model.data_preprocessor(dict(data)), mode='predict')
    right = sum(int(sample.pred_label) == label for sample, label in zip(samples, labels))
    if sees_order:
        assert right == 4 and losses[-1] < 0.69
    else:
        assert right <= 2 and min(losses) > 0.69  # log 2


@pytest.mark.slow
def test_prompts_learn_with_classes_as_captions(clip, shapes, two_scenes):
    config = shrink('vop_captions_moving_shapes', clip, shapes)
    model, losses = train_steps(config, two_scenes[0], 15)
    assert model.cls_head.num_classes == 12
    assert losses[-1] < losses[0] * 0.7
    assert model.cls_head.text.prompts[0].tokens.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, names',
    [
        ('vop_recognizer', BACKBONE | LINEAR),
        ('vop_tsn', BACKBONE | LINEAR),
        ('vop_captions', BACKBONE | {'cls_head.text.prompts.0.tokens'}),
    ],
)
def test_a_recognizer_of_kinetics(clip, kinetics, run, tmp_path, name, names):
    config = shrink(f'{name}_kinetics400', clip, kinetics)
    best, _ = train_and_test(run, tmp_path, config, 'acc/top5')
    assert trained(best).keys() == names
    # MMAction2's inference reads the config's `test_pipeline`.
    model = init_recognizer(config, str(best), device='cpu')
    sample = inference_recognizer(model, str(kinetics / 'videos_val/0.mp4'))
    assert sample.pred_score.sum().item() == pytest.approx(1)


@pytest.mark.slow
def test_a_recognizer_resumes(clip, shapes, run, tmp_path):
    config = shrink('vop_recognizer_moving_shapes', clip, shapes)
    run('train', config)
    config.train_cfg.max_epochs = 2
    run('train', config, '--resume')
    assert len(logged(tmp_path / 'train', 'acc/top1')) == 2
    files = [tmp_path / f'train/epoch_{epoch}.pth' for epoch in (1, 2)]
    before, after = (trained(file)['backbone.prompts.1.tokens'] for file in files)
    # Three steps from where it stood, not from a new start.
    assert 0 < (after - before).abs().max() < 0.04


@pytest.mark.slow
@pytest.mark.parametrize('name, data', [('moving_shapes', 'shapes'), ('kinetics400', 'kinetics')])
def test_zero_shot_needs_no_checkpoint_and_nothing_trains(request, clip, run, name, data):
    config = shrink(f'zero_shot_captions_{name}', clip, request.getfixturevalue(data))
    assert run('test', config).keys() >= {'acc/top1', 'acc/top5', 'acc/mean1'}
    with pytest.raises(UserError, match='Nothing trains'):
        run('train', config)


@pytest.mark.parametrize('path', sorted(MIX.glob('[!_]*.py')), ids=lambda path: path.stem)
def test_mmaction2_finds_this_project_and_pixels_are_normalised_for_clip(path):
    config = Config.fromfile(path)
    assert 'projects.vop' in config.custom_imports.imports
    preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor')
    if 'cls_head' not in config.model:  # retrieval, which knows
        assert preprocessor is None or config.model.type == 'CLIPSimilarity'
        return
    values = [*preprocessor.mean, *preprocessor.std]
    trained_with = [*open_clip.OPENAI_DATASET_MEAN, *open_clip.OPENAI_DATASET_STD]
    assert values == pytest.approx([255 * v for v in trained_with], abs=1e-3)


def test_mixes_share_schedules_and_adapters_are_there_for_every_data_set():
    ours, theirs = (
        Config.fromfile(MIX / f'{name}_kinetics400.py') for name in ('vop_recognizer', 'vop_tsn')
    )
    for key in ('optim_wrapper.optimizer', 'train_cfg.max_epochs', 'auto_scale_lr'):
        assert attrgetter(key)(ours) == attrgetter(key)(theirs)
    for name in ('simple_mean', 'transformer_adapter'):
        config = open_config(MIX / f'vop_{name}_didemo.py')
        assert config.model.adapter.type.lower().startswith(name.partition('_')[0])
        assert config.train_dataloader.dataset.data_root == 'data/didemo'
    shapes = Config.fromfile(MIX / 'vop_transformer_adapter_moving_shapes.py')
    assert config.optim_wrapper.paramwise_cfg == shapes.optim_wrapper.paramwise_cfg


# Retrieval: MMAction2's temporal adapters, and its CLIP4Clip


@pytest.mark.slow
def test_the_simple_mean(clip, shapes, run, tmp_path):
    config = shrink('vop_simple_mean_msrvtt', clip, shapes)
    best, _ = train_and_test(run, tmp_path, config, 't2v/MnR')
    assert trained(best).keys() == PROMPTS


@pytest.mark.slow
def test_the_transformer_adapter(clip, shapes, run, tmp_path):
    config = shrink('vop_transformer_adapter_moving_shapes', clip, shapes)
    config.model.adapter.update(transformer_width=32, transformer_heads=2)
    best, _ = train_and_test(run, tmp_path, config, 't2v/MnR')
    saved = torch.load(best.with_name('epoch_1.pth'), weights_only=True)
    rates = {group['initial_lr'] for group in saved['optimizer']['param_groups']}
    assert max(rates) == pytest.approx(10 * min(rates))
    # The Runner has drawn it before training, with a small deviation.
    assert 0 < trained(best)['adapter.positional_embedding'].std() < 0.05
    assert not any('.backbone.' in name for name in trained(best))


@pytest.fixture
def openai_clip(monkeypatch):
    """OpenAI's package ``clip``, whose release asks for a part of setuptools that is gone."""
    if importlib.util.find_spec('pkg_resources') is None:
        monkeypatch.setitem(sys.modules, 'pkg_resources', SimpleNamespace(packaging=packaging))
    return pytest.importorskip('clip')


@pytest.mark.slow
def test_clip4clip_with_our_metric(openai_clip, write_archive, clip, shapes, run, tmp_path):
    """MMAction2's model, data set, pipeline and preprocessor."""
    archive, dump = tmp_path / 'ViT-tiny.pt', tmp_path / 'embeddings.pt'
    write_archive(open_clip.CLIP(**MODELSCOPE_CLIP), archive)  # heads of 64, as OpenAI's
    config = shrink('clip4clip_with_vop_metric', clip, shapes)
    config.model.clip_arch = str(archive)
    config.param_scheduler = None  # that of five epochs does not fit into one
    config.test_evaluator.dump = str(dump)
    best, results = train_and_test(run, tmp_path, config, 'v2t/MnR')
    assert 'clip.visual.transformer.resblocks.0.attn.in_proj_weight' in trained(best)
    tested = Embeddings.load(str(dump))
    assert tested.video.shape == tested.text.shape == (6, 32)
    scores = (tested.text.double() @ tested.video.double().T).float()
    wanted = evaluate_similarity(scores, torch.arange(6))
    assert results | wanted == results and results['v2t/MnR'] > 1


@pytest.mark.slow
def test_our_recognizer_on_its_data(openai_clip, clip, shapes, video_folder, run, tmp_path):
    config = shrink('vop_on_clip4clip_data', clip, shapes)
    config.param_scheduler = None
    best, theirs = train_and_test(run, tmp_path, config, 't2v/MnR')
    assert trained(best).keys() == PROMPTS
    # The same test set read as ours: the same numbers.
    data = config.test_dataloader.dataset
    data.type = 'vop.VideoTextDataset'
    data.pipeline[-2].type = 'vop.CLIPTokenize'
    ours = run('test', config, best)
    times = dict.fromkeys(('data_time', 'time'))
    assert ours | times == theirs | times
    # A video with several captions counts several times in theirs.
    data.update(data_root=str(video_folder), data_prefix=dict(video=''), indices=None, pipeline=[])
    kinds = 'VideoTextDataset', data.type
    assert [len(DATASETS.build(data | dict(type=kind))) for kind in kinds] == [15, 5]


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
    with pytest.raises(UserError, match='number 1'):
        metric.evaluate(3)


# Dropped into a checkout of MMAction2; one process imports torch once.
TRAIN_AND_TEST = """
import runpy, sys
import mmengine.config.config as config
config.FormatCode = lambda text, **kwargs: (text, None)  # takes longer than the training
for argv in (['tools/train.py', 'vop.py', '--work-dir', 'train'],
             ['tools/test.py', 'vop.py', 'train/epoch_1.pth', '--work-dir', 'test',
              '--cfg-options', 'experiment_name=test']):
    sys.argv = argv
    runpy.run_path(argv[0], run_name='__main__')
print(sys.modules['projects.vop'].__file__)
"""


@pytest.mark.slow
def test_in_a_checkout_of_mmaction2(clip, shapes, tmp_path):
    """Its own tools/train.py and tools/test.py; the config says the rest."""
    for folder in ('tools', 'configs/_base_'):
        shutil.copytree(MMACTION2 / folder, tmp_path / folder)
    (tmp_path / 'mmaction').symlink_to(MMACTION2.parent)
    shutil.copytree(ROOT / 'projects/vop', tmp_path / 'projects/vop')
    config = shrink('vop_recognizer_moving_shapes', clip, shapes)
    parts = ('model', 'imports', 'cfg', 'optim_wrapper', 'dataloader', 'evaluator')
    own = Config({key: config[key] for key in config if key.endswith(parts)})
    base = "_base_ = 'configs/_base_/default_runtime.py'\n"
    (tmp_path / 'vop.py').write_text(base + own.pretty_text)
    command = sys.executable, '-c', TRAIN_AND_TEST
    output = run_command(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert f'{tmp_path}/projects/vop/__init__.py' in output
    checkpoint = tmp_path / 'train/epoch_1.pth'
    assert checkpoint.stat().st_size < 2**20
    assert trained(checkpoint).keys() == BACKBONE | LINEAR
    assert metrics(tmp_path / 'test')['acc/top1'] == logged(tmp_path / 'train', 'acc/top1')[0]
