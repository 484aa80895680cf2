"""The visual encoder between MMAction2's recognizers and heads."""

import open_clip
import pytest
import torch
from helpers import make_recognizer
from mmaction.registry import TRANSFORMS
from mmaction.structures import ActionDataSample

from projects.vop.errors import UserError
from projects.vop.models import open_towers
from projects.vop.registry import MODELS

METHODS = dict(
    vop=dict(prompts=[dict(type='vop.LearnedPrompt', length=2)]),
    vop_fc=dict(
        temporal_layers=1,
        prompts=[
            dict(type='vop.LearnedPrompt', length=2, layers='frame'),
            dict(type='vop.ContextPrompt', length=2, layers='frame'),
            dict(type='vop.LearnedPrompt', length=2, layers='video'),
        ],
    ),
)


@pytest.fixture(scope='module')
def towers(tiny_clip):
    torch.manual_seed(0)
    return open_towers(tiny_clip)


def make(towers, method='vop_fc', kind='vop.VideoBackbone', **kwargs):
    torch.manual_seed(1)
    config = dict(type=kind, clip=towers, num_frames=4, **METHODS[method], **kwargs)
    return MODELS.build(config).eval()


def recognizer(towers, dimensions, head, **kwargs):
    """A recognizer of MMAction2 for five classes."""
    backbone = dict(type='vop.VideoBackbone', clip=towers, num_frames=4, **METHODS['vop_fc'])
    linear = dict(num_classes=5, in_channels=32, dropout_ratio=0, average_clips='score')
    return make_recognizer(dimensions, dict(backbone, **kwargs), dict(type=head, **linear))


@pytest.fixture
def videos():
    """Two videos of uint8 frames [f x 3 x h x w]."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)


def normalised(videos):
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (videos / 255 - mean) / std


@pytest.mark.parametrize('method', METHODS)
def test_its_embeddings_are_the_encoders(towers, videos, method):
    frames = normalised(videos)
    wanted = make(towers, method, 'vop.VideoEncoder')(frames)  # [n x f x e]
    backbone = make(towers, method)
    flat = backbone(frames.flatten(0, 1))
    assert flat.shape == (8, 32, 1, 1)
    assert torch.equal(flat.view(2, 4, 32), wanted)
    volume = backbone(frames.transpose(1, 2))
    assert volume.shape == (2, 32, 4, 1, 1)
    assert torch.equal(volume[..., 0, 0].transpose(1, 2), wanted)
    six = torch.rand(1, 3, 6, 32, 32)  # as a volume may have
    assert backbone(six).shape == (1, 32, 6, 1, 1)
    mean = make(towers, method, average=True)(frames.transpose(1, 2))
    assert torch.equal(mean, wanted.mean(1))


@pytest.mark.parametrize(
    'dimensions, head, kwargs',
    [(2, 'TSNHead', {}), (3, 'I3DHead', {}), (3, 'TimeSformerHead', dict(average=True))],
)
def test_recognizers_and_heads_of_mmaction2_take_it(towers, videos, dimensions, head, kwargs):
    """Their scores are those of a linear layer on the mean over frames."""
    model = recognizer(towers, dimensions, head, **kwargs)
    inputs = list(videos) if dimensions == 2 else [video.transpose(0, 1)[None] for video in videos]
    labels = [ActionDataSample().set_gt_label(label) for label in (3, 1)]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=labels))
    encoder = make(towers, 'vop_fc', 'vop.VideoEncoder')
    encoder.load_state_dict(model.backbone.state_dict())
    wanted = model.cls_head.fc_cls(encoder(normalised(videos)).mean(1))
    samples = model(**data, mode='predict')
    for sample, scores in zip(samples, wanted):
        assert torch.allclose(sample.pred_score, scores, atol=1e-5)
    losses = model(**data, mode='loss')
    cross_entropy = torch.nn.functional.cross_entropy(wanted, torch.tensor([3, 1]))
    assert torch.allclose(losses['loss_cls'], cross_entropy, atol=1e-5)


@pytest.mark.parametrize('dimensions', [2, 3])
def test_crops_of_a_video_are_videos_of_their_own(towers, dimensions):
    """Through MMAction2's own ThreeCrop and FormatShape."""
    frames = torch.randint(0, 256, (4, 32, 48, 3), generator=torch.Generator().manual_seed(3))
    results = dict(imgs=list(frames.numpy().astype('uint8')), img_shape=(32, 48))
    results |= dict(num_clips=4, clip_len=1) if dimensions == 2 else dict(num_clips=1, clip_len=4)
    for transform in (
        dict(type='ThreeCrop', crop_size=32),
        dict(type='FormatShape', input_format={2: 'NCHW', 3: 'NCTHW'}[dimensions]),
    ):
        results = TRANSFORMS.build(transform)(results)
    model = recognizer(towers, dimensions, {2: 'TSNHead', 3: 'I3DHead'}[dimensions])
    inputs = [torch.from_numpy(results['imgs'])]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=[ActionDataSample()]))
    [sample] = model(**data, mode='predict')
    crops = torch.stack([frames[:, :, x : x + 32].permute(0, 3, 1, 2) for x in (0, 16, 8)])
    embeddings = model.backbone(normalised(crops).transpose(1, 2))[..., 0, 0]
    wanted = model.cls_head.fc_cls(embeddings.mean(2))
    assert torch.allclose(sample.pred_score, wanted.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    'shape, kwargs, names',
    [
        ((10, 3, 32, 32), {}, ['10 frames', 'num_frames=4']),
        ((8, 3, 32, 32), dict(average=True), ['average=True']),
        ((2, 4, 3, 1, 32, 32), {}, ['[2, 4, 3, 1, 32, 32]']),
        ((8, 3, 16, 32), {}, ['(32, 32) pixels']),
        ((2, 4, 3, 32, 32), {}, ['FormatShape', "'NCHW'"]),
    ],
)
def test_what_it_cannot_take_is_said(towers, shape, kwargs, names):
    with pytest.raises(ValueError) as error:
        make(towers, **kwargs)(torch.rand(shape))
    assert all(name in str(error.value) for name in names)


def test_the_state_of_a_recognizer_is_what_was_trained(towers, videos, tiny_clip):
    model = recognizer(towers, 3, 'I3DHead')
    state = model.state_dict()
    tensors = {k for k in state if not k.endswith('_extra_state')}
    assert tensors == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(k.startswith('backbone.backbone') for k in tensors)
    other = recognizer(towers, 3, 'I3DHead')
    for p in other.parameters():
        if p.requires_grad:
            p.data.add_(1)
    other.load_state_dict(state)
    volume = normalised(videos).transpose(1, 2)[:, None]
    assert torch.equal(other(volume, stage='head'), model(volume, stage='head'))
    with pytest.raises(UserError, match='was trained on the CLIP'):
        recognizer(open_towers(tiny_clip), 3, 'I3DHead').load_state_dict(state)
