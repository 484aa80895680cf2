"""The converter of ModelScope's model."""

import json
from pathlib import Path

import pytest
import torch
from helpers import MODELSCOPE_CLIP as SMALL_CLIP
from helpers import MODELSCOPE_TEXT as TEXT
from helpers import MODELSCOPE_VISUAL as VISUAL
from helpers import released_state
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint

from projects.vop.engine import check_state, load_safely
from projects.vop.errors import UserError
from projects.vop.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/vop_msrvtt_released.py'
PIXELS = 'model.data_preprocessor'
BLOCK = 'transformer.resblocks.1.'


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """Writes the config of a small CLIP; gives its path."""
    folder = tmp_path_factory.mktemp('clips')

    def write(vision={}, text={}, **kwargs):
        clip = {**SMALL_CLIP, **kwargs}
        clip['vision_cfg'] = {**clip['vision_cfg'], **vision}
        clip['text_cfg'] = {**clip['text_cfg'], **text}
        path = folder / f'{len(list(folder.iterdir()))}.json'
        path.write_text(json.dumps(clip))
        return str(path)

    return write


@pytest.fixture(scope='module')
def state():
    return released_state()


@pytest.fixture
def convert(clips, run_tool, monkeypatch, capsys):
    """Runs the tool; gives what it prints."""
    monkeypatch.chdir(ROOT)

    def run(*arguments, clip=clips(), options=()):
        name = f'model.clip.name={clip}'
        logger = MMLogger.get_current_instance()
        level = logger.level
        run_tool('tools/convert_modelscope.py', *arguments, '--cfg-options', name, *options)
        logger.setLevel(level)
        return capsys.readouterr().out

    return run


@pytest.fixture
def files(tmp_path, state):
    """The files of a conversion; the first is written."""
    source, *others = (tmp_path / name for name in ('VoP_msrvtt9k.pth', 'vop.pth', 'clip.pt'))
    torch.save(dict(state_dict=state), source)
    return source, *others


def build(clip, pretrained):
    cfg = Config.fromfile(ROOT / CONFIG).model
    cfg.clip = dict(name=clip, pretrained=str(pretrained))
    return MODELS.build(cfg)


@pytest.mark.parametrize('prefix, dtype', [('', torch.float32), ('module.', torch.float16)])
def test_the_result_loads_onto_the_clip_of_the_file(convert, clips, files, state, prefix, dtype):
    source, out, clip = files
    theirs = {prefix + key: value.to(dtype) for key, value in state.items()}
    torch.save(dict(state_dict=theirs), source)
    output = convert(source, out, '--clip-out', clip)
    assert f'model.clip.pretrained={clip}' in output and '6,144 trained parameters' in output
    for name, shape in ((VISUAL, [3, 1, 8, 128]), (TEXT, [3, 8, 128])):
        assert f'{name} {shape}' in output
    model = build(clips(), clip)
    check_state(model, load_safely(str(out)), str(out))
    load_checkpoint(model, str(out), strict=True)
    expected = {key: value.to(dtype).float() for key, value in state.items()}
    assert model.visual.prompts[0].tokens.equal(expected[VISUAL][:, 0])
    assert torch.cat([p.tokens for p in model.text.prompts], 1).equal(expected[TEXT])
    assert model.logit_scale == expected['clip.logit_scale']
    for name, encoder in dict(image_encoder=model.visual, text_encoder=model.text).items():
        for key, value in encoder.backbone.state_dict().items():
            assert value.equal(expected[f'{name}.{key}']), key
    assert out.stat().st_size < 4 * 6144 + 10_000
    weights = torch.load(clip, weights_only=True)
    weights['ln_final.bias'] += 1e-3
    torch.save(weights, clip)
    with pytest.raises(ValueError, match='VoP_msrvtt9k.pth'):
        load_checkpoint(build(clips(), clip), str(out))


def test_other_lengths_of_prompts_are_converted(convert, files):
    source, out, _ = files
    state = released_state(prompts=5)
    torch.save(dict(state_dict=state), source)
    lengths = [f'model.text.prompts.{i}.length={i + 2}' for i in range(2)]
    output = convert(source, out, options=lengths)
    assert '--clip-out' in output and 'pretrained=' not in output
    converted = torch.load(out, weights_only=True)['state_dict']
    tokens = [converted[f'text.prompts.{i}.tokens'] for i in range(2)]
    assert [t.shape[1] for t in tokens] == [2, 3] and torch.cat(tokens, 1).equal(state[TEXT])


def change(key, value, *, copies=()):
    """Changes a weight, and its copies."""
    return lambda s: {**s, **{name: value(s[key]) for name in (key, *copies)}}


def put(number):
    return lambda x: torch.cat([x.flatten()[:-1], torch.tensor([number])]).view_as(x)


PROJ = dict(copies=['image_encoder.proj'])
LN_2, LN_2_COPY = (f'{prefix}.{BLOCK}ln_2.bias' for prefix in ('clip.visual', 'image_encoder'))


@pytest.mark.parametrize(
    'edit, names',
    [
        (lambda s: [1, 2], ['state_dict']),
        (lambda s: {k: s[k] for k in s if k != VISUAL}, [VISUAL, '(1 in total)', 'VoP_msrvtt9k']),
        (lambda s: {'visual.prompts.0.tokens': s[VISUAL]}, ['lacks clip.', ', ...']),
        (lambda s: {**s, 'clip.more': s[VISUAL]}, ['clip.more']),
        (lambda s: {**s, f'module.{TEXT}': s[TEXT]}, ['module.']),
        (change(VISUAL, lambda x: x[:, :, :4]), [VISUAL, '[3, 1, 4, 128]', '[3, 1, 8, 128]']),
        (change(TEXT, lambda x: x[:, :6]), [TEXT, '[3, 6, 128]', '[3, 8, 128]', '--config']),
        (change('clip.visual.proj', lambda x: x[:, :8], **PROJ), ['[128, 8]', 'model.clip.name']),
        (change(VISUAL, torch.Tensor.double), [VISUAL, 'float64']),
        (change(VISUAL, lambda x: 3), [VISUAL, 'int']),
        (change(TEXT, put(float('nan'))), [TEXT, 'not finite']),
        (change(LN_2, put(float('inf')), copies=[LN_2_COPY]), [LN_2, 'not finite']),
        (change(LN_2_COPY, put(9.0)), [LN_2, LN_2_COPY]),
    ],
)
def test_another_file_is_refused(convert, files, state, edit, names):
    source, out, clip = files
    edited = edit(state)
    torch.save(dict(state_dict=edited) if isinstance(edited, dict) else edited, source)
    out.write_text('old')
    with pytest.raises(UserError) as refusal:
        convert(source, out, '--clip-out', clip)
    assert all(name in str(refusal.value) for name in (str(source), *names))
    assert out.read_text() == 'old' and not clip.exists()


@pytest.mark.parametrize(
    'clip, options, names',
    [
        ({}, ['model.normalize_video=True'], 'normalize_video'),
        ({}, ['model.text.type=vop.TextEncoder'], 'TextEncoder'),
        ({}, ['model.visual.temporal_layers=1'], 'visual.frame_positional_embedding'),
        ({}, ['model.visual.prompts.0.type=vop.PositionPrompt'], 'PositionPrompt'),
        ({}, ['model.visual.prompts=[]'], 'VideoEncoder, ModelScopeTextEncoder, LearnedPrompt'),
        (
            {},
            [f'{PIXELS}.type=vop.RetrievalDataPreprocessor', f'{PIXELS}.std=(1,1,1)'],
            'deviation',
        ),
        (dict(quick_gelu=False), [], 'quickgelu'),
        (dict(vision=dict(head_width=32)), [], '64 wide'),
        (dict(vision=dict(ls_init_value=0.1)), [], 'ls_1.gamma'),
        (dict(text=dict(context_length=64)), [], '[64, 128]'),
        (dict(text=dict(pool_type='eos')), [], 'highest id'),
    ],
)
def test_a_model_that_computes_something_else_is_refused(
    convert, clips, files, clip, options, names
):
    source, out, _ = files
    with pytest.raises(UserError) as refusal:
        convert(source, out, clip=clips(**clip), options=options)
    assert CONFIG in str(refusal.value) and names in str(refusal.value) and not out.exists()


def test_files_of_one_name_are_refused(convert, files):
    source, out, _ = files
    for arguments in (
        [source, source],
        [source, out, '--clip-out', out.parent / 'x/..' / out.name],
    ):
        with pytest.raises(SystemExit):
            convert(*arguments)
    assert not out.exists()
