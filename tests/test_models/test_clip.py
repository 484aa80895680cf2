"""Opening CLIPs, and saying no clearly."""

import json
import zipfile
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch
from torch import nn

from projects.vop.errors import UserError
from projects.vop.models import open_towers


@pytest.fixture
def config(tiny_clip):
    return json.loads(Path(tiny_clip).read_text())


@pytest.fixture
def write_config(config, tmp_path):
    """Write the tiny CLIP's config with changes; gives its path."""

    def write(name='changed.json', vision={}, text={}, **changes):
        changed = config | changes
        changed['vision_cfg'] = changed['vision_cfg'] | vision
        changed['text_cfg'] = changed['text_cfg'] | text
        path = tmp_path / name
        path.write_text(json.dumps(changed))
        return str(path)

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


def test_opens_a_json_config(tiny_clip):
    towers = open_towers(tiny_clip)
    assert towers.visual.image_size == (32, 32)
    assert len(towers.visual.transformer.resblocks) == 3
    assert towers.text.context_length == 77
    assert towers.text.transformer.width == 48
    assert towers.logit_scale.shape == ()
    assert not towers.logit_scale.requires_grad
    assert tiny_clip in towers.name


def test_opens_a_model_by_name():
    towers = open_towers('ViT-S-32')
    assert towers.visual.transformer.width == 384
    assert towers.text.transformer.width == 384
    assert towers.visual.conv1.weight.dtype == torch.float32


def test_a_config_does_not_shadow_a_model_of_its_name(write_config):
    open_towers(write_config('ViT-S-32.json'))
    assert open_clip.get_model_config('ViT-S-32')['embed_dim'] == 384


def test_configs_of_one_name_are_told_apart(write_config, tmp_path):
    (tmp_path / 'b').mkdir()
    a = write_config('clip.json', embed_dim=8)
    b = write_config('b/clip.json', embed_dim=16)
    for path, dim in ((a, 8), (b, 16), (a, 8)):
        assert open_towers(path).visual.output_dim == dim


def test_random_weights_are_random_and_said_so(tiny_clip, logged_warnings):
    one, two = open_towers(tiny_clip), open_towers(tiny_clip)
    assert not one.visual.proj.equal(two.visual.proj)
    assert 'random weights' in one.name
    assert 'random weights' in logged_warnings[0]


def test_trains_without_patch_dropout(write_config):
    """Half of a video's patches must not go missing in training mode."""
    towers = open_towers(write_config(vision=dict(patch_dropout=0.5)))
    image = torch.randn(2, 3, 32, 32)
    assert towers.visual.train()(image).equal(towers.visual.eval()(image))


# Weights of open_clip


@pytest.mark.parametrize('form', [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
def test_opens_a_state_dict(tiny_clip, config, tmp_path, form, suffix):
    clip = form(**config)
    nn.init.constant_(clip.logit_scale, 3.0)
    path = tmp_path / f'weights{suffix}'
    save = torch.save if suffix == '.pt' else safetensors.torch.save_file
    save(dict(clip.state_dict()), path)
    towers = open_towers(tiny_clip, str(path))
    assert_same_clip(towers, clip)
    assert str(path) in towers.name


def test_opens_a_training_checkpoint(tiny_clip, config, tmp_path):
    """As open_clip's training writes it, here by several processes."""
    clip = open_clip.CLIP(**config)
    path = tmp_path / 'epoch_1.pt'
    state = {f'module.{k}': v for k, v in clip.state_dict().items()}
    torch.save(dict(epoch=1, name='run', state_dict=state), path)
    assert_same_clip(open_towers(tiny_clip, str(path)), clip)


@pytest.mark.parametrize('jit', [False, True])
def test_weights_of_another_architecture_name_the_file(write_archive, write_config, tmp_path, jit):
    path = tmp_path / 'weights.pt'
    clip = open_clip.CLIP(**json.loads(Path(write_config('other.json', embed_dim=16)).read_text()))
    write_archive(clip, path) if jit else torch.save(clip.state_dict(), path)
    with pytest.raises(ValueError, match=r'weights\.pt does not hold weights'):
        open_towers(write_config(), str(path))


def test_missing_weights_are_not_passed_over(tiny_clip, config, tmp_path):
    state = open_clip.CLIP(**config).state_dict()
    del state['ln_final.bias']
    torch.save(state, tmp_path / 'weights.pt')
    with pytest.raises(ValueError, match='ln_final.bias'):
        open_towers(tiny_clip, str(tmp_path / 'weights.pt'))


@pytest.mark.parametrize('content', [b'', b'<!DOCTYPE html>', b'PK\3\4hello'])
def test_a_file_without_weights_is_named(tiny_clip, tmp_path, content):
    path = tmp_path / 'weights.pt'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'weights\.pt does not hold weights'):
        open_towers(tiny_clip, str(path))


class Code:
    """Its pickle calls ``open`` when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


def test_code_among_weights_does_not_run(tiny_clip, config, tmp_path):
    path, marker = tmp_path / 'weights.pt', tmp_path / 'code-ran'
    state = open_clip.CLIP(**config).state_dict()
    torch.save(dict(state_dict=state, extra=Code(marker)), path)
    with pytest.raises(ValueError, match=r'weights\.pt does not hold weights'):
        open_towers(tiny_clip, str(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), 'the file was harmless'


# OpenAI's archives


def test_opens_an_archive_of_openai(write_archive, tiny_clip, config, tmp_path):
    clip = open_clip.CLIP(**config)
    nn.init.constant_(clip.logit_scale, 3.0)
    write_archive(clip, tmp_path / 'ViT.pt')
    towers = open_towers(tiny_clip, str(tmp_path / 'ViT.pt'))
    assert towers.visual.conv1.weight.dtype == torch.float32
    assert_same_clip(towers, clip.half().float())


def test_an_archive_of_openai_is_refused_for_gelu(write_archive, config, tmp_path):
    write_archive(open_clip.CLIP(**config), tmp_path / 'ViT.pt')
    with pytest.raises(ValueError, match=r'ViT\.pt .*QuickGELU') as error:
        open_towers('ViT-S-32', str(tmp_path / 'ViT.pt'))
    assert 'ViT-S-32 has GELU' in str(error.value)


@pytest.mark.parametrize('name', ['ViT-B-32', 'ViT-L-14-336'])
def test_the_model_named_instead_exists(write_archive, config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(open_clip, 'get_model_config', lambda _: config | dict(quick_gelu=False))
    write_archive(open_clip.CLIP(**config), tmp_path / 'ViT.pt')
    with pytest.raises(ValueError, match=f"name='{name}-quickgelu'"):
        open_towers(name, str(tmp_path / 'ViT.pt'))
    assert f'{name}-quickgelu' in open_clip.list_models()


def test_the_refusal_for_gelu_names_the_line_of_a_json_config(
    write_archive, write_config, config, tmp_path
):
    write_archive(open_clip.CLIP(**config), tmp_path / 'ViT.pt')
    with pytest.raises(ValueError, match='quick_gelu.*true') as error:
        open_towers(write_config(quick_gelu=False), str(tmp_path / 'ViT.pt'))
    assert 'json-quickgelu' not in str(error.value)


def test_a_damaged_archive_is_named(tiny_clip, tmp_path):
    path = tmp_path / 'ViT.pt'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('ViT/constants.pkl', b'damaged')
    with pytest.raises(ValueError, match=r'ViT\.pt does not hold weights'):
        open_towers(tiny_clip, str(path))


# Refusals


@pytest.mark.parametrize(
    'name, reason',
    [
        ('RN50', 'its image tower is a ResNet'),
        ('RN50x4-quickgelu', 'its image tower is a ResNet'),
        ('ViT-B-16-SigLIP', "its image tower is timm's vit_base_patch16_siglip"),
        ('EVA02-B-16', "its image tower is timm's eva02_base_patch16_clip_224"),
        ('coca_ViT-B-32', 'it is a CoCa'),
        ('xlm-roberta-base-ViT-B-32', "its text tower is Hugging Face's xlm-roberta-base"),
    ],
)
def test_refuses_models_that_cannot_be_prompted(name, reason):
    with pytest.raises(ValueError) as error:
        open_towers(name)
    assert str(error.value).startswith(f'{name} cannot be prompted: {reason}')
    assert 'ViT-B-32-quickgelu' in str(error.value)


def test_refuses_before_downloading(monkeypatch):
    monkeypatch.setattr(
        open_clip.factory, 'download_pretrained', lambda *args, **kwargs: pytest.fail('downloads')
    )
    with pytest.raises(ValueError, match='RN50 cannot be prompted'):
        open_towers('RN50', 'openai')


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(vision=dict(qk_norm=True)), 'custom attention blocks'),
        (dict(text=dict(qk_norm=True)), 'custom attention blocks'),
        (dict(text=dict(scale_fc=True)), 'custom attention blocks'),
        (dict(vision=dict(pool_type='avg')), r'does not read out a \[CLS\]'),
        (dict(vision=dict(pool_type='none')), r'does not read out a \[CLS\]'),
        (dict(vision=dict(attentional_pool=True)), r'not read out a \[CLS\]'),
        (dict(text=dict(no_causal_mask=True)), 'text tower is not causal'),
        (dict(text=dict(embed_cls=True)), 'text tower is not causal'),
        (dict(text=dict(pool_type='last')), r'does not read out the \[EOT\]'),
    ],
)
def test_refuses_configs_that_cannot_be_prompted(write_config, changes, reason):
    name = write_config(**changes)
    with pytest.raises(ValueError, match=reason) as error:
        open_towers(name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    'changes',
    [
        dict(text=dict(pool_type='eos', eos_id=49407)),
        dict(vision=dict(ls_init_value=0.1)),
        dict(vision=dict(mlp_ratio=2.0), text=dict(mlp_ratio=3.0)),
        dict(text=dict(proj_bias=True)),
    ],
)
def test_takes_configs_that_can_be_prompted(write_config, changes):
    name = write_config(**changes)
    clip = open_clip.CustomTextCLIP(**json.loads(Path(name).read_text()))
    path = Path(name).with_suffix('.pt')
    torch.save(clip.state_dict(), path)
    assert_same_clip(open_towers(name, str(path)), clip)


def test_an_unknown_model_suggests_close_ones():
    with pytest.raises(ValueError, match="no model 'ViT-B-23'.*ViT-B-32"):
        open_towers('ViT-B-23')
    with pytest.raises(ValueError, match="no model 'xyzzy'.$"):
        open_towers('xyzzy')


def test_an_unknown_tag_lists_the_tags():
    with pytest.raises(ValueError) as error:
        open_towers('ViT-B-32', 'opneai')
    assert "'opneai' is neither a file nor a tag" in str(error.value)
    for tag in open_clip.list_pretrained_tags_by_model('ViT-B-32'):
        assert tag in str(error.value)


def test_missing_weights_file_is_named(tiny_clip, tmp_path):
    path = str(tmp_path / 'gone.pt')
    with pytest.raises(ValueError, match=r'gone\.pt.* neither a file'):
        open_towers(tiny_clip, path)


@pytest.mark.parametrize(
    'content, message',
    [
        (None, r'no model config .*clip\.json'),
        ('{"embed_dim": 8', r'clip\.json is not valid JSON'),
        ('{"embed_dim": 8}', r'clip\.json .*lacks text_cfg, vision_cfg'),
        ('[]', r'clip\.json is no open_clip model config'),
    ],
)
def test_bad_configs_are_named(tmp_path, content, message):
    path = tmp_path / 'clip.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        open_towers(str(path))


def test_no_network_says_which_file_to_put_where(monkeypatch, tmp_path):
    """Offline mode stands in for a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError) as error:
        open_towers('ViT-B-32-quickgelu', 'openai', cache_dir=str(tmp_path))
    source = open_clip.get_pretrained_cfg('ViT-B-32-quickgelu', 'openai')
    assert source['url'] in str(error.value)
    assert source['hf_hub'] in str(error.value)
    assert 'clip.pretrained' in str(error.value)


def test_no_network_for_weights_at_a_url(monkeypatch, tmp_path):

    def refuse(*args, **kwargs):
        raise OSError('Network is unreachable')

    monkeypatch.setattr(open_clip.factory, 'download_pretrained', refuse)
    with pytest.raises(UserError) as error:
        open_towers('ViT-B-32', 'laion400m_e32', cache_dir=str(tmp_path))
    assert 'Network is unreachable' in str(error.value)
    assert 'laion400m_e32' in str(error.value)
    assert 'clip.pretrained' in str(error.value)
