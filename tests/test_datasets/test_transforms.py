"""Captions to token ids."""

import open_clip
import pytest
import torch

from projects.vop.registry import TRANSFORMS

SOT, EOT = 49406, 49407
CAPTIONS = ['a man is singing', 'Two DOGS, running!', 'ein Mädchen lacht']


@pytest.fixture(scope='module')
def tokenize():
    transform = TRANSFORMS.build(dict(type='vop.CLIPTokenize'))
    return lambda text: transform(dict(text=text))['text']


def test_one_caption_is_a_row(tokenize):
    tokens = tokenize(CAPTIONS[0])
    assert tokens.shape == (77,)
    assert tokens.dtype == torch.int64


def test_a_list_of_captions_is_a_matrix(tokenize):
    tokens = tokenize(CAPTIONS)
    assert tokens.shape == (3, 77)
    assert all(tokens[i].equal(tokenize(c)) for i, c in enumerate(CAPTIONS))


def test_a_list_of_one_caption_is_a_matrix(tokenize):
    assert tokenize(CAPTIONS[:1]).shape == (1, 77)


def test_equals_the_tokenizer_of_open_clip(tokenize):
    assert tokenize(CAPTIONS).equal(open_clip.get_tokenizer('ViT-B-32')(CAPTIONS))


def test_known_ids(tokenize):
    assert tokenize('a photo of a cat')[:8].tolist() == [SOT, 320, 1125, 539, 320, 2368, EOT, 0]


def test_a_long_caption_is_cut_and_closed(tokenize):
    tokens = tokenize(' '.join(['cat'] * 500))
    assert tokens.tolist() == [SOT] + [2368] * 75 + [EOT]


def test_other_keys_stay():
    transform = TRANSFORMS.build(dict(type='vop.CLIPTokenize'))
    assert transform(dict(text='a', video_id='v'))['video_id'] == 'v'


def test_the_model_chooses_the_tokenizer():
    """Perception Encoder's CLIPs have a context of 32."""
    transform = TRANSFORMS.build(dict(type='vop.CLIPTokenize', name='PE-Core-B-16'))
    assert transform(dict(text='a cat'))['text'].shape == (32,)
