"""Opening CLIPs, and saying no clearly."""

import json
import zipfile
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch
from helpers import TINY_CLIP, Code
from torch import nn

from projects.vop.errors import UserError
from projects.vop.models import open_towers


@pytest.fixture
def write_config(tmp_path):
    """Write the tiny CLIP's config with changes; gives its path."""

    def write(name='changed.json', vision={}, text={}, **changes):
        vision, text = TINY_CLIP['vision_cfg'] | vision, TINY_CLIP['text_cfg'] | text
        changed = TINY_CLIP | dict(vision_cfg=vision, text_cfg=text, **changes)
        (tmp_path / name).write_text(json.dumps(changed))
        return str(tmp_path / name)

    return write


def captions():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 49406, (2, 77), generator=generator)
    tokens[:, 0] = 49406
    tokens[0, 9] = tokens[1, 76] = 49407
    tokens[0, 10:] = 0
    return tokens


def assert_same_clip(towers, clip):
    """Equal outputs, of an open_clip model in either of its two forms."""
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    towers.visual.eval(), towers.text.eval(), clip.eval()
    with torch.no_grad():
        assert towers.visual(image).equal(clip.encode_image(image))
        torch.testing.assert_close(towers.text(captions()), clip.encode_text(captions()))
    assert towers.logit_scale.equal(clip.logit_scale)


# Names and configs


def test_opens_a_json_config(tiny_clip, logged_warnings):
    towers, other = open_towers(tiny_clip), open_towers(tiny_clip)
    assert towers.visual.image_size == (32, 32)
    assert len(towers.visual.transformer.resblocks) == 3
    assert towers.text.context_length == 77
    assert towers.text.transformer.width == 48
    assert towers.logit_scale.shape == ()
    assert not towers.logit_scale.requires_grad
    assert not towers.visual.proj.equal(other.visual.proj)
    for text in (towers.name, logged_warnings[0]):
        assert tiny_clip in text and 'random weights' in text


def test_opens_a_model_by_name_which_no_config_shadows(write_config):
    open_towers(write_config('ViT-S-32.json'))
    towers = open_towers('ViT-S-32')
    assert towers.visual.transformer.width == towers.text.transformer.width == 384
    assert towers.visual.conv1.weight.dtype == torch.float32


def test_configs_of_one_name_are_told_apart(write_config, tmp_path):
    (tmp_path / 'b').mkdir()
    paths = [
        write_config(f'{folder}/clip.json', embed_dim=dim) for folder, dim in (('.', 8), ('b', 16))
    ]
    assert [open_towers(path).visual.output_dim for path in paths + paths[:1]] == [8, 16, 8]


def test_trains_without_patch_dropout(write_config):
    """Half of a video's patches must not go missing in training mode."""
    towers = open_towers(write_config(vision=dict(patch_dropout=0.5)))
    image = torch.randn(2, 3, 32, 32)
    assert towers.visual.train()(image).equal(towers.visual.eval()(image))


def test_takes_configs_that_can_be_prompted(write_config, tmp_path):
    name = write_config(
        vision=dict(ls_init_value=0.1, mlp_ratio=2.0),
        text=dict(pool_type='eos', eos_id=49407, mlp_ratio=3.0, proj_bias=True),
    )
    clip = open_clip.CustomTextCLIP(**json.loads(Path(name).read_text()))
    torch.save(clip.state_dict(), tmp_path / 'clip.pt')
    assert_same_clip(open_towers(name, str(tmp_path / 'clip.pt')), clip)


# Weights


@pytest.mark.parametrize('kind', ['state dict', 'safetensors', 'checkpoint', 'archive of OpenAI'])
def test_opens_weights(tiny_clip, write_config, write_archive, tmp_path, kind):
    form = open_clip.CustomTextCLIP if kind == 'safetensors' else open_clip.CLIP
    clip, path = form(**TINY_CLIP), tmp_path / 'weights'
    nn.init.constant_(clip.logit_scale, 3.0)
    if kind == 'state dict':
        torch.save(clip.state_dict(), path)
    elif kind == 'safetensors':
        path = path.with_suffix('.safetensors')
        safetensors.torch.save_file(dict(clip.state_dict()), path)
    elif kind == 'checkpoint':  # as open_clip writes it, here by several processes
        state = {f'module.{k}': v for k, v in clip.state_dict().items()}
        torch.save(dict(epoch=1, name='run', state_dict=state), path)
    else:
        write_archive(clip, path)
        clip = clip.half().float()
    towers = open_towers(tiny_clip, str(path))
    assert towers.visual.conv1.weight.dtype == torch.float32
    assert_same_clip(towers, clip)
    assert str(path) in towers.name
    with pytest.raises(UserError, match=rf'{path.name} does not hold weights'):
        open_towers(write_config(embed_dim=16), str(path))


def without_bias():
    state = open_clip.CLIP(**TINY_CLIP).state_dict()
    return {name: value for name, value in state.items() if name != 'ln_final.bias'}


@pytest.mark.parametrize(
    'write',
    [
        lambda path: path.write_bytes(b''),
        lambda path: path.write_bytes(b'<!DOCTYPE html>'),
        lambda path: path.write_bytes(b'PK\3\4hello'),
        lambda path: zipfile.ZipFile(path, 'w').writestr('ViT/constants.pkl', b'damaged'),
        lambda path: torch.save(without_bias(), path),
    ],
    ids=['empty', 'page', 'zip', 'archive', 'incomplete'],
)
def test_a_file_of_other_weights_is_named(tiny_clip, tmp_path, write):
    write(tmp_path / 'weights.pt')
    with pytest.raises(UserError, match=r'weights\.pt does not hold weights'):
        open_towers(tiny_clip, str(tmp_path / 'weights.pt'))


def test_code_among_weights_does_not_run(tiny_clip, tmp_path):
    path, marker = tmp_path / 'weights.pt', tmp_path / 'code-ran'
    torch.save(dict(state_dict={}, extra=Code(marker)), path)
    with pytest.raises(UserError, match=r'weights\.pt'):
        open_towers(tiny_clip, str(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), 'the file was harmless'


@pytest.mark.parametrize('name', ['ViT-B-32', 'ViT-L-14-336', 'clip.json'])
def test_an_archive_of_openai_is_refused_for_gelu(
    write_archive, write_config, tmp_path, monkeypatch, name
):
    """And what to write instead is said."""
    monkeypatch.setattr(open_clip, 'get_model_config', lambda _: TINY_CLIP | dict(quick_gelu=False))
    write_archive(open_clip.CLIP(**TINY_CLIP), tmp_path / 'ViT.pt')
    json_config = write_config('clip.json', quick_gelu=False)
    with pytest.raises(UserError, match=r'ViT\.pt .*QuickGELU') as error:
        open_towers(json_config if name == 'clip.json' else name, str(tmp_path / 'ViT.pt'))
    if name == 'clip.json':
        assert f'"quick_gelu": true in {json_config}' in str(error.value)
    else:
        assert f"name='{name}-quickgelu'" in str(error.value)
        assert f'{name}-quickgelu' in open_clip.list_models()


# Refusals


@pytest.mark.parametrize(
    'name, reason',
    [
        ('RN50', 'ResNet'),
        ('ViT-B-16-SigLIP', "timm's vit_base_patch16_siglip"),
        ('EVA02-B-16', "timm's eva02_base_patch16_clip_224"),
        ('coca_ViT-B-32', 'CoCa'),
        ('xlm-roberta-base-ViT-B-32', "Hugging Face's xlm-roberta-base"),
    ],
)
def test_models_that_cannot_be_prompted_are_refused_before_downloading(monkeypatch, name, reason):
    monkeypatch.setattr(
        open_clip.factory, 'download_pretrained', lambda *args, **kwargs: pytest.fail('downloads')
    )
    with pytest.raises(UserError, match=f'^{name} cannot be prompted: .*{reason}') as error:
        open_towers(name, open_clip.list_pretrained_tags_by_model(name)[0])
    assert 'ViT-B-32-quickgelu' in str(error.value)


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(vision=dict(qk_norm=True)), 'attention blocks'),
        (dict(text=dict(qk_norm=True)), 'attention blocks'),
        (dict(text=dict(scale_fc=True)), 'attention blocks'),
        (dict(vision=dict(pool_type='avg')), '[CLS]'),
        (dict(vision=dict(pool_type='none')), '[CLS]'),
        (dict(vision=dict(attentional_pool=True)), '[CLS]'),
        (dict(text=dict(no_causal_mask=True)), 'causal'),
        (dict(text=dict(embed_cls=True)), 'causal'),
        (dict(text=dict(pool_type='last')), '[EOT]'),
    ],
)
def test_configs_that_cannot_be_prompted_are_refused(write_config, changes, reason):
    name = write_config(**changes)
    with pytest.raises(UserError) as error:
        open_towers(name)
    assert name in str(error.value) and reason in str(error.value)


@pytest.mark.parametrize(
    'arguments, names',
    [
        (['ViT-B-23'], ["'ViT-B-23'", 'ViT-B-32']),
        (['xyzzy'], ["'xyzzy'"]),
        (
            ['ViT-B-32', 'opneai'],
            ["'opneai'", *open_clip.list_pretrained_tags_by_model('ViT-B-32')],
        ),
        (['ViT-B-32', 'gone.pt'], ['gone.pt', 'neither a file nor a tag']),
        (['gone.json'], ['gone.json']),
    ],
)
def test_unknown_names_are_said_with_those_there_are(arguments, names):
    with pytest.raises(UserError) as error:
        open_towers(*arguments)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize('content', ['{"embed_dim": 8', '{"embed_dim": 8}', '[]'])
def test_bad_configs_are_named(tmp_path, content):
    (tmp_path / 'clip.json').write_text(content)
    with pytest.raises(UserError, match=r'clip\.json.*(JSON|lacks.* text_cfg, vision_cfg)'):
        open_towers(str(tmp_path / 'clip.json'))


def test_no_network_says_which_file_to_put_where(monkeypatch, tmp_path):
    """Offline mode stands in for a machine without a network, where weights are on a hub."""

    def refuse(*args, **kwargs):
        raise OSError('Network is unreachable')

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    for name, tag in (('ViT-B-32-quickgelu', 'openai'), ('ViT-B-32', 'laion400m_e32')):
        source = open_clip.get_pretrained_cfg(name, tag)
        with pytest.raises(UserError) as error:
            open_towers(name, tag, cache_dir=str(tmp_path))
        wanted = {tag, source.get('url'), source.get('hf_hub'), 'clip.pretrained'} - {None, ''}
        assert all(text in str(error.value) for text in wanted)
        monkeypatch.setattr(open_clip.factory, 'download_pretrained', refuse)
    assert 'Network is unreachable' in str(error.value)
