"""Captions to token ids. For TimeWindow, see test_time_window.py."""

import json

import open_clip
import pytest
import torch
from helpers import TINY_CLIP

from projects.vop.errors import UserError
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


@pytest.fixture
def write_clip(tmp_path):
    """Write a config of a CLIP with changes of its text tower, in a folder; gives that."""

    def write(**text):
        config = TINY_CLIP | dict(text_cfg=TINY_CLIP['text_cfg'] | text)
        (tmp_path / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=config)))
        return tmp_path

    return write


@pytest.mark.parametrize('name', ['{}/open_clip_config.json', 'local-dir:{}'])
def test_the_config_of_a_clip_chooses_the_tokenizer(write_clip, name):
    folder = write_clip(context_length=100, tokenizer_kwargs=dict(clean='whitespace'))
    transform = TRANSFORMS.build(dict(type='vop.CLIPTokenize', name=name.format(folder)))
    tokens = transform(dict(text='A ' * 200))['text']
    own = open_clip.SimpleTokenizer(context_length=100, clean='whitespace')
    assert tokens.shape == (100,) and tokens.equal(own('A ' * 200)[0])


def test_a_tokenizer_of_transformers_lies_in_the_folder(write_clip):
    transformers = pytest.importorskip('transformers')
    folder = write_clip(hf_tokenizer_name='org/name')
    (folder / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ndog\n')
    transformers.BertTokenizer(str(folder / 'vocab.txt')).save_pretrained(folder)
    transform = TRANSFORMS.build(dict(type='vop.CLIPTokenize', name=f'local-dir:{folder}'))
    assert transform(dict(text='a dog'))['text'][:5].tolist() == [2, 5, 6, 3, 0]


@pytest.mark.parametrize(
    'name, message',
    [
        ('ViT-B-23', "no model 'ViT-B-23'. Did you mean"),
        ('gone.json', 'no model config gone.json'),
        ('local-dir:{}', 'tokenizer.* needs transformers|cannot be opened'),
        ('{}/open_clip_config.json', 'tokenizer.* needs transformers|cannot be opened'),
    ],
)
def test_a_tokenizer_that_is_not_there_is_not_the_default(write_clip, monkeypatch, name, message):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    folder = write_clip(hf_tokenizer_name='org/name')
    with pytest.raises(UserError, match=message) as error:
        TRANSFORMS.build(dict(type='vop.CLIPTokenize', name=name.format(folder)))
    assert '\n' not in str(error.value) and len(str(error.value)) < 300
