"""A trained model as two ONNX files, which run without torch."""

import inspect
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..clip_config import read_clip_config
from ..errors import UserError
from ..fileio import check_writable, name_full_disk, write_file
from .onnx_text import ABOUT, FORMAT, TEXT, TOKENIZER, VIDEO, clean_text, open_session

if TYPE_CHECKING:
    from .inferencer import VoPInferencer

TOLERANCE = 1e-4  # of a number of an embedding, by the length of the longest
# What tokenizers may read differently.
CAPTIONS = [
    'a man cleans a pool',
    "  The dog's  toy &amp; they've 12,345 BALLS!!! ",
    'naïve café — “quotes” … \u00a0 tabs\tand\nlines',
    'emoji 👩‍👩‍👧 \U0001f3f4 and 日本語 हिन्दी ไทย',
    "it's <end_of_text> I'LL <START_OF_TEXT> under_score #tag @x http://a.b/c?d=e",
    'Straße İstanbul ΟΔΟΣ ﬁne ½ ² Ⅷ',
    'schÃ¶n &lt;b&gt; &amp;lt; x',
    'supercalifragilisticexpialidocious ' * 30,
    'one two three ' * 60,
]


class _Video(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        data = self.model.data_preprocessor(dict(inputs=dict(imgs=frames)))
        return self.model.encode_video(data['inputs']['imgs'])


class _Text(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        text = self.model.text
        if text.is_causal:  # of which the tokenizer makes no more than fits
            end = text.find_end(tokens)
        else:
            tokens, end = text.fit(tokens)
        return F.normalize(text.encode(tokens, end), dim=-1)


def export_onnx(
    inferencer: 'VoPInferencer', folder: str | Path, int8: bool = False
) -> dict[str, Any]:
    """Write the encoders of a model as ONNX files.

    Learned prompts, whose keys and values are the same for all inputs, are folded into constants.
    Each file is checked against torch.

    Args:
        inferencer (VoPInferencer): The model, on the CPU.
        folder (str | Path): Where to write ``video.onnx``, ``text.onnx``, ``tokenizer.json`` and
            ``encoders.json``, which says what they take.
        int8 (bool): Also write ``video_int8.onnx`` and ``text_int8.onnx``, whose weights are
            integers. Defaults to False.

    Returns:
        dict: What ``encoders.json`` says, with ``difference``, ``operations``, those of the CLIP
        ``alone`` and with ``int8`` the ``cosine`` of each encoder.

    Raises:
        UserError: If the folder cannot be written, or packages are missing.
        RuntimeError: If a file computes something else than the model.

    Example:
        >>> inferencer = VoPInferencer('configs/vop_msrvtt.py', 'vop.pth', device='cpu')
        >>> export_onnx(inferencer, 'exported/vop')['video']['difference']
        2.1e-07
    """
    _check_packages()
    folder, model = Path(folder), inferencer.model
    if model.logit_scale.device.type != 'cpu':
        raise UserError("A model is exported on the CPU: open it with device='cpu'.")
    names = [ABOUT, VIDEO, TEXT, TOKENIZER, *(_int8(name) for name in (VIDEO, TEXT) if int8)]
    for name in names:
        check_writable(folder / name)
    # Of an earlier export nothing may be left that is taken for a part of this one.
    for name in (ABOUT, VIDEO, TEXT, _int8(VIDEO), _int8(TEXT), TOKENIZER):
        for file in (folder / name, folder / f'{name}.data'):
            file.unlink(missing_ok=True)
    length, slots = model.text.fixed_length, model.text.slots
    frames = _frames_of(inferencer)
    size = list(model.visual.backbone.image_size)
    videos = _noise([3, frames, 3, *size])
    tokenizer, clean = make_tokenizer(inferencer)
    # The tokenizer of the model itself, which need not be one that works without torch.
    tokens = inferencer.tokenizer(CAPTIONS, context_length=length or slots)
    if tokenizer is not None:
        encoded = tokenizer.encode_batch([clean_text(text, clean) for text in CAPTIONS])
        if [each.ids for each in encoded] != tokens.tolist():
            tokenizer = None
    about: dict[str, Any] = dict(
        format=FORMAT,
        model_fingerprint=inferencer.model_fingerprint,
        clip=inferencer.towers.name,
        embedding=dict(name='embeddings', width=inferencer.towers.embed_dim),
        video=dict(
            input='frames',
            dtype='uint8',
            shape=['batch', frames, 3, *size],
            pixels='RGB, 0 to 255; mean and deviation are in the file',
            normalized=model.normalize_video,
        ),
        text=dict(
            input='tokens',
            dtype='int64',
            shape=['batch', length or 'length'],
            length=length,
            slots=slots,
            clean=clean,
            tokenizer=tokenizer and TOKENIZER,
            normalized=True,
        ),
    )
    found = dict(about, video={**about['video']}, text={**about['text']})
    # The ends of the range would be cases of their own to torch, which to the file they are not.
    dynamic = {1: torch.export.Dim('length', min=3, max=slots - 1)} if length is None else {}
    with name_full_disk(folder), torch.inference_mode(False), torch.no_grad():
        for kind, module, example, dims, alone in (
            ('video', _Video(model), videos, {}, model.visual.backbone),
            ('text', _Text(model), tokens, dynamic, model.text.backbone),
        ):
            path = folder / f'{kind}.onnx'
            wanted = module.eval()(example).numpy()
            short = example[:2, : min(8, slots - 1) if dims else None]
            _write(module, short, about[kind]['input'], dims, path)
            found[kind]['difference'] = check(path, example, wanted)
            found[kind]['operations'] = count_operations(path, example[:1].numpy())
            whole = example[:1].flatten(0, 1).float() if kind == 'video' else _whole(inferencer)
            found[kind]['alone'] = _count_alone(alone, whole)
            if int8:
                found[kind]['cosine'] = _quantize(path, example.numpy(), wanted)
        if tokenizer is not None:
            write_file(folder / TOKENIZER, tokenizer.to_str())
        write_file(folder / ABOUT, json.dumps(about, indent=1))  # last: it is whole
    return found


def make_tokenizer(inferencer: 'VoPInferencer') -> tuple[Any, str]:
    """Make a tokenizer of the package ``tokenizers`` that does as the model's own.

    Args:
        inferencer (VoPInferencer): The model.

    Returns:
        tuple: The ``tokenizers.Tokenizer``, which cuts and pads as the text encoder takes it, and
        how :func:`.clean_text` cleans a text before. None where the model's has another form.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

    ours: Any = inferencer.tokenizer
    text = read_clip_config(**inferencer.towers.tokenizer).model['text_cfg']
    is_simple = isinstance(ours, SimpleTokenizer)
    clean = (text.get('tokenizer_kwargs') or {}).get(
        'clean', 'lower' if is_simple else 'whitespace'
    )
    encoder = inferencer.model.text
    length, slots = encoder.fixed_length, encoder.slots
    if is_simple:
        bpe = models.BPE(ours.encoder, [*ours.bpe_ranks], end_of_word_suffix='</w>')
        made = tokenizers.Tokenizer(bpe)
        steps = [normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' ')]
        lower = [] if clean == 'whitespace' else [normalizers.Lowercase()]
        made.normalizer = normalizers.Sequence([*steps, *lower])
        words = pre_tokenizers.Split(Regex(f'(?i){ours.pat.pattern}'), 'removed', invert=True)
        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
        made.decoder = decoders.ByteLevel()
        start, end = (ours.decoder[each] for each in (ours.sot_token_id, ours.eot_token_id))
        made.add_special_tokens([start, end])
        made.post_processor = processors.TemplateProcessing(
            single=f'{start} $A {end}',
            special_tokens=[(start, ours.sot_token_id), (end, ours.eot_token_id)],
        )
        pad = 0
    else:
        theirs = getattr(getattr(ours, 'tokenizer', None), 'backend_tokenizer', None)
        if theirs is None:
            return None, clean
        made, pad = tokenizers.Tokenizer.from_str(theirs.to_str()), ours.tokenizer.pad_token_id
    made.enable_truncation(length or slots)
    made.enable_padding(pad_id=pad, pad_token=made.id_to_token(pad), length=length)
    return made, clean


def count_operations(path: Path, example: np.ndarray) -> int:
    """Count what the matrix products of an ONNX file compute, from its nodes as they run.

    Args:
        path (Path): The file.
        example (np.ndarray): Its input.

    Returns:
        int: Operations, each a multiplication with an addition.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = f'{folder}/nodes'
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        session.run(None, {session.get_inputs()[0].name: example})
        events = json.loads(Path(session.end_profiling()).read_text())
    count = 0
    for event in events:
        if event['cat'] != 'Node' or 'input_type_shape' not in event['args']:
            continue
        kind = event['args']['op_name']
        first, second, *more = (
            [*each.values()][0] for each in [*event['args']['input_type_shape'], {'': []}, {'': []}]
        )
        out = [[*each.values()][0] for each in event['args']['output_type_shape']][0]
        if kind == 'MatMul':
            count += prod(out) * first[-1]
        elif kind == 'Gemm':
            count += prod(first) * out[1]
        elif kind == 'Conv':
            count += prod(out) * prod(second[1:])
        elif kind == 'LSTM':  # of weights of the input, and of the state
            count += prod(first[:2]) * (prod(second) + prod(more[0]))
    return count


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"To export a model needs {error.name}: pip install 'mmaction2-vop[onnx]'."
        ) from error
    if 'dynamic_shapes' not in inspect.signature(torch.onnx.export).parameters:
        raise UserError(f'To export a model needs a newer torch than {torch.__version__}.')


def _int8(name: str) -> str:
    return name.replace('.onnx', '_int8.onnx')


def _noise(shape: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _frames_of(inferencer: 'VoPInferencer') -> int:
    """Frames of a video as the test pipeline gives them."""
    steps = inferencer.cfg.test_dataloader.dataset.pipeline
    for step in steps:
        if 'clip_len' in step:  # of UniformSample and SampleFrames; all clips are one video here
            return step['clip_len'] * step.get('num_clips', 1)
    return inferencer.model.visual.num_frames


def _whole(inferencer: 'VoPInferencer') -> Tensor:
    """A text as the CLIP alone takes it."""
    length = inferencer.model.text.backbone.context_length
    return inferencer.tokenizer(CAPTIONS[-1:], context_length=length)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporters say of their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


def _write(module: nn.Module, example: Tensor, name: str, dims: dict[int, Any], path: Path) -> None:
    """Export a module, and let onnxruntime fold what depends on no input."""
    import onnxruntime as ort

    shapes = ({0: torch.export.Dim('batch'), **dims},)
    with _quiet(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        traced = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            traced, dynamo=True, input_names=[name], output_names=['embeddings'], verbose=False
        )
        assert program is not None
        raw = Path(folder, 'raw.onnx')
        program.save(raw)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # The next level would use operators of onnxruntime's own.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        if raw.with_name('raw.onnx.data').is_file():  # above 1.6 GB, as one file has 2 at most
            key = 'session.optimized_model_external_initializers_file_name'
            options.add_session_config_entry(key, f'{path.name}.data')
        ort.InferenceSession(raw, options, providers=['CPUExecutionProvider'])


def check(path: Path, example: Tensor, wanted: np.ndarray) -> float:
    """Compare a file with torch.

    Args:
        path (Path): The file.
        example (Tensor): What it is given, also the first of it alone.
        wanted (np.ndarray): What torch gives.

    Returns:
        float: The largest difference, by the length of the longest embedding.

    Raises:
        RuntimeError: If it is above ``TOLERANCE``.
    """
    session = open_session(path)
    largest = 0.0
    for part in (slice(None), slice(1)):
        (given,) = session.run(None, {session.get_inputs()[0].name: example[part].numpy()})
        largest = max(largest, float(np.abs(given - wanted[part]).max()))
    largest /= float(np.linalg.norm(wanted, axis=-1).max())
    if not largest <= TOLERANCE:
        raise RuntimeError(f'{path} differs from torch by {largest:.1e}, above {TOLERANCE}.')
    return largest


def _count_alone(tower: nn.Module, example: Tensor) -> int:
    """Operations of a tower as open_clip runs it; nothing counts those of fused kernels."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            tower(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops() // 2


def _quantize(path: Path, example: np.ndarray, wanted: np.ndarray) -> float:
    """Write a file with integer weights; return the least cosine with what torch gives."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name(_int8(path.name))
    with _quiet():
        quantize_dynamic(
            path,
            target,
            op_types_to_quantize=['MatMul', 'Gemm', 'Gather', 'LSTM'],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=path.with_name(f'{path.name}.data').is_file(),
        )
    session = open_session(target)
    (given,) = session.run(None, {session.get_inputs()[0].name: example})
    norms = np.linalg.norm(given, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((given * wanted).sum(1) / norms).min())
