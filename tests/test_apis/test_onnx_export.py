"""The ONNX files compute what the model does, with prompts as constants."""

import json

import numpy as np
import onnx
import pytest
import torch
from helpers import TINY_CLIP
from kinds import write_small_clip
from methods import adapter, context, learned, position
from onnx.numpy_helper import to_array

from projects.vop.apis import OnnxTextEncoder, VoPInferencer, export_onnx, onnx_export, onnx_text
from projects.vop.errors import UserError

pytestmark = pytest.mark.slow  # torch's exporter takes seconds

LORA = dict(type='vop.LoRA', rank=4)
ADAPTERS = [adapter('attn'), adapter('ffn'), LORA]
IN_FRAMES = dict(layers='frame')
# Between them they have every part of the methods, and both ways in which texts are read out.
CASES = dict(
    zero_shot=('openai', dict(), dict()),
    vop=('openai', dict(prompts=[learned(8)]), dict(prompts=[learned(8)])),
    all_prompts_and_adapters=(
        'openai',
        dict(
            prompts=[
                learned(2, **IN_FRAMES),
                position(3),
                context(4),
                learned(5, layers='video'),
            ],
            temporal_layers=1,
            adapters=ADAPTERS,
        ),
        dict(prompts=[learned(2), learned(3, layers=(1, 1))], adapters=ADAPTERS),
    ),
    other_context_as_released=(
        'openai',
        dict(
            prompts=[context(2, cmm='transformer'), context(2, cmm='lstm')],
            cls_update=dict(type='vop.ContextUpdate'),
        ),
        dict(type='vop.ModelScopeTextEncoder', prompts=[learned(4), learned(4)]),
    ),
    pe_core=(
        ('pe_core', 'causal'),
        dict(prompts=[learned(2), context(3)], temporal_layers=1),
        dict(),
    ),
    siglip=(('siglip', 'siglip'), dict(prompts=[position(3)]), dict(prompts=[learned(8)])),
)
TEXTS = ['a man cleans a pool', 'a dog', 'one two three ' * 40, 'naïve café — “quotes” 👩‍👩‍👧']


@pytest.fixture(scope='module')
def exported(retrieval_config, tmp_path_factory):
    """Gives the model of a case, its folder, and what was found; each is made once."""
    made, folder = {}, tmp_path_factory.mktemp('exported')

    def clip_of(kind):
        if kind != 'openai':
            return write_small_clip(folder, *kind)
        config = {key: dict(of) if isinstance(of, dict) else of for key, of in TINY_CLIP.items()}
        config['vision_cfg']['layers'], config['text_cfg']['layers'] = 2, 1
        (folder / 'openai.json').write_text(json.dumps(config))
        return str(folder / 'openai.json')

    def export(case):
        if case not in made:
            kind, visual, text = CASES[case]
            config = retrieval_config('zero_shot')
            torch.manual_seed(0)
            config.model.clip = dict(name=clip_of(kind))
            config.model.visual, config.model.text = dict(visual, num_frames=4), text
            inferencer = VoPInferencer(config, None, 'cpu', show_progress=False)
            for name, parameter in inferencer.model.named_parameters():
                if 'backbone' not in name:
                    torch.nn.init.normal_(parameter, std=0.3)  # as if it were trained
            made[case] = inferencer, folder / case, export_onnx(inferencer, folder / case)
        return made[case]

    return export


@pytest.mark.parametrize('case', CASES)
def test_files_compute_what_torch_does(exported, case):
    inferencer, folder, found = exported(case)
    assert max(found[kind]['difference'] for kind in ('video', 'text')) < 1e-5
    session = onnx_text.open_session(folder / 'video.onnx')
    about = json.loads((folder / 'encoders.json').read_text())
    _, *shape = about['video']['shape']
    for batch in (1, 2, 5):
        frames = np.random.default_rng(batch).integers(0, 256, (batch, *shape), np.uint8)
        data = inferencer.model.data_preprocessor(dict(inputs=dict(imgs=torch.tensor(frames))))
        with torch.no_grad():
            wanted = inferencer.model.encode_video(data['inputs']['imgs']).numpy()
        assert np.abs(session.run(None, dict(frames=frames))[0] - wanted).max() < 1e-4
    encoder = OnnxTextEncoder(folder)
    assert encoder.model_fingerprint == inferencer.model_fingerprint
    for texts in (TEXTS[:2], TEXTS[1:2], TEXTS):
        wanted = inferencer.encode_texts(texts).numpy()
        assert np.abs(encoder.encode_texts(texts) - wanted).max() < 1e-4


@pytest.mark.parametrize('case', CASES)
def test_what_depends_on_no_input_is_a_constant(exported, case):
    """The tokens of learned prompts are in no file, only their keys and values."""
    inferencer, folder, _ = exported(case)
    tokens = [
        parameter.numel()
        for name, parameter in inferencer.model.named_parameters()
        if name.endswith('tokens')
    ]
    assert bool(tokens) == (case != 'zero_shot')
    for name in ('video.onnx', 'text.onnx'):
        graph = onnx.load(folder / name).graph
        constants = {each.name for each in graph.initializer}
        for node in graph.node:
            assert node.domain == '' and not set(node.input) <= constants, node.name
        if case != 'other_context_as_released':  # the released model computes with tokens
            sizes = {to_array(each).shape[-2:] for each in graph.initializer}
            assert not sizes & {(p, inferencer.model.visual.spec.width) for p in (8, 5)}


def test_learned_prompts_cost_what_attention_reads_of_them(exported):
    plain, vop = (exported(case)[2] for case in ('zero_shot', 'vop'))
    frames, tokens, width, prompts = 4, 5, 64, 8
    more = frames * (tokens + 1) * 4 * prompts * width  # the last layer has one query
    assert vop['video']['operations'] == plain['video']['operations'] + more
    # As many layers with all queries, as open_clip runs them; it projects no prompt.
    layer = 24 * width**2 * tokens + 4 * width * tokens**2
    whole = frames * (2 * layer + 2 * 4 * (3 * 16**2) * width + 2 * width * 32)
    assert plain['video']['alone'] == vop['video']['alone'] == whole
    assert vop['video']['operations'] < whole and vop['text']['operations'] < whole


def test_tokens_are_those_of_open_clip(exported):
    inferencer, folder, _ = exported('vop')
    encoder = OnnxTextEncoder(folder)
    captions = [
        *onnx_export.CAPTIONS,
        *TEXTS,
        *'¹²ßİǆ½',
        "Don't stop!?!",
        '&lt;&amp;lt;',
        'a\u200bb',
    ]
    wanted = inferencer.tokenizer(captions, context_length=encoder.slots).numpy()
    tokens = encoder.tokenize(captions)
    assert encoder.slots == 69 and tokens.shape == wanted.shape
    assert (tokens == wanted).all()
    assert encoder.tokenize(['a dog']).shape == (1, 4)


def test_a_text_that_is_cut_is_named(exported, logged_warnings):
    encoder = OnnxTextEncoder(exported('vop')[1])
    encoder.encode_texts(['dog ' * 67, 'cat ' * 68])
    (warning,) = logged_warnings
    assert '"cat cat' in warning and 'longer than the 69 tokens' in warning


def test_what_differs_from_torch_is_no_export(exported, tmp_path, monkeypatch):
    inferencer = exported('zero_shot')[0]
    monkeypatch.setattr(onnx_export, 'TOLERANCE', 1e-12)
    with pytest.raises(RuntimeError, match=r'video\.onnx differs from torch by .*e-'):
        export_onnx(inferencer, tmp_path)
    with pytest.raises(UserError, match=r'no .*encoders\.json'):
        OnnxTextEncoder(tmp_path)


def test_what_is_damaged_is_named(exported, tmp_path):
    folder = exported('vop')[1]
    for name in ('text.onnx', 'tokenizer.json'):
        for each in ('encoders.json', 'text.onnx', 'tokenizer.json'):
            (tmp_path / each).write_bytes((folder / each).read_bytes())
        (tmp_path / name).write_bytes(b'{')
        with pytest.raises(UserError, match=name):
            OnnxTextEncoder(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=f'no file .*{name}'):
            OnnxTextEncoder(tmp_path)
    about = json.loads((folder / 'encoders.json').read_text())
    for wrong, reason in (
        ([], 'of version'),
        (dict(about, format=0), 'of version'),
        (dict(about, text=dict(about['text'], slots='69')), 'damaged'),
        (dict(about, text=dict(about['text'], tokenizer=None)), 'without torch'),
    ):
        (tmp_path / 'encoders.json').write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=reason):
            OnnxTextEncoder(tmp_path)
