"""What a GPU may do otherwise than a CPU: there by `-m gpu`, here as far as a CPU can."""

import json
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    MODELSCOPE_CLIP,
    ROOT,
    free_port,
    in_two_processes,
    make_batch,
    make_model,
    records,
    run,
)
from methods import assert_same
from mmengine.runner import Runner
from torch.nn.attention import SDPBackend, sdpa_kernel

from projects.vop.apis import VoPInferencer
from projects.vop.engine import open_config, pin_memory
from projects.vop.evaluation import DSL, QBNorm, RetrievalMetric, evaluate_similarity
from projects.vop.models import RetrievalDataPreprocessor

pytestmark = pytest.mark.usefixtures('read_here')

HAS_GPU = torch.cuda.is_available()
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason='there is no GPU')]
GPU = pytest.param('cuda', marks=NEEDS_GPU)
on_both = pytest.mark.parametrize('device', ['cpu', GPU])
on_a_gpu = pytest.mark.parametrize('device', [GPU])
VOP = ['vop', 'vop_p', 'vop_c', 'vop_f', 'vop_fp', 'vop_fc']
OTHERS = ['full', 'bias', 'proj', 'partial', 'adapter_attn', 'adapter_ffn', 'lora']
# Ten pairs of small videos, in batches of 4. By SGD, whose weights tell the gradients apart.
STEPS = 3
OPTIONS = {
    'model.clip.pretrained': None,
    'train_cfg.max_epochs': 2,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1,
    'log_processor.window_size': 1,
    'optim_wrapper.optimizer.type': 'SGD',
    'optim_wrapper.optimizer.lr': 0.1,
    'optim_wrapper.optimizer.weight_decay': 0.0,
    'train_dataloader.batch_size': 4,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'train_dataloader.dataset.data_prefix.video': '',
    'train_dataloader.dataset.pipeline.3.keep_ratio': False,
}


def skip_without(dtype, device):
    # Asked here, as it starts CUDA in this process.
    if device == 'cuda' and dtype == 'bfloat16' and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip('this GPU has no bfloat16')


@pytest.fixture
def command(video_folder, tmp_path, monkeypatch):
    """Makes what tools/train.py is called with; a run is a folder of tmp_path."""
    monkeypatch.chdir(ROOT)

    def make(name, *arguments, method='vop', **options):
        options = OPTIONS | {'train_dataloader.dataset.data_root': video_folder} | options
        place = '--work-dir', tmp_path / name, '--no-validate', *arguments
        changes = [f'{key}={value}' for key, value in options.items()]
        return f'configs/moving_shapes/{method}.py', *place, '--cfg-options', *changes

    return make


@pytest.fixture
def train(command, device, run_tool, tmp_path):
    """Trains in this process; gives the losses."""
    if device == 'cpu' and HAS_GPU:
        pytest.skip('where there is a GPU, training takes it')

    def train(name, *arguments, **kwargs):
        run_tool('tools/train.py', *command(name, *arguments, **kwargs))
        return losses(tmp_path / name)

    return train


def losses(work_dir):
    return [record['loss'] for record in records(work_dir) if 'loss' in record]


def second_epoch(work_dir):
    """What the second epoch added to all that trains, as one vector."""
    first, second = (
        torch.load(work_dir / f'epoch_{n}.pth', 'cpu', weights_only=True)['state_dict']
        for n in (1, 2)
    )
    names = [name for name in first if not name.endswith('_extra_state')]
    return torch.cat([(second[name] - first[name]).flatten() for name in names])


def gradients(model, data):
    """The loss of a batch, and the gradients of all that trains."""
    loss = sum(model(**data, mode='loss').values())
    loss.backward()
    named = model.named_parameters()
    return loss.item(), {n: p.grad.float().cpu() for n, p in named if p.requires_grad}


@on_a_gpu
@pytest.mark.parametrize('method', [*VOP, *OTHERS])
def test_losses_and_gradients_are_those_of_a_cpu(tiny_clip, method, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    found = []
    for place in ('cpu', device):
        model = make_model(tiny_clip, method).to(place)
        found.append(gradients(model, model.data_preprocessor(make_batch())))
    (loss, wanted), (ours, given) = found
    assert ours == pytest.approx(loss, rel=1e-4)
    for name, gradient in wanted.items():
        assert_same(given[name], gradient, 1e-3)


@on_both
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('method', [*VOP, 'full', 'lora'])
def test_gradients_of_autocast_are_close(tiny_clip, method, dtype, device):
    """Scaled, as a GradScaler does: those of float16 would vanish."""
    skip_without(dtype, device)
    model = make_model(tiny_clip, method).to(device)
    data = model.data_preprocessor(make_batch())
    wanted, exact = gradients(model, data)
    model.zero_grad()
    with torch.autocast(device, getattr(torch, dtype)):
        found = model(**data, mode='loss')
    loss = sum(found.values())
    (loss * 1024).backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wanted, rel=0.01)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and exact[name].any():  # of LoRA, half are 0 at first
            ours, theirs = (parameter.grad / 1024).cpu().flatten(), exact[name].flatten()
            assert F.cosine_similarity(ours, theirs, dim=0, eps=1e-30) > 0.98, name
            assert ours.norm().item() == pytest.approx(theirs.norm().item(), rel=0.1), name


@pytest.mark.slow
@pytest.mark.parametrize(
    'method, dtype, device',
    [
        ('vop_fc', 'bfloat16', 'cpu'),
        *(
            pytest.param(method, dtype, 'cuda', marks=NEEDS_GPU)
            for method in ('vop', 'vop_fc')
            for dtype in ('bfloat16', 'float16')
        ),
    ],
)
def test_training_in_mixed_precision(train, tmp_path, method, dtype, device):
    """By --amp on a GPU. MMEngine has none on a CPU, where autocast is around all of it."""
    skip_without(dtype, device)
    wanted = train('float32', method=method)
    arguments, options, around = ['--amp'], {'optim_wrapper.dtype': dtype}, nullcontext()
    if device == 'cpu':
        arguments, options, around = [], {}, torch.autocast('cpu', getattr(torch, dtype))
    with around:
        ours = train('amp', *arguments, method=method, **options)
    assert len(ours) == 2 * STEPS and ours == pytest.approx(wanted, rel=0.05)
    updates = [second_epoch(tmp_path / name) for name in ('amp', 'float32')]
    assert F.cosine_similarity(*updates, dim=0) > 0.8
    if device == 'cuda':
        checkpoint = torch.load(tmp_path / 'amp/epoch_2.pth', 'cpu', weights_only=True)
        assert checkpoint['optimizer']['loss_scaler']['scale'] >= 1


@pytest.mark.slow
@on_both
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    command, train, run_tool, tmp_path, device
):
    """Exactly, by deterministic algorithms alone, which a process has to know from its start."""
    arguments = ['--deterministic', *(['--amp'] if device == 'cuda' else [])]
    first = tmp_path / 'whole/epoch_1.pth'
    for name, resume in (('whole', []), ('resumed', ['--resume', first])):
        words = command(name, *arguments, *resume, method='vop_fc')
        if device == 'cuda':
            run(sys.executable, 'tools/train.py', *words)
            continue
        try:
            run_tool('tools/train.py', *words)
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.deterministic = False
    assert len(losses(tmp_path / 'whole')) == 2 * STEPS
    assert losses(tmp_path / 'resumed') == losses(tmp_path / 'whole')[STEPS:]


@pytest.mark.slow
@on_a_gpu
def test_a_compiled_model_trains_as_a_plain_one(train, tmp_path, device):
    """By Inductor; on a CPU, another file has it by a quicker backend."""
    options = {'train_dataloader.drop_last': True}
    wanted = train('plain', **options)
    ours = train('compiled', **options, **{'compile.backend': 'inductor'})
    assert len(ours) == 2 * (STEPS - 1) and ours == pytest.approx(wanted, rel=1e-3)
    updates = [second_epoch(tmp_path / name) for name in ('compiled', 'plain')]
    assert F.cosine_similarity(*updates, dim=0) > 0.99


@pytest.mark.slow
@on_both
def test_batches_come_from_pinned_memory(video_folder, device, monkeypatch):
    """And are on the device as they were read."""
    if device == 'cpu' and HAS_GPU:
        pytest.skip('where there is a GPU, memory is pinned')
    monkeypatch.chdir(ROOT)
    cfg = open_config('configs/moving_shapes/vop.py')
    cfg.train_dataloader.num_workers = 2
    cfg.train_dataloader.dataset.update(data_root=str(video_folder), data_prefix=dict(video=''))
    cfg.train_dataloader.dataset.pipeline[3].keep_ratio = False
    pin_memory(cfg)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    tensors = batch['inputs']['imgs'], batch['inputs']['text']
    assert all(tensor.is_pinned() == (device == 'cuda') for tensor in tensors)
    assert {sample.video_id for sample in batch['data_samples']} == {f'{n}.mp4' for n in range(5)}
    preprocess = RetrievalDataPreprocessor().to(device)
    there = preprocess(batch)['inputs']
    here = preprocess.to('cpu')(batch)['inputs']
    assert there['imgs'].device.type == there['text'].device.type == device
    assert torch.allclose(there['imgs'].cpu(), here['imgs'], atol=1e-5)
    assert there['text'].cpu().equal(here['text'])


@on_both
@pytest.mark.parametrize('method', [*VOP, 'full'])
def test_frames_attend_by_flash_and_words_without_a_matrix_of_scores(tmp_path, method, device):
    """With heads of 64, as all CLIPs have; others than multiples of 8 have fewer kernels.

    The causal mask, whose first row sees no prompt, rules out flash on a GPU.
    """
    skip_without('bfloat16', device)
    (tmp_path / 'clip.json').write_text(json.dumps(MODELSCOPE_CLIP))
    model = make_model(str(tmp_path / 'clip.json'), method).to(device)
    inputs = model.data_preprocessor(make_batch())['inputs']
    of_texts = {'cpu': SDPBackend.FLASH_ATTENTION, 'cuda': SDPBackend.EFFICIENT_ATTENTION}[device]
    with torch.autocast(device, torch.bfloat16):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            model.encode_video(inputs['imgs']).sum().backward()
        with sdpa_kernel(of_texts):
            model.encode_text(inputs['text']).sum().backward()


@pytest.mark.slow
@on_both
def test_several_processes_train_as_one(command, train, run_tool, tmp_path, device):
    """By NCCL with a process for each GPU, by gloo with two on a CPU."""
    size = min(torch.cuda.device_count(), 8) if device == 'cuda' else 2
    each = max(1, 4 // size)
    wanted = train('one', method='vop_fc', **{'train_dataloader.batch_size': size * each})
    words = command('all', method='vop_fc', **{'train_dataloader.batch_size': each})
    # Before the options of the config, of which there may be any number.
    words = 'tools/train.py', words[0], '--launcher', 'pytorch', *words[1:]
    if device == 'cuda':
        launch = sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', size
        run(*launch, '--master_port', free_port(), *words)
    else:
        in_two_processes(run_tool, *words)
    # Of whole batches; at the end of an epoch, processes read some items twice.
    whole = 10 // (size * each)
    assert losses(tmp_path / 'all')[:whole] == pytest.approx(wanted[:whole], rel=1e-3)


@on_both
def test_ranking_is_that_of_a_plain_matrix(device):
    """More than a tile of it; corrected by DSL and QB-Norm, too."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(1100, 32, generator=generator)
    text = video.repeat(2, 1) + 2 * torch.randn(2200, 32, generator=generator)
    video, text = F.normalize(video, dim=-1), F.normalize(text, dim=-1)
    bank = dict(text=text[:50].flip(1), video=video[:50].flip(1))

    def rank(place):
        metric = RetrievalMetric(rescoring=[DSL(), QBNorm(**bank)], device=place)
        for number in range(len(video)):
            sample = dict(video_feature=video[number], text_feature=text[number::1100])
            metric.process({}, [sample])
        return metric.evaluate(len(video))

    ours, index = rank(device), torch.arange(1100).repeat(2)
    plain = evaluate_similarity((text.double() @ video.double().T).float(), index)
    assert 5 < plain['t2v/R@1'] < 95 and len(ours) == 3 * len(plain)
    assert {name: ours[name] for name in plain} == pytest.approx(plain)
    assert ours == pytest.approx(rank('cpu'))


@on_a_gpu
@pytest.mark.slow
def test_embeddings_are_those_of_a_cpu(retrieval_config, video_folder, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    config, found = retrieval_config('vop_c'), []
    for place in (device, 'cpu'):
        torch.manual_seed(0)  # of the prompts
        inferencer = VoPInferencer(config, None, place, show_progress=False)
        videos = inferencer.encode_videos([video_folder / f'{n}.mp4' for n in range(5)])
        found.append(torch.cat([videos.embeddings, inferencer.encode_texts(['a dog', 'a cat'])]))
    assert torch.allclose(*found, atol=1e-4)
