"""The ONNX files compute what the model does, with prompts as constants."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import TINY_CLIP
from kinds import write_small_clip
from methods import adapter, context, learned, position
from onnx.numpy_helper import to_array

from projects.vop.apis import OnnxTextEncoder, VoPInferencer, export_onnx, onnx_text
from projects.vop.apis.onnx_export import CAPTIONS, check
from projects.vop.errors import UserError
from projects.vop.models import LearnedPrompt, ModelScopeTextEncoder, PositionPrompt

pytestmark = pytest.mark.slow  # torch's exporter takes seconds

ADAPTERS = [adapter('attn'), adapter('ffn'), dict(type='vop.LoRA', rank=4)]
# Between them they have every part of the methods, and both ways in which texts are read out.
CASES = dict(
    vop=('openai', dict(prompts=[learned(8)]), dict(prompts=[learned(8)])),
    every_part=(
        ('pe_core', 'causal'),
        dict(
            prompts=[
                learned(2, layers='frame'),
                position(3),
                context(4),
                context(2, cmm='transformer'),
                learned(5, layers='video'),
            ],
            temporal_layers=1,
            cls_update=dict(type='vop.ContextUpdate', cmm='lstm'),
            adapters=ADAPTERS,
        ),
        dict(type='vop.ModelScopeTextEncoder', prompts=[learned(4), learned(4)], adapters=ADAPTERS),
    ),
    siglip=(('siglip', 'siglip'), dict(prompts=[position(3)]), dict(prompts=[learned(8)])),
)
TEXTS = ['a man cleans a pool', 'a dog', 'one two three ' * 40, 'naïve café — “quotes” 👩‍👩‍👧']


@pytest.fixture(scope='module')
def exported(retrieval_config, tmp_path_factory):
    """Gives the model of a case, its folder, and what was found; each is made once."""
    made, folder = {}, tmp_path_factory.mktemp('exported')

    def clip_of(kind):
        if kind == 'openai':
            config, path = dict(TINY_CLIP), folder / 'openai.json'
        else:
            path = Path(write_small_clip(folder, *kind))
            config = json.loads(path.read_text())
        # As few layers as there are kinds of them: exporting takes seconds for each.
        config['text_cfg'] = config['text_cfg'] | dict(layers=1)
        config['vision_cfg'] = config['vision_cfg'] | dict(layers=2)
        path.write_text(json.dumps(config))
        return str(path)

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
    for name, encoder in (('video', inferencer.model.visual), ('text', inferencer.model.text)):
        graph = onnx.load(folder / f'{name}.onnx').graph
        constants = {each.name: to_array(each) for each in graph.initializer}
        for node in graph.node:
            assert node.domain == '' and not set(node.input) <= constants.keys(), node.name
        if isinstance(encoder, ModelScopeTextEncoder):
            continue  # as released, it computes with the tokens themselves
        numbers = np.concatenate([each.ravel() for each in constants.values()])
        for prompt in encoder.prompts:
            if isinstance(prompt, (LearnedPrompt, PositionPrompt)):
                # Among millions of numbers a few may be the same.
                assert np.isin(prompt.tokens.detach().numpy(), numbers).mean() < 0.5


def test_learned_prompts_cost_what_attention_reads_of_them(exported):
    found = exported('vop')[2]
    frames, tokens, width, prompts = 4, 5, 64, 8
    layer = 12 * width**2 * tokens + 2 * width * tokens**2
    ends = 4 * (3 * 16**2) * width + width * 32
    assert found['video']['alone'] == frames * (2 * layer + ends)
    # The last layer has one query, keys and values alone of the other tokens; no prompt is
    # projected.
    last = 10 * width**2 + 2 * width**2 * tokens + 2 * width * tokens
    read = 2 * prompts * width * (tokens + 1)
    assert found['video']['operations'] == frames * (layer + last + ends + read)
    assert found['text']['operations'] < found['text']['alone']


def test_tokens_are_those_of_open_clip(exported):
    inferencer, folder, _ = exported('vop')
    encoder = OnnxTextEncoder(folder)
    captions = [
        *CAPTIONS,
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


def test_what_differs_from_torch_is_refused(exported):
    inferencer, folder, _ = exported('vop')
    tokens = inferencer.tokenizer(TEXTS[:2], context_length=69)
    wanted = inferencer.encode_texts(TEXTS[:2]).numpy()
    assert check(folder / 'text.onnx', tokens, wanted) < 1e-5
    wanted[1, 3] += 2e-4
    with pytest.raises(RuntimeError, match=r'text\.onnx differs from torch by 2\.0e-04'):
        check(folder / 'text.onnx', tokens, wanted)


def test_nothing_of_another_export_is_left(exported, tmp_path, monkeypatch):
    """Also if this one is cut off: a query would take it for a part of this one."""
    inferencer = exported('vop')[0]
    for name in ('text_int8.onnx', 'video.onnx.data', 'encoders.json'):
        (tmp_path / name).touch()

    def cut_off(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('projects.vop.apis.onnx_export._write', cut_off)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(inferencer, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_is_damaged_is_named(exported, tmp_path):
    folder = exported('vop')[1]
    with pytest.raises(UserError, match='no text encoder'):
        OnnxTextEncoder(folder / 'video.onnx')
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
