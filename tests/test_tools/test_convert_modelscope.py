"""The converter of the released model, both ways."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from test_models.test_released import SMALL_CLIP, TEXT, VISUAL, released_state

from projects.vop.engine import check_fit
from projects.vop.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/vop_msrvtt_released.py'


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """Writes the config of a small CLIP; gives its path."""
    folder = tmp_path_factory.mktemp('clips')

    def write(name='small', vision={}, text={}, **kwargs):
        path = folder / f'{name}.json'
        path.write_text(
            json.dumps(
                {
                    **SMALL_CLIP,
                    'vision_cfg': {**SMALL_CLIP['vision_cfg'], **vision},
                    'text_cfg': {**SMALL_CLIP['text_cfg'], **text},
                    **kwargs,
                }
            )
        )
        return str(path)

    return write


@pytest.fixture(scope='module')
def state():
    return released_state()


@pytest.fixture
def convert(clips, monkeypatch, capsys):
    """Runs the tool; gives its exit code or message, and what it printed."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    monkeypatch.chdir(ROOT)

    def run(*arguments, clip=clips(), options=()):
        argv = [
            'tools/convert_modelscope.py',
            *map(str, arguments),
            '--cfg-options',
            f'model.clip.name={clip}',
            *options,
        ]
        monkeypatch.setattr(sys, 'argv', argv)
        capsys.readouterr()
        code = None
        try:
            runpy.run_path(argv[0], run_name='__main__')
        except SystemExit as error:
            code = error.code
        return code, ''.join(capsys.readouterr())

    yield run
    logger.setLevel(level)


def build(clip, pretrained=None):
    cfg = Config.fromfile(ROOT / CONFIG).model
    cfg.clip = dict(name=clip, pretrained=pretrained and str(pretrained))
    return MODELS.build(cfg)


def open_state(path):
    return torch.load(path, weights_only=True)['state_dict']


@pytest.fixture
def files(tmp_path, state):
    """The names of the files of a conversion; the first is written."""
    source = tmp_path / 'VoP_msrvtt9k.pth'
    torch.save(dict(state_dict=state), source)
    return source, tmp_path / 'vop.pth', tmp_path / 'clip.pt'


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_from_released_and_back(convert, files, state, prefix, dtype):
    source, ours, clip = files
    theirs = {key: value.to(dtype) for key, value in state.items()}
    torch.save(dict(state_dict={prefix + k: v for k, v in theirs.items()}), source)
    code, output = convert(source, ours, '--clip-out', clip)
    assert code is None, code
    again = source.with_name('again.pth')
    code, output = convert('--reverse', ours, again, options=[f'model.clip.pretrained={clip}'])
    assert code is None, code
    back = open_state(again)
    assert back.keys() == state.keys()
    for key in state:
        assert back[key].dtype == torch.float32
        assert back[key].equal(theirs[key].float()), key
    # The CLIP stands in it once, under two names.
    values = 4 * sum(
        v.numel() for k, v in state.items() if not k.startswith(('image_', 'text_encoder'))
    )
    assert values < again.stat().st_size < values + 100_000


def test_to_released_and_back(convert, clips, files):
    released, ours, clip = files
    torch.manual_seed(3)
    model = build(clips())
    for prompt in (*model.visual.prompts, *model.text.prompts):
        torch.nn.init.normal_(prompt.tokens)
    torch.save(
        {
            **model.visual.backbone.state_dict(prefix='visual.'),
            **model.text.backbone.state_dict(),
            'logit_scale': model.logit_scale,
        },
        clip,
    )
    torch.save(dict(meta={}, state_dict=model.state_dict()), ours)
    code, output = convert('--reverse', ours, released, options=[f'model.clip.pretrained={clip}'])
    assert code is None, code
    assert 'num_frames 12, vp_token_num 8, tp_prefix_token_num 4, tp_suffix_token_num 4' in output
    written = open_state(released)
    assert written.keys() == released_state().keys()
    assert written['clip.logit_scale'] == model.logit_scale
    assert written[VISUAL].shape == (3, 1, 8, 128)
    prefix, suffix = (prompt.tokens for prompt in model.text.prompts)
    assert written[TEXT][:, :4].equal(prefix)
    assert written[TEXT][:, 4:].equal(suffix)
    again = ours.with_name('again.pth')
    assert convert(released, again)[0] is None
    back, state = open_state(again), model.state_dict()
    assert back.keys() == state.keys()
    for key, value in state.items():
        if key.endswith('_extra_state'):  # it names the CLIP otherwise
            one, other = (json.loads(bytes(v.tolist()))['fingerprint'] for v in (back[key], value))
            assert one == other
        else:
            assert back[key].equal(value)


def test_the_result_loads_onto_the_clip_of_the_file_alone(convert, clips, files, state):
    source, out, clip = files
    code, output = convert(source, out, '--clip-out', clip)
    assert f'model.clip.pretrained={clip}' in output
    assert '6,144 trained parameters' in output
    assert f'{VISUAL} [3, 1, 8, 128]' in output
    assert f'{TEXT} [3, 8, 128], 4 in front of the words and 4' in output
    model = build(clips(), clip)
    for name in ('visual', 'text'):
        tensor = getattr(model, name).get_extra_state()
        assert json.loads(bytes(tensor.tolist()))['fingerprint'] in output
    check_fit(model, str(out))
    load_checkpoint(model, str(out), strict=True)
    assert model.visual.prompts[0].tokens.equal(state[VISUAL][:, 0])
    assert model.logit_scale == state['clip.logit_scale']
    assert out.stat().st_size < 4 * 6144 + 10_000
    for changed in ('visual.conv1.weight', 'ln_final.bias'):
        weights = torch.load(clip, weights_only=True)
        weights[changed] += 1e-3
        torch.save(weights, clip.with_name('other.pt'))
        with pytest.raises(ValueError, match='CLIP of VoP_msrvtt9k.pth, but'):
            load_checkpoint(build(clips(), clip.with_name('other.pt')), str(out))


def test_without_clip_out_it_says_what_is_needed(convert, files):
    code, output = convert(*files[:2])
    assert code is None and '--clip-out' in output
    assert 'pretrained=' not in output


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


def changed(state, key, value):
    return {**state, key: value(state[key])}


def shared(state, name, value):
    """With the same change in clip.* and in the encoder's copy."""
    for key in (f'clip.visual.{name}', f'image_encoder.{name}'):
        state = changed(state, key, value)
    return state


def put(number):
    def change(x):
        x = x.clone()
        x.view(-1)[-1] = number
        return x

    return change


BLOCK = 'transformer.resblocks.1.'


@pytest.mark.parametrize(
    'contents, message',
    [
        (lambda s: s, "has no 'state_dict'"),
        (lambda s: [1, 2], "has no 'state_dict'"),
        (lambda s: dict(state_dict=[s]), "has no 'state_dict'"),
        (
            lambda s: dict(state_dict=without(s, VISUAL)),
            rf'lacks {VISUAL} \(1 in all\).*VoP_msrvtt9k',
        ),
        (
            lambda s: dict(state_dict=without(s, f'text_encoder.{BLOCK}ln_1.bias')),
            rf'lacks text_encoder.{BLOCK}ln_1.bias \(',
        ),
        (
            lambda s: dict(state_dict={'visual.prompts.0.tokens': s[VISUAL]}),
            r'lacks clip.*, \.\.\. \(\d+ in all\).*--reverse',
        ),
        (
            lambda s: dict(state_dict={**s, 'clip.more': s[VISUAL]}),
            r'also has clip.more \(1 in all\)',
        ),
        (
            lambda s: dict(state_dict={**s, f'module.{TEXT}': s[TEXT]}),
            'with and without the prefix',
        ),
        (
            lambda s: dict(state_dict=changed(s, VISUAL, lambda x: x[:, :, :4])),
            rf'{VISUAL} is \[3, 1, 4, 128\] in .* \[3, 1, 8, 128\] in .*--config',
        ),
        (
            lambda s: dict(state_dict=changed(s, TEXT, lambda x: x[:, :6])),
            rf'{TEXT} is \[3, 6, 128\] in .*but \[3, 8, 128\] in .*--config',
        ),
        (
            lambda s: dict(state_dict=changed(s, VISUAL, lambda x: x[:, 0])),
            rf'{VISUAL} is \[3, 8, 128\] in ',
        ),
        (
            lambda s: dict(state_dict=shared(s, 'proj', lambda x: x[:, :8])),
            r'proj is \[128, 8\] in .*but \[128, 32\] .*model.clip.name',
        ),
        (
            lambda s: dict(state_dict=changed(s, VISUAL, lambda x: x.double())),
            f'{VISUAL} in .* holds torch.float64',
        ),
        (lambda s: dict(state_dict=changed(s, VISUAL, lambda x: 3)), f'{VISUAL} in .* holds int'),
        (
            lambda s: dict(state_dict=changed(s, TEXT, put(float('nan')))),
            f'{TEXT} in .* infinite or no numbers',
        ),
        (
            lambda s: dict(state_dict=shared(s, f'{BLOCK}mlp.c_fc.weight', put(float('inf')))),
            f'{BLOCK}mlp.c_fc.weight in .* infinite or no numbers',
        ),
        (
            lambda s: dict(state_dict=changed(s, f'image_encoder.{BLOCK}ln_2.bias', put(9.0))),
            rf'image_encoder.{BLOCK}ln_2.bias and clip.visual.{BLOCK}ln_2.bias '
            'differ',
        ),
        (
            lambda s: dict(state_dict=changed(s, 'clip.token_embedding.weight', put(9.0))),
            'text_encoder.token_embedding.weight and clip.token_emb.* differ',
        ),
    ],
)
def test_another_file_is_refused(convert, files, state, contents, message):
    source, out, clip = files
    torch.save(contents(state), source)
    out.write_text('old')
    with pytest.raises(SystemExit, match=f'(?s){message}') as refusal:
        raise SystemExit(convert(source, out, '--clip-out', clip)[0])
    assert str(source) in str(refusal.value)
    assert out.read_text() == 'old'
    assert sorted(source.parent.iterdir()) == sorted([source, out])


def test_what_is_no_checkpoint_is_refused(convert, files):
    source, out, _ = files
    assert 'There is no checkpoint' in convert('no.pth', out)[0]
    source.write_text('not a checkpoint')
    assert 'damaged, or no checkpoint' in convert(source, out)[0]
    assert 'There is no config no.py' in convert(source, out, '--config', 'no.py')[0]
    assert not out.exists()


PIXELS = ['model.data_preprocessor.type=vop.RetrievalDataPreprocessor']


@pytest.mark.parametrize(
    'arguments, reason',
    [
        (dict(options=['model.normalize_video=True']), 'normalize_video=True'),
        (dict(options=['model.text.type=vop.TextEncoder']), 'is TextEncoder'),
        (
            dict(options=['model.visual.temporal_layers=1']),
            'also visual.frame_positional_embedding',
        ),
        (dict(options=['model.visual.tuning=proj']), 'also visual.backbone.proj'),
        (dict(options=['model.text.tuning=full']), 'also text.backbone.'),
        (
            dict(options=['model.visual.cls_update.type=vop.ContextUpdate']),
            'also visual.cls_update.',
        ),
        (
            dict(options=['model.visual.prompts.0.type=vop.PositionPrompt']),
            'not one LearnedPrompt in every layer',
        ),
        (
            dict(options=['model.visual.prompts.0.layers=(1,2)']),
            'not one LearnedPrompt in every layer',
        ),
        (dict(options=['model.visual.prompts=[]']), 'not one LearnedPrompt in every layer'),
        (
            dict(options=[*PIXELS, 'model.data_preprocessor.mean=(.5,.5,.5)']),
            "OpenAI's mean and deviation",
        ),
        (
            dict(options=[*PIXELS, 'model.data_preprocessor.std=(.5,.5,.5)']),
            "OpenAI's mean and deviation",
        ),
        (dict(clip=dict(name='gelu', quick_gelu=False)), 'no QuickGELU'),
        (dict(clip=dict(name='heads', vision=dict(head_width=32))), 'not 64 wide'),
        (dict(clip=dict(name='text_heads', text=dict(heads=4))), 'not 64 wide'),
        (
            dict(clip=dict(name='scaled', vision=dict(ls_init_value=0.1))),
            'differs in visual.backbone.transformer.resblocks.0.ls_1.gamma',
        ),
        (
            dict(clip=dict(name='bias', text=dict(proj_bias=True))),
            'differs in text.backbone.text_projection, ',
        ),
        (dict(clip=dict(name='context', text=dict(context_length=64))), 'captions of 77 tokens'),
        (
            dict(clip=dict(name='eos', text=dict(pool_type='eos'))),
            'captions of 77 tokens, at the highest id',
        ),
    ],
)
@pytest.mark.parametrize('way', [[], ['--reverse']])
def test_what_the_released_code_cannot_compute_is_refused(
    convert, clips, files, arguments, reason, way
):
    source, out, _ = files
    code, _ = convert(
        *way,
        source,
        out,
        clip=clips(**arguments.get('clip', {})),
        options=['model.clip.pretrained=None', *arguments.get('options', ())],
    )
    assert code.startswith(f'The released code cannot run the model of {CONFIG}: ')
    assert reason in code and not out.exists()


def test_other_lengths_and_frames_are_converted(convert, clips, files):
    source, ours, clip = files
    state = released_state(prompts=5)
    torch.save(dict(state_dict=state), source)
    options = [
        'model.text.prompts.0.length=2',
        'model.text.prompts.1.length=3',
        'model.visual.num_frames=4',
    ]
    code, _ = convert(source, ours, '--clip-out', clip, options=options)
    assert code is None, code
    again = source.with_name('again.pth')
    code, output = convert(
        '--reverse', ours, again, options=[f'model.clip.pretrained={clip}', *options]
    )
    assert code is None, code
    assert open_state(again)[TEXT].equal(state[TEXT])
    assert 'num_frames 4, vp_token_num 8, tp_prefix_token_num 2, tp_suffix_token_num 3' in output


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda s: without(s, 'text.prompts.1.tokens'),
            'does not fit the config: it lacks text.prompts.1.tokens',
        ),
        (lambda s: {**s, 'more': torch.zeros(1)}, 'the model has no more'),
        (
            lambda s: changed(s, 'text.prompts.0.tokens', lambda x: x[:, :3]),
            'of another shape are text.prompts.0.tokens',
        ),
        (
            lambda s: changed(s, 'visual.prompts.0.tokens', put(float('nan'))),
            f'{VISUAL} in .* has values that are infinite or no numbers',
        ),
    ],
)
def test_another_checkpoint_is_not_reversed(convert, clips, files, change, message):
    source, ours, clip = files
    assert convert(source, ours, '--clip-out', clip)[0] is None
    torch.save(dict(state_dict=change(open_state(ours))), ours)
    out = source.with_name('out.pth')
    with pytest.raises(SystemExit, match=message):
        raise SystemExit(
            convert('--reverse', ours, out, options=[f'model.clip.pretrained={clip}'])[0]
        )
    assert not out.exists()


def test_prompts_of_another_clip_are_not_reversed(convert, files):
    source, ours, _ = files
    assert convert(source, ours)[0] is None
    out = source.with_name('out.pth')
    code, _ = convert('--reverse', ours, out, options=['model.clip.pretrained=None'])
    assert 'trained on the CLIP of VoP_msrvtt9k.pth' in code
    assert not out.exists()


def test_command_lines_that_make_no_sense_are_refused(convert, files):
    source, out, clip = files
    for arguments, message in (
        (['--reverse', source, out, '--clip-out', clip], 'goes without'),
        ([source, source], 'different names'),
        ([source, out, '--clip-out', out.parent / 'x' / '..' / out.name], 'different names'),
    ):
        code, output = convert(*arguments)
        assert code == 2 and message in output
    assert not out.exists() and not clip.exists()
