"""Opening CLIPs, and saying no clearly."""

import json
import os
import re
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch
from helpers import TINY_CLIP, Code, make_model, released_state
from torch import nn

from projects.vop.clip_config import open_tokenizer
from projects.vop.errors import UserError
from projects.vop.models import RetrievalRecognizer, open_towers
from projects.vop.models.clip import check_pretrained


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


# Weights of other makers


def words_of_transformers(state):
    """The names of a ``CLIPModel``, for those of ``open_clip.CLIP``."""
    renamed = {}
    for key, value in state.items():
        tower = 'vision_model' if key.startswith('visual.') else 'text_model'
        key = key.removeprefix('visual.')
        layer, _, rest = key.removeprefix('transformer.resblocks.').partition('.')
        block = f'{tower}.encoder.layers.{layer}'
        if 'in_proj' in key:
            for part, piece in zip('qkv', value.chunk(3)):
                kind = key.rpartition('_')[2]
                renamed[f'{block}.self_attn.{part}_proj.{kind}'] = piece.clone()
        elif 'resblocks' in key:
            for ours, theirs in (
                ('attn.', 'self_attn.'),
                ('ln_', 'layer_norm'),
                ('c_fc', 'fc1'),
                ('c_proj', 'fc2'),
            ):
                rest = rest.replace(ours, theirs)
            renamed[f'{block}.{rest}'] = value
        elif key in ('proj', 'text_projection'):
            name = dict(proj='visual_projection').get(key, key)
            renamed[f'{name}.weight'] = value.T.contiguous()
        elif key == 'logit_scale':
            renamed[key] = value
        else:
            for ours, theirs in (
                ('class_embedding', 'embeddings.class_embedding'),
                ('conv1', 'embeddings.patch_embedding'),
                ('token_embedding', 'embeddings.token_embedding'),
                ('positional_embedding', 'embeddings.position_embedding.weight'),
                ('ln_pre', 'pre_layrnorm'),
                ('ln_post', 'post_layernorm'),
                ('ln_final', 'final_layer_norm'),
            ):
                key = key.replace(ours, theirs)
            renamed[f'{tower}.{key}'] = value
    return renamed


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


INTEGERS = dict(input_resolution=32, context_length=77, vocab_size=49408)
POSITION_IDS = {
    f'{tower}.embeddings.position_ids': torch.arange(n)[None]
    for tower, n in (('vision_model', 5), ('text_model', 77))
}
MAKERS = {
    'transformers': words_of_transformers,
    'older transformers': lambda s: words_of_transformers(s) | POSITION_IDS,
    'a trainer of transformers': lambda s: prefixed('model.', words_of_transformers(s)),
    'CLIP4Clip': lambda s: prefixed('clip.', s),
    'several processes': lambda s: prefixed('module.clip.', s),
    'compiled': lambda s: prefixed('_orig_mod.', s),
    'Lightning': lambda s: dict(
        epoch=3,
        state_dict=prefixed('model.', s),
        optimizer_states=[dict(state={0: dict(exp_avg=torch.zeros(2))}, param_groups=[])],
    ),
    'a nest of two': lambda s: dict(model=dict(weights=s), args=dict(lr=1e-3)),
    'OpenAI, tensors': lambda s: s | {k: torch.tensor(v) for k, v in INTEGERS.items()},
    'OpenAI, numbers, CLIP4Clip': lambda s: prefixed('clip.', s | INTEGERS),
    'half precision': lambda s: {key: value.half() for key, value in s.items()},
    'SigLIP loss': lambda s: s | dict(logit_bias=torch.tensor(-10.0)),
    'a scale of one number': lambda s: s | dict(logit_scale=s['logit_scale'][None]),
}


# transformers has one form, the others have open_clip's two.
FORMS = [(maker, open_clip.CLIP) for maker in MAKERS]
FORMS += [(maker, open_clip.CustomTextCLIP) for maker in MAKERS if 'transformers' not in maker]


@pytest.mark.parametrize('maker, form', FORMS)
def test_opens_weights_of_other_makers(tiny_clip, tmp_path, maker, form):
    clip = form(**TINY_CLIP)
    for parameter in clip.parameters():  # biases and embeddings, too, tell parts apart
        nn.init.normal_(parameter, std=0.1)
    torch.save(MAKERS[maker](clip.state_dict()), tmp_path / 'weights.pt')
    towers = open_towers(tiny_clip, str(tmp_path / 'weights.pt'))
    if maker == 'half precision':
        clip = clip.half().float()
    assert_same_clip(towers, clip)
    assert towers.visual.proj.dtype == torch.float32


def test_opens_what_transformers_itself_saves(tiny_clip, tmp_path):
    """Against its own embeddings; where it is installed."""
    transformers = pytest.importorskip('transformers')
    config = transformers.CLIPConfig(
        projection_dim=32,
        vision_config=dict(
            hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            image_size=32, patch_size=16,
        ),
        text_config=dict(
            hidden_size=48, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        ),
    )  # fmt: skip
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    towers = open_towers(tiny_clip, str(tmp_path / 'model.safetensors'))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = theirs(input_ids=captions(), pixel_values=image)
        for ours, other in (
            (towers.visual(image), output.image_embeds),
            (towers.text(captions()), output.text_embeds),
        ):
            torch.testing.assert_close(nn.functional.normalize(ours, dim=-1), other)


def broken(change):
    """The state of the tiny CLIP, changed."""

    def write(path):
        state = dict(open_clip.CLIP(**TINY_CLIP).state_dict())
        torch.save(change(state) or state, path)

    return write


def cut(write, share):
    def cut_off(path):
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return cut_off


def lose_bytes(path):
    broken(lambda s: None)(path)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(512) + data[middle + 512 :])


def own_checkpoint(path):
    clip = path.with_name('clip.json')
    clip.write_text(json.dumps(TINY_CLIP))
    torch.save(dict(meta={}, state_dict=make_model(str(clip)).state_dict()), path)


def save_safetensors(path):
    state = open_clip.CustomTextCLIP(**TINY_CLIP).state_dict()
    safetensors.torch.save_file(dict(state), path)


def dtype_of(dtype):
    return broken(lambda s: {k: v.to(dtype) for k, v in s.items()})


NAN = torch.full((32,), torch.nan)
FILES = {
    'empty': (lambda path: path.write_bytes(b''), 'empty'),
    'page': (lambda path: path.write_bytes(b'\n<!DOCTYPE html><html>'), 'web page'),
    'text': (lambda path: path.write_text('no weights\n' * 99), 'text'),
    'pointer': (
        lambda path: path.write_text(
            'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6\n'
        ),
        'Git LFS',
    ),
    'bytes': (lambda path: path.write_bytes(bytes(range(256)) * 9), 'damaged'),
    'cut off': (cut(broken(lambda s: None), 0.7), 'cut off'),
    'lost bytes': (lose_bytes, 'damaged'),
    'cut off safetensors': (cut(save_safetensors, 0.7), 'cut off'),
    'start of safetensors': (cut(save_safetensors, 0.001), 'cut off'),
    'zip': (lambda path: path.write_bytes(b'PK\3\4hello'), 'damaged'),
    'code': (lambda path: torch.save(open_clip.CLIP(**TINY_CLIP), path), 'open_clip.model.CLIP'),
    'list': (lambda path: torch.save([torch.zeros(2)], path), 'list'),
    'no tensors': (lambda path: torch.save(dict(epoch=1, args='x'), path), 'epoch, args'),
    'incomplete': (broken(lambda s: s.pop('ln_final.bias') is NAN), 'lacks text.ln_final.bias'),
    'more': (broken(lambda s: s | {'cross.weight': NAN}), 'also has cross.weight'),
    'two prefixes': (
        broken(lambda s: prefixed('model.', s) | prefixed('ema.', s)),
        'several',
    ),
    'two states': (broken(lambda s: dict(state_dict=s, ema=dict(s))), 'several'),
    'with and without': (
        broken(lambda s: prefixed('model.', s) | dict(logit_scale=s['logit_scale'] + 1)),
        'it lacks ',
    ),
    'other shape': (broken(lambda s: s | {'visual.proj': NAN}), r'visual.proj is \[32\] in it'),
    'larger picture': (
        broken(lambda s: s | {'visual.positional_embedding': torch.zeros(10, 64)}),
        r'positional_embedding is \[10, 64\] in it',
    ),
    'not finite': (broken(lambda s: s | {'ln_final.bias': NAN.repeat(2)[:48]}), 'not finite'),
    'integers': (dtype_of(torch.int8), 'floating point'),
    'checkpoint of ours': (own_checkpoint, 'checkpoint of this project'),
    'ModelScope': (lambda path: torch.save(dict(state_dict=released_state()), path), 'ModelScope'),
    'ResNet': (
        lambda path: torch.save(
            {'visual.conv1.weight': NAN, 'visual.attnpool.k_proj.weight': NAN}, path
        ),
        'ResNet',
    ),
    'image tower': (
        broken(lambda s: {k: v for k, v in words_of_transformers(s).items() if 'vis' in k}),
        'lacks logit_scale',
    ),
    'timm': (lambda path: torch.save({'cls_token': NAN, 'norm.bias': NAN}, path), 'names of a'),
}


@pytest.mark.parametrize('kind', FILES)
def test_a_file_of_other_weights_is_named(tiny_clip, tmp_path, kind):
    """In a line that can be read."""
    write, what = FILES[kind]
    write(tmp_path / 'weights.pt')
    with pytest.raises(UserError, match=rf'weights\.pt does not hold weights.*{what}') as error:
        open_towers(tiny_clip, str(tmp_path / 'weights.pt'))
    message = str(error.value)
    assert '\n' not in message and 'weights_only' not in message
    assert len(message) < 320, message


def test_a_file_that_cannot_be_read_is_named(tiny_clip, tmp_path):
    path = tmp_path / 'weights.pt'
    path.touch()
    path.chmod(0)
    if os.access(path, os.R_OK):  # by root
        pytest.skip('this user may read everything')
    with pytest.raises(UserError, match=r'weights\.pt does not hold.*Permission denied'):
        open_towers(tiny_clip, str(path))


def test_a_folder_is_not_a_file_of_weights(tiny_clip, tmp_path):
    with pytest.raises(UserError, match=f"pretrained='{tmp_path}'.*local-dir:{tmp_path}"):
        open_towers(tiny_clip, str(tmp_path))


def test_the_activation_that_is_assumed_is_said(write_config, tmp_path, logged_warnings):
    """Once, and only where nothing tells it."""
    clip = open_clip.CLIP(**TINY_CLIP)
    state, path = clip.state_dict(), str(tmp_path / 'weights.pt')
    torch.save(state, path)
    silent = {key: value for key, value in TINY_CLIP.items() if key != 'quick_gelu'}
    (tmp_path / 'silent.json').write_text(json.dumps(silent))
    for _ in range(2):
        open_towers(write_config('quick.json'), path)
        open_towers(str(tmp_path / 'silent.json'), path)
    [message] = logged_warnings
    assert re.search(
        r'weights\.pt .* GELU is assumed.*"quick_gelu": true in .*silent\.json', message
    )
    # Of a model of OpenAI's it is known.
    torch.save(state | INTEGERS, path)
    with pytest.raises(UserError, match=r'weights\.pt .*QuickGELU.*"quick_gelu": true in .*silent'):
        open_towers(str(tmp_path / 'silent.json'), path)
    assert len(logged_warnings) == 1


@pytest.mark.parametrize(
    'name, other', [('ViT-B-32', 'ViT-B-32-quickgelu'), ('ViT-L-14-quickgelu', 'ViT-L-14')]
)
def test_another_activation_has_another_name(monkeypatch, tmp_path, logged_warnings, name, other):
    quick = name.endswith('-quickgelu')
    monkeypatch.setattr(open_clip, 'get_model_config', lambda _: TINY_CLIP | dict(quick_gelu=quick))
    path = str(tmp_path / 'weights.pt')
    torch.save(open_clip.CLIP(**TINY_CLIP).state_dict(), path)
    open_towers(name, path)
    [message] = logged_warnings
    assert f"clip.name='{other}'" in message and 'is assumed' in message
    # A tag tells it.
    monkeypatch.setattr(open_clip.factory, 'download_pretrained', lambda *args, **kwargs: path)
    tag = 'openai'
    if quick:
        open_towers(name, tag)
    else:
        with pytest.raises(UserError, match=f"'openai' were trained with QuickGELU.*'{other}'"):
            open_towers(name, tag)
    assert len(logged_warnings) == 1


def test_a_tag_without_a_file_is_not_random(monkeypatch):
    monkeypatch.setattr(open_clip.factory, 'download_pretrained', lambda *args, **kwargs: '')
    with pytest.raises(UserError, match='openai.*could not be downloaded'):
        open_towers('ViT-B-32-quickgelu', 'openai')


# Folders and repositories


@pytest.fixture
def save_folder(tmp_path):
    """Save a CLIP as open_clip does; gives its name, and the CLIP."""

    def save(
        file='open_clip_model.safetensors',
        config={},
        pixels=dict(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], interpolation='bicubic'),
    ):
        folder = tmp_path / 'saved'
        folder.mkdir(exist_ok=True)
        whole = dict(model_cfg=TINY_CLIP | config, preprocess_cfg=pixels)
        (folder / 'open_clip_config.json').write_text(json.dumps(whole))
        clip = open_clip.CustomTextCLIP(**TINY_CLIP)
        if file.endswith('.safetensors'):
            safetensors.torch.save_file(dict(clip.state_dict()), folder / file)
        elif file:
            torch.save(clip.state_dict(), folder / file)
        return f'local-dir:{folder}', clip

    return save


@pytest.mark.parametrize(
    'file', ['open_clip_model.safetensors', 'open_clip_pytorch_model.bin', 'epoch_9.pt']
)
def test_opens_a_folder(save_folder, logged_warnings, file):
    name, clip = save_folder(file)
    towers = open_towers(name)
    assert_same_clip(towers, clip)
    assert towers.mean == (0.1, 0.2, 0.3) and towers.std == (0.5, 0.6, 0.7)
    assert towers.tokenizer['name'] == name and file in towers.name
    model = RetrievalRecognizer(dict(name=name))
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])
    assert not logged_warnings
    # A file of weights takes the place of the folder's.
    other = open_clip.CustomTextCLIP(**TINY_CLIP)
    torch.save(other.state_dict(), Path(name.partition(':')[2]) / 'other.pt')
    assert_same_clip(open_towers(name, name.partition(':')[2] + '/other.pt'), other)


def test_a_config_saved_with_weights_is_a_config(save_folder):
    """Its mean and deviation count, too."""
    name, clip = save_folder()
    folder = name.partition(':')[2]
    towers = open_towers(f'{folder}/open_clip_config.json', f'{folder}/open_clip_model.safetensors')
    assert_same_clip(towers, clip)
    assert towers.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    'arguments, pretrained, message',
    [
        (dict(file=''), None, 'saved holds no weights'),
        (dict(), 'openai', "pretrained='openai' is neither a file nor a tag.*or None"),
        (dict(config=dict(embed_dim=16)), None, r'proj is \[64, 32\] in it'),
        (dict(config=dict(quick_gelu='yes', nonsense=1)), None, 'cannot make a model.*nonsense'),
        (dict(config=dict(text_cfg=[])), None, r'open_clip_config\.json .*lacks text_cfg'),
        (dict(pixels=dict(mean=[1, 2])), None, 'mean of preprocess_cfg must be three numbers'),
        (dict(pixels=dict(std=[1, 2, 0])), None, 'std of preprocess_cfg must be three numbers'),
    ],
)
def test_a_folder_that_does_not_serve_is_refused(save_folder, arguments, pretrained, message):
    """Never are its weights random."""
    name, _ = save_folder(**arguments)
    with pytest.raises(UserError, match=message):
        open_towers(name, pretrained)


def test_several_files_of_weights_are_in_doubt(save_folder):
    for file in ('epoch_1.pt', 'epoch_2.pt'):
        name, _ = save_folder(file)
    with pytest.raises(UserError, match='several files of weights'):
        check_pretrained(dict(name=name))


@pytest.mark.parametrize('name', ['local-dir:', 'local-dir:gone', 'hf-hub:', 'hf-hub:org/name'])
def test_what_is_not_there_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    for open_it in (open_towers, open_tokenizer):
        with pytest.raises(UserError, match=name.removeprefix('local-dir:') or name) as error:
            open_it(name, cache_dir=str(tmp_path))
        assert '\n' not in str(error.value) and len(str(error.value)) < 300


def test_opens_a_repository(save_folder, monkeypatch):
    """Downloads of it are a folder's files; this machine has no hub."""
    name, clip = save_folder()
    folder, asked = Path(name.partition(':')[2]), []

    def find(repository, filename, cache_dir):
        asked.append((repository, cache_dir))
        file = folder / filename
        return str(file if file.is_file() else folder / 'open_clip_model.safetensors')

    monkeypatch.setattr(open_clip.factory, 'download_pretrained_from_hf', find)
    towers = open_towers('hf-hub:org/clip', cache_dir='downloads')
    assert_same_clip(towers, clip)
    assert towers.mean == (0.1, 0.2, 0.3) and set(asked) == {('org/clip', 'downloads')}
    assert open_tokenizer(**towers.tokenizer)(['a dog']).equal(open_clip.tokenize(['a dog']))


def test_torchscript_of_a_repository_is_not_opened(save_folder, monkeypatch):
    """It is code, and an index may name any repository."""
    folder = Path(save_folder()[0].partition(':')[2])
    (archive,) = folder.glob('*.safetensors')
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), archive)

    def find(repository, filename, cache_dir):
        return str(folder / filename if filename.endswith('.json') else archive)

    monkeypatch.setattr(open_clip.factory, 'download_pretrained_from_hf', find)
    monkeypatch.setattr(torch.jit, 'load', lambda *args, **kwargs: pytest.fail('it was opened'))
    with pytest.raises(UserError, match='hf-hub:org/clip are TorchScript'):
        open_towers('hf-hub:org/clip')


def test_weights_that_are_not_asked_for_are_not_opened(save_folder, logged_warnings):
    name, _ = save_folder(file='')
    open_towers(name, load_weights=False)
    open_towers('ViT-S-32', 'gone.pt', load_weights=False)
    assert not logged_warnings


# Refusals


@pytest.mark.parametrize(
    'name, reason',
    [
        ('RN50', 'ResNet'),
        ('convnext_base', 'ConvNeXt'),
        ('MobileCLIP-S1', 'FastVit'),
        ('swin_base_patch4_window7_224', 'SwinTransformer'),
        ('vit_relpos_medium_patch16_cls_224', 'VisionTransformerRelPos'),
        ('ViTamin-S', 'MbConvStages'),
        ('coca_ViT-B-32', 'CoCa'),
        ('xlm-roberta-base-ViT-B-32', "Hugging Face's xlm-roberta-base"),
    ],
)
def test_models_that_cannot_be_prompted_are_refused_before_downloading(monkeypatch, name, reason):
    monkeypatch.setattr(
        open_clip.factory, 'download_pretrained', lambda *args, **kwargs: pytest.fail('downloads')
    )
    with pytest.raises(UserError, match=f'^{name} cannot be prompted: .*{reason}') as error:
        open_towers(name, next(iter(open_clip.list_pretrained_tags_by_model(name)), None))
    assert 'ViT-B-32-quickgelu' in str(error.value)


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(vision=dict(qk_norm=True)), 'blocks are of another kind'),
        (dict(text=dict(qk_norm=True)), 'blocks are of another kind'),
        (dict(text=dict(scale_fc=True)), 'blocks are of another kind'),
        (dict(vision=dict(pool_type='none')), '[CLS]'),
        (dict(vision=dict(attentional_pool=True)), '[CLS]'),
        (dict(text=dict(embed_cls=True)), '[CLS]'),
        (dict(text=dict(pool_type='last')), 'causal'),
        (dict(text=dict(pool_type='first')), '[EOT]'),
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
