"""Classes as captions: scores, what is computed when, bad names."""

import open_clip
import pytest
import reference
import torch
import torch.nn.functional as F
from helpers import make_recognizer
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
    config = dict(type='vop.CaptionHead', clip=towers, classes=NAMES, templates=TEMPLATES)
    return MODELS.build(config | kwargs)


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
        ids = tokenize([template.format(name) for template in templates])
        each = torch.stack([reference.encode_caption(head.text, row) for row in ids])
        classes.append((each / each.norm(dim=-1, keepdim=True)).mean(0))
    video = (frames / frames.norm(dim=-1, keepdim=True)).mean(1)
    cosines = F.cosine_similarity(video[:, None], torch.stack(classes), dim=-1)
    wanted = towers.logit_scale.exp() * cosines
    assert wanted.abs().max() > 1
    assert torch.allclose(head(volume(frames)), wanted, atol=1e-4)
    flat = frames.flatten(0, 1)[..., None, None]
    assert torch.allclose(head(flat, num_segs=6), wanted, atol=1e-4)
    if not text:
        with torch.autocast('cpu', dtype=torch.bfloat16):  # too coarse for scores
            rough = head(volume(frames))
        assert rough.dtype == torch.float32 and torch.allclose(rough, wanted, atol=1e-3)


def test_it_finds_the_class_that_retrieval_finds(towers, tiny_clip):
    """With the recognizer of MMAction2, and with ours, on the same clips."""
    torch.manual_seed(3)
    videos = torch.randint(0, 256, (5, 4, 3, 32, 32), dtype=torch.uint8)
    ours = MODELS.build(
        dict(type='vop.RetrievalRecognizer', clip=towers, visual=dict(num_frames=4))
    ).eval()
    tokens = open_clip.get_tokenizer('ViT-B-32')(NAMES)
    data = dict(inputs=dict(imgs=list(videos), text=list(tokens)), data_samples=[])
    video, text = ours(ours.data_preprocessor(data)['inputs'])
    head = dict(type='vop.CaptionHead', clip=towers, classes=NAMES)
    theirs = make_recognizer(3, dict(type='vop.VideoBackbone', clip=towers), head)
    inputs = [v.transpose(0, 1)[None] for v in videos]
    samples = [ActionDataSample() for _ in videos]
    data = theirs.data_preprocessor(dict(inputs=inputs, data_samples=samples))
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


def test_what_is_kept_follows_the_model_and_is_no_part_of_its_state(tiny_clip, frames):
    head = make(open_towers(tiny_clip), text=PROMPTED).eval()
    names = set(head.state_dict())
    assert head(volume(frames)).dtype == torch.float32
    assert set(head.state_dict()) == names == {'text._extra_state', 'text.prompts.0.tokens'}
    head.double()  # as to another device
    assert head(volume(frames.double())).dtype == torch.float64
    assert head.class_embeddings().dtype == torch.float64


def test_views_are_averaged(towers, frames):
    """Four views of one video, as probabilities."""
    head = make(towers).eval()
    [sample] = head.predict(volume(frames), [ActionDataSample()])
    wanted = head(volume(frames)).softmax(-1).mean(0)
    assert torch.allclose(sample.pred_score, wanted, atol=1e-6)


# Names and templates


@pytest.mark.parametrize(
    'content, fault',
    [('a\n\nb\n', 'name 2'), ('a\nb\n a \n', '"a".* 1 and 3'), ('', 'no class'), (None, 'no file')],
)
def test_bad_files_of_classes_are_named(tmp_path, content, fault):
    path = tmp_path / 'labels.txt'
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=fault) as error:
        CaptionHead(classes=str(path), clip=dict(name='no'))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    'kwargs',
    [*[dict(templates=bad) for bad in (['a video'], 'a {}', [])], dict(classes=[])],
)
def test_what_is_wrong_is_said_before_clip_is_opened(kwargs):
    with pytest.raises(UserError, match=f'^{[*kwargs][0]}'):
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


def test_it_is_a_head_of_mmaction2(towers, tmp_path):
    """With classes in a file, and a tokenizer by name."""
    loss = dict(type='CrossEntropyLoss', loss_weight=2.0)
    (tmp_path / 'classes.txt').write_text('\n'.join(NAMES) + '\n')
    classes = str(tmp_path / 'classes.txt')
    head = make(towers, classes=classes, loss_cls=loss, topk=(1, 2), tokenizer='ViT-B-16')
    assert head.num_classes == 3 and torch.equal(head.tokens, make(towers).tokens)
    assert isinstance(head.loss_cls, nn.Module) and head.topk == (1, 2)
    assert head.in_channels == 32
    for tokenizer, message in (('another', "no model 'another'"), ('PE-Core-B-16', 'not that of')):
        with pytest.raises(UserError, match=message):
            make(towers, tokenizer=tokenizer)
