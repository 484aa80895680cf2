"""The model as a whole: embeddings, loss, training step, parameters."""

import open_clip
import pytest
import reference
import torch
import torch.distributed as dist
from helpers import ROOT, in_two_processes, make_batch, make_model
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

from projects.vop.models import open_towers

FAMILY = [
    'zero_shot',
    'full',
    'bias',
    'proj',
    'partial',
    'adapter_attn',
    'adapter_ffn',
    'vop_text',
    'vop_visual',
    'vop',
    'vop_p',
    'vop_c',
    'vop_f',
    'vop_fp',
    'vop_fc',
]


def test_preprocessor_normalises_as_open_clip_does(tiny_clip):
    data = make_batch()
    frame = data['inputs']['imgs'][1][2]
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    model = make_model(tiny_clip)
    done = model.data_preprocessor(data)['inputs']
    assert torch.allclose(done['imgs'][1, 2], (frame / 255 - mean) / std, atol=1e-5)
    assert done['text'].shape == (3, 77)
    assert done['num_texts'].tolist() == [1, 1, 1]


def test_workers_may_stack(tiny_clip):
    """With the collate_fn of the configs, workers stack the frames."""
    config = Config.fromfile(ROOT / 'configs/vop_msrvtt.py')
    assert config.train_dataloader.collate_fn.type == 'default_collate'
    data = make_batch()
    items = [
        dict(
            inputs={key: value[i] for key, value in data['inputs'].items()},
            data_samples=data['data_samples'][i],
        )
        for i in range(3)
    ]
    preprocess = make_model(tiny_clip).data_preprocessor
    listed, stacked = (preprocess(collate(items)) for collate in (pseudo_collate, default_collate))
    for key, value in listed['inputs'].items():
        assert torch.equal(stacked['inputs'][key], value)
    assert len(stacked['data_samples']) == 3


def test_pixels_are_normalised_as_the_clip_was_trained(tiny_clip):
    from dataclasses import replace

    from projects.vop.models import retriever

    model = make_model(tiny_clip)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx(
        [255 * v for v in open_clip.OPENAI_DATASET_MEAN]
    )
    towers = replace(open_towers(tiny_clip), mean=(0.5, 0.6, 0.7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retriever, 'towers_of', lambda _: towers)
        model = make_model(tiny_clip)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([127.5, 153, 178.5])
    model = make_model(
        tiny_clip,
        data_preprocessor=dict(type='vop.RetrievalDataPreprocessor', mean=(0.1, 0.1, 0.1)),
    )
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([25.5] * 3)


def test_video_embedding_is_the_mean_of_normalised_frames(tiny_clip):
    model = make_model(tiny_clip)
    inputs = model.data_preprocessor(make_batch())['inputs']
    frames = torch.stack([reference.encode_frames(model.visual, video) for video in inputs['imgs']])
    mean = (frames / frames.norm(dim=-1, keepdim=True)).mean(1)
    ours, text = model(inputs, mode='tensor')
    assert torch.allclose(ours, mean / mean.norm(dim=-1, keepdim=True), atol=1e-5)
    assert torch.allclose(text.norm(dim=-1), torch.ones(3), atol=1e-6)
    model.normalize_video = False
    assert torch.allclose(model(inputs)[0], mean, atol=1e-5)


def test_loss_is_the_symmetric_cross_entropy(tiny_clip):
    model = make_model(tiny_clip)
    model.logit_scale.fill_(2.0)
    inputs = model.data_preprocessor(make_batch())['inputs']
    video, text = model(inputs)
    scores = torch.tensor(2.0).exp() * text @ video.T
    t2v = -scores.softmax(1).diag().log().mean() / 2
    v2t = -scores.softmax(0).diag().log().mean() / 2
    loss = model(inputs, mode='loss')
    assert torch.allclose(loss['loss_t2v'], t2v, atol=1e-5)
    assert torch.allclose(loss['loss_v2t'], v2t, atol=1e-5)


def test_predict_gives_each_video_its_captions(tiny_clip):
    model = make_model(tiny_clip)
    data = model.data_preprocessor(make_batch(captions=2))
    video, text = model(data['inputs'])
    samples = model(**data, mode='predict')
    assert [len(s.text_feature) for s in samples] == [2, 3, 4]
    assert torch.equal(torch.cat([s.text_feature for s in samples]), text)
    assert torch.equal(torch.stack([s.video_feature for s in samples]), video)


def test_training_with_several_captions_a_video_is_refused(tiny_clip):
    model = make_model(tiny_clip)
    data = model.data_preprocessor(make_batch(captions=2))
    with pytest.raises(ValueError, match='one caption per video'):
        model(**data, mode='loss')
    with pytest.raises(ValueError, match="'loss', 'predict' or 'tensor'"):
        model(**data, mode='train')


@pytest.mark.parametrize('method', FAMILY[1:])
def test_a_training_step_changes_what_trains_alone(tiny_clip, method):
    model = make_model(tiny_clip, method)
    before = {
        name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]
    }
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.2))
    model.train()
    model.train_step(make_batch(), optimizer)
    after = dict([*model.named_parameters(), *model.named_buffers()])
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert changed == trainable
    if method.startswith(('vop', 'adapter')):
        assert not [name for name in changed if 'backbone' in name]


def gradients_of_two(clip, methods, out):
    """Runs in each of two processes; the first saves losses and gradients."""
    dist.init_process_group('gloo')
    rank, results = dist.get_rank(), {}
    for method in methods:
        model = DistributedDataParallel(make_model(clip, method).double())
        inputs = model.module.data_preprocessor(make_batch(videos=6))['inputs']
        mine = dict(imgs=inputs['imgs'][rank::2].double(), text=inputs['text'][rank::2])
        losses = model(mine, mode='loss')
        sum(losses.values()).backward()
        named = model.module.named_parameters()
        results[method] = dict(
            losses={k: v.detach() for k, v in losses.items()},
            gradients={n: p.grad for n, p in named if p.grad is not None},
        )
    if rank == 0:
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tiny_clip, tmp_path):
    """In float64, where rounding cannot hide a difference."""
    methods = 'vop', 'vop_fc', 'full', 'adapter_attn'
    in_two_processes(gradients_of_two, tiny_clip, methods, tmp_path / 'out.pth')
    results = torch.load(tmp_path / 'out.pth', weights_only=True)
    for method in methods:
        model = make_model(tiny_clip, method).double()
        inputs = model.data_preprocessor(make_batch(videos=6))['inputs']
        inputs['imgs'] = inputs['imgs'].double()
        losses = model(inputs, mode='loss')
        sum(losses.values()).backward()
        theirs = results[method]
        for name, value in losses.items():
            assert torch.allclose(theirs['losses'][name], value, atol=1e-6)
        for name, p in model.named_parameters():
            if p.requires_grad:
                assert torch.allclose(theirs['gradients'][name], p.grad, atol=1e-6), name
