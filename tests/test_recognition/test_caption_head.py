"""Classes as captions: scores, what is computed when, bad names."""

import open_clip
import pytest
import reference
import torch
import torch.nn.functional as F
from mmaction.registry import MODELS as MMACTION_MODELS
from mmaction.structures import ActionDataSample
from torch import nn

from projects.vop.errors import UserError
from projects.vop.models import open_towers
from projects.vop.recognition import CaptionHead
from projects.vop.registry import MODELS

NAMES = ['riding a bike', 'swimming', 'reading a book']
TEMPLATES = ['a video of {}', '{}, again']
PROMPTED = dict(prompts=[dict(type='vop.LearnedPrompt', length=2)])


@pytest.fixture(scope='module')
def towers(tiny_clip):
    torch.manual_seed(0)
    return open_towers(tiny_clip)


def make(towers, **kwargs):
    torch.manual_seed(1)
    return MODELS.build(
        dict(
            type='vop.CaptionHead', clip=towers, **dict(classes=NAMES, templates=TEMPLATES) | kwargs
        )
    )


@pytest.fixture
def frames():
    """Frame embeddings of four videos of six frames, [n x f x e]."""
    return torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))


def volume(frames):
    return frames.transpose(1, 2)[..., None, None]


def count_captions(head):
    """How many captions its text encoder has embedded so far."""
    counted = []
    head.text.register_forward_hook(lambda module, inputs, output: counted.append(len(output)))
    return counted


@pytest.mark.parametrize('text', [{}, PROMPTED], ids=['zero_shot', 'tuned'])
@pytest.mark.parametrize('templates', [TEMPLATES[:1], TEMPLATES])
def test_scores_are_scaled_cosines(towers, frames, text, templates):
    head = make(towers, text=text, templates=templates).eval()
    tokenize = open_clip.get_tokenizer('ViT-B-32')
    classes = []
    for name in NAMES:
        each = torch.stack(
            [
                reference.encode_caption(head.text, tokenize(template.format(name))[0])
                for template in templates
            ]
        )
        classes.append((each / each.norm(dim=-1, keepdim=True)).mean(0))
    video = (frames / frames.norm(dim=-1, keepdim=True)).mean(1)
    wanted = towers.logit_scale.exp() * F.cosine_similarity(
        video[:, None], torch.stack(classes), dim=-1
    )
    assert wanted.abs().max() > 1
    assert torch.allclose(head(volume(frames)), wanted, atol=1e-4)
    flat = frames.flatten(0, 1)[..., None, None]
    assert torch.allclose(head(flat, num_segs=6), wanted, atol=1e-4)


def test_it_finds_the_class_that_retrieval_finds(towers, tiny_clip):
    """With the recognizer of MMAction2, and with ours, on the same clips."""
    torch.manual_seed(3)
    videos = torch.randint(0, 256, (5, 4, 3, 32, 32), dtype=torch.uint8)
    ours = MODELS.build(
        dict(type='vop.RetrievalRecognizer', clip=towers, visual=dict(num_frames=4))
    ).eval()
    tokens = open_clip.get_tokenizer('ViT-B-32')(NAMES)
    video, text = ours(
        ours.data_preprocessor(
            dict(inputs=dict(imgs=list(videos), text=list(tokens)), data_samples=[])
        )['inputs']
    )
    theirs = MMACTION_MODELS.build(
        dict(
            type='Recognizer3D',
            backbone=dict(type='vop.VideoBackbone', clip=towers),
            cls_head=dict(type='vop.CaptionHead', clip=towers, classes=NAMES),
            data_preprocessor=dict(
                type='ActionDataPreprocessor',
                mean=[255 * v for v in open_clip.OPENAI_DATASET_MEAN],
                std=[255 * v for v in open_clip.OPENAI_DATASET_STD],
                format_shape='NCTHW',
            ),
        )
    ).eval()
    data = theirs.data_preprocessor(
        dict(
            inputs=[v.transpose(0, 1)[None] for v in videos],
            data_samples=[ActionDataSample() for _ in videos],
        )
    )
    samples = theirs(**data, mode='predict')
    wanted = (towers.logit_scale.exp() * video @ text.T).softmax(-1)
    scores = torch.stack([sample.pred_score for sample in samples])
    assert torch.allclose(scores, wanted, atol=1e-5)


def test_frozen_captions_are_embedded_once(towers, frames):
    head = make(towers).eval()
    counted = count_captions(head)
    for _ in range(3):
        head(volume(frames))
    assert counted == [3, 3]  # classes, with each of two templates
    head.train()
    for _ in range(3):
        head(volume(frames).requires_grad_()).sum().backward()
    assert counted == [3, 3] * 2


def test_captions_that_train_are_embedded_when_they_can_have_changed(towers, frames):
    head = make(towers, text=PROMPTED, templates=['{}'])
    counted = count_captions(head)
    optimizer = torch.optim.SGD(head.parameters(), lr=10.0)
    before = head.eval()(volume(frames))
    head(volume(frames))
    assert counted == [3]
    head.train()
    for _ in range(2):
        optimizer.zero_grad()
        head(volume(frames)).square().sum().backward()
        optimizer.step()
    assert counted == [3] * 3
    after = head.eval()(volume(frames))
    assert counted == [3] * 4
    assert not torch.allclose(before, after, atol=1e-3)
    # Loaded into a head that has the old ones, they are embedded anew.
    other = make(towers, text=PROMPTED, templates=['{}']).eval()
    assert torch.equal(other(volume(frames)), before)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(volume(frames)), after)


def test_what_is_kept_follows_the_model(tiny_clip, frames):
    head = make(open_towers(tiny_clip)).eval()
    assert head(volume(frames)).dtype == torch.float32
    head.double()  # as to another device
    assert head(volume(frames.double())).dtype == torch.float64
    assert head.class_embeddings().dtype == torch.float64


def test_what_is_kept_is_no_part_of_the_state(towers, frames):
    head = make(towers, text=PROMPTED).eval()
    names = set(head.state_dict())
    head(volume(frames))
    assert set(head.state_dict()) == names == {'text._extra_state', 'text.prompts.0.tokens'}


def test_its_prompts_have_the_gradient_of_the_loss(towers, frames):
    head = make(towers, text=PROMPTED).train()
    losses = head.loss(
        volume(frames), [ActionDataSample().set_gt_label(label) for label in (0, 1, 2, 0)]
    )
    wanted = F.cross_entropy(head(volume(frames)), torch.tensor([0, 1, 2, 0]))
    assert torch.allclose(losses['loss_cls'], wanted)
    losses['loss_cls'].backward()
    assert head.text.prompts[0].tokens.grad.abs().max() > 0
    assert not any(p.requires_grad for p in head.text.backbone.parameters())


def test_views_are_averaged(towers, frames):
    """Four views of one video; as probabilities, if not said otherwise."""
    for how, wanted in (
        ({}, lambda s: s.softmax(-1).mean(0)),
        (dict(average_clips='score'), lambda s: s.mean(0)),
    ):
        head = make(towers, **how).eval()
        [sample] = head.predict(volume(frames), [ActionDataSample()])
        assert torch.allclose(sample.pred_score, wanted(head(volume(frames))), atol=1e-6)


def test_half_precision_is_too_coarse_for_scores(towers, frames):
    head = make(towers).eval()
    wanted = head(volume(frames))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        scores = head(volume(frames))
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, wanted, atol=1e-3)


# Names and templates


def test_a_file_of_classes(towers, tmp_path):
    path = tmp_path / 'label_map.txt'
    path.write_text('\n'.join(NAMES) + '\n')
    head = make(towers, classes=str(path))
    assert head.num_classes == 3
    assert torch.equal(head.tokens, make(towers).tokens)


@pytest.mark.parametrize(
    'content, message',
    [
        ('a\n\nb\n', r'labels\.txt: name 2 is empty'),
        ('a\nb\n a \n', r'labels\.txt: "a" is listed twice, as number 1 and 3'),
        ('', r'labels\.txt names no class'),
    ],
)
def test_bad_files_of_classes_are_named(towers, tmp_path, content, message):
    path = tmp_path / 'labels.txt'
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        make(towers, classes=str(path))


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        (dict(classes='nowhere.txt'), UserError, 'no file nowhere.txt of class names'),
        (dict(classes=[]), ValueError, 'classes names no class'),
        (dict(classes=['a', 'a']), ValueError, 'classes: "a" is listed twice'),
        (dict(templates=['a video']), ValueError, 'templates must be .* with {}'),
        (dict(templates='a {}'), ValueError, 'templates must be a list'),
        (dict(templates=[]), ValueError, 'templates must be a list'),
    ],
)
def test_what_is_wrong_is_said_before_clip_is_opened(kwargs, error, message):
    with pytest.raises(error, match=message):
        CaptionHead(**dict(classes=NAMES, clip=dict(name='no')) | kwargs)


@pytest.mark.parametrize(
    'shape, message',
    [
        ((4, 32), 'without average=True'),
        ((8, 32, 1, 1), "'NCTHW' for Recognizer3D"),  # which gives no num_segs
        ((4, 16, 6, 1, 1), 'embeddings of 32 numbers, got 16.*the same CLIP'),
    ],
)
def test_other_embeddings_are_refused(towers, shape, message):
    with pytest.raises(ValueError, match=message):
        make(towers)(torch.rand(shape))


def test_another_tokenizer_can_be_asked_for(towers, monkeypatch):
    asked = []

    def get_tokenizer(name):
        asked.append(name)
        return open_clip.tokenize

    monkeypatch.setattr(open_clip, 'get_tokenizer', get_tokenizer)
    make(towers, tokenizer='another')
    assert asked == ['another']


def test_it_is_a_head_of_mmaction2(towers):
    head = make(towers, loss_cls=dict(type='CrossEntropyLoss', loss_weight=2.0), topk=(1, 2))
    assert isinstance(head.loss_cls, nn.Module) and head.topk == (1, 2)
    assert head.in_channels == 32
