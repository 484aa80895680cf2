"""The stand-in for OpenAI's package ``clip``."""

import importlib
import sys

import numpy as np
import open_clip
import pytest
import torch
from mmaction.registry import TRANSFORMS
from PIL import Image
from torch import nn

from projects.vop import openai_clip
from projects.vop.models import TextEncoder

LONG = ' '.join(['dog'] * 75)  # with [SOS] and [EOT], 77 tokens


@pytest.fixture(scope='module')
def clip():
    """A small CLIP as OpenAI builds them: heads of width 64, QuickGELU."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        quick_gelu=True,
        vision_cfg=dict(image_size=32, patch_size=16, layers=1, width=64),
        text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=1),
    )
    nn.init.constant_(model.logit_scale, 3.0)
    return model.half().float()


@pytest.fixture(scope='module')
def archive(clip, write_archive, tmp_path_factory):
    path = tmp_path_factory.mktemp('archive') / 'ViT.pt'
    write_archive(clip, path)
    return str(path)


@pytest.fixture
def without_clip(monkeypatch):
    """As if no package of that name had been imported yet."""
    monkeypatch.setitem(sys.modules, 'clip', None)  # to be restored
    del sys.modules['clip']


def test_opens_an_archive(clip, archive):
    model, preprocess = openai_clip.load(archive, device='cpu')
    names = {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        theirs = torch.jit.load(archive).state_dict()
        assert names == theirs.keys() - {'input_resolution', 'context_length', 'vocab_size'}
        picture = Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        )
        image = preprocess(picture)[None]
        assert image.shape == (1, 3, 32, 32)
        tokens = openai_clip.tokenize(['a dog', 'two dogs'])
        assert torch.allclose(model.encode_image(image), clip.eval().encode_image(image))
        assert torch.allclose(model.encode_text(tokens), clip.encode_text(tokens), atol=1e-5)
    assert model.logit_scale == 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_preprocess_normalises_as_openai(archive):
    _, preprocess = openai_clip.load(archive)
    image = preprocess(Image.new('RGB', (40, 50), (255, 0, 0)))
    for channel, pixel in enumerate((1.0, 0.0, 0.0)):
        wanted = (pixel - open_clip.OPENAI_DATASET_MEAN[channel]) / open_clip.OPENAI_DATASET_STD[
            channel
        ]
        assert torch.allclose(image[channel], torch.tensor(wanted))


@pytest.mark.parametrize(
    'name, file',
    [
        ('ViT-B/32', 'ViT-B-32.pt'),
        ('ViT-L/14@336px', 'ViT-L-14-336px.pt'),
        ('RN50x64', 'RN50x64.pt'),
    ],
)
def test_names_of_openai(monkeypatch, name, file):
    """A download that fails says what to fetch."""

    def refuse(url, cache_dir=None):
        raise OSError('Network is unreachable')

    monkeypatch.setattr(openai_clip, 'download_pretrained_from_url', refuse)
    with pytest.raises(ConnectionError, match=f'Fetch https://.*/{file} '):
        openai_clip.load(name)


def test_what_cannot_be_opened_is_named(tmp_path, clip):
    with pytest.raises(ValueError, match="'ViT-B/33' is neither"):
        openai_clip.load('ViT-B/33')
    path = tmp_path / 'ViT.pt'
    path.write_bytes(b'damaged')
    with pytest.raises(ValueError, match=r'ViT\.pt is no archive of OpenAI'):
        openai_clip.load(str(path))
    torch.save(clip.state_dict(), path)
    with pytest.raises(ValueError, match=r'ViT\.pt is no archive of OpenAI'):
        openai_clip.load(str(path))


# Tokens


def test_tokens_are_those_of_clip():
    texts = ['A dog  runs.', LONG]
    tokens = openai_clip.tokenize(texts)
    assert tokens.dtype == torch.int32
    assert torch.equal(tokens.long(), open_clip.get_tokenizer('ViT-B-32')(texts))
    assert torch.equal(openai_clip.tokenize(texts[0]), tokens[:1])
    assert openai_clip.tokenize('a dog', context_length=20).shape == (1, 20)


def test_a_caption_that_is_too_long_is_an_error_or_cut():
    texts = ['a dog', f'{LONG} barks']
    with pytest.raises(RuntimeError, match='barks is too long .* length 77'):
        openai_clip.tokenize(texts)
    tokens = openai_clip.tokenize(texts, truncate=True)
    assert tokens[1, -1] == tokens.max() == 49407
    assert torch.equal(tokens[1], openai_clip.tokenize(LONG)[0])


def test_our_text_encoder_takes_its_tokens(tiny_clip):
    encoder = TextEncoder(dict(name=tiny_clip), prompts=[dict(type='vop.LearnedPrompt', length=2)])
    tokens = openai_clip.tokenize(['a dog', LONG])
    assert torch.equal(encoder(tokens), encoder(tokens.long()))


# In place of the package


def test_mmaction2s_transform_finds_it(without_clip):
    if importlib.util.find_spec('clip'):
        pytest.skip("OpenAI's package is installed")
    importlib.reload(openai_clip)
    assert sys.modules['clip'] is openai_clip
    tokens = TRANSFORMS.build(dict(type='mmaction.CLIPTokenize'))(dict(text='a dog'))['text']
    assert torch.equal(tokens, openai_clip.tokenize('a dog')[0])


def test_the_package_itself_is_left_alone(without_clip, tmp_path, monkeypatch):
    (tmp_path / 'clip.py').write_text("who = 'OpenAI'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.reload(openai_clip)
    assert 'clip' not in sys.modules
    import clip

    assert clip.who == 'OpenAI'
