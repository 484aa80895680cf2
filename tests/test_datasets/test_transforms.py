"""Captions to token ids. For TimeWindow, see test_time_window.py."""

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


def test_captions_are_rows(tokenize):
    tokens = tokenize(CAPTIONS)
    assert tokens.shape == (3, 77) and tokens.dtype == torch.int64
    assert tokens.equal(open_clip.get_tokenizer('ViT-B-32')(CAPTIONS))
    assert tokenize(CAPTIONS[:1]).equal(tokens[:1])
    assert tokenize(CAPTIONS[0]).equal(tokens[0])


def test_known_ids(tokenize):
    assert tokenize('a photo of a cat')[:8].tolist() == [SOT, 320, 1125, 539, 320, 2368, EOT, 0]


def test_a_long_caption_is_cut_and_closed(tokenize):
    assert tokenize(' '.join(['cat'] * 500)).tolist() == [SOT] + [2368] * 75 + [EOT]


def test_the_model_chooses_the_tokenizer():
    """Perception Encoder's CLIPs have a context of 32."""
    transform = TRANSFORMS.build(dict(type='vop.CLIPTokenize', name='PE-Core-B-16'))
    results = transform(dict(text='a cat', video_id='v'))
    assert results['text'].shape == (32,) and results['video_id'] == 'v'
