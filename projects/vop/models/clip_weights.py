"""Reading the weights of a CLIP, in the formats of several makers."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError
from ..fileio import check_zip, code_in, is_safetensors

# In a state dict, next to its weights, OpenAI's models alone have these.
OPENAI_INTEGERS = {'input_resolution', 'context_length', 'vocab_size'}
# The end of a name that each CLIP has once, by open_clip, transformers and timm.
MARKS = (
    'visual.conv1.weight',
    'vision_model.embeddings.patch_embedding.weight',
    'visual.trunk.pos_embed',
)
# The text tower's names begin so where it is no module of its own.
TEXT = 'text_projection', 'positional_embedding', 'token_embedding', 'transformer', 'ln_final'
# What a file is that has such names, and what to do with it.
STRANGERS = {
    '_extra_state': 'it is a checkpoint of this project, which goes on top of a CLIP: give it to '
    'tools/test.py or --resume',
    'visual_prompt_learner.': "it is ModelScope's VoP: tools/convert_modelscope.py --clip-out "
    'writes its CLIP',
    'visual.attnpool.': 'its image tower is a ResNet',
    'visual.trunk.': "its image tower is timm's",
    'vision_model.head.': "it is transformers' SigLIP: take open_clip's weights of it",
    'text_decoder.': 'it is a CoCa',
}


class ClipWeights(NamedTuple):
    """The weights of a CLIP.

    Attributes:
        state (dict[str, Tensor]): By the names of ``open_clip.CustomTextCLIP``,
            in float32.
        openai (bool): Whether it is a model of OpenAI's, which were all
            trained with QuickGELU; if not, the file does not tell the
            activation.

    Example:
        >>> read_weights('ViT-B-32.pt', clip.state_dict(), 'ViT-B-32').openai
        True
    """

    state: dict[str, Tensor]
    openai: bool


def read_weights(path: str, wanted: dict[str, Tensor], name: str) -> ClipWeights:
    """Read a file of weights, if it holds just those of a CLIP.

    It may be OpenAI's JIT archive, or a file of torch or safetensors with a
    state dict of open_clip, OpenAI or transformers (``CLIPModel``), which may
    be an entry of a training checkpoint. What stands in front of all names,
    such as ``module.`` or ``clip.``, is taken off.

    Args:
        path (str): The file.
        wanted (dict[str, Tensor]): The state of the CLIP, of which names and
            shapes are read.
        name (str): What the CLIP is called in messages.

    Returns:
        ClipWeights: A value for each name of ``wanted``, of its shape.

    Raises:
        UserError: If the file cannot be read, or does not hold, beyond
            doubt, the weights of this CLIP; the message says what it is.

    Example:
        >>> clip.load_state_dict(read_weights('clip.pt', clip.state_dict(), 'ViT-B-32').state)
    """
    try:
        content = _open(Path(path))
        states = [_rename(state) for state in _states(content)]
        faults = [_fault(weights.state, wanted, name) for weights in states]
        fitting = [weights for weights, fault in zip(states, faults) if fault is None]
        if len(fitting) > 1:
            raise _Unfit('it holds several such models: save the one that you mean alone')
        if not fitting:
            raise _Unfit(_describe(content, states, faults, wanted))
        [weights] = fitting
        for key, value in weights.state.items():
            if wanted[key].is_floating_point():
                value = weights.state[key] = value.float()
            if not value.isfinite().all():
                raise _Unfit(f'{key} is not finite, as after training that diverged')
    except _Unfit as fault:
        raise UserError(f'{path} does not hold weights of {name}: {fault}.') from fault
    return weights


class _Unfit(Exception):
    """Why a file does not serve."""


def _open(path: Path) -> Any:
    """Open a file of torch or safetensors: tensors and plain data, never code."""
    try:
        with path.open('rb') as file:
            head = file.read(200)
        if is_safetensors(path):
            return safetensors.torch.load_file(path)
        check_zip(path)
        if is_jit_archive(path):
            return torch.jit.load(path, map_location='cpu').state_dict()
        return torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise _Unfit(f'it cannot be read ({error.strerror or "damaged"})') from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        # torch advises to load the file unsafely: its message is not passed on.
        raise _Unfit(_what_is(path, head)) from error


def is_jit_archive(path: Path) -> bool:
    """Whether a file is TorchScript, as OpenAI's are.

    Example:
        >>> is_jit_archive(Path('ViT-B-32.pt'))
        True
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(item.endswith('/constants.pkl') for item in archive.namelist())


def _what_is(path: Path, head: bytes) -> str:
    """Say what a file is that cannot be opened."""
    if not head:
        return 'it is empty'
    if head.startswith(b'version https://git-lfs'):
        return 'it is a pointer of Git LFS in place of the file: `git lfs pull` gets that'
    if head.lstrip().startswith(b'<'):
        return 'it is a web page: download the file itself'
    if code := code_in(str(path)):
        return f'{code}. Save its state dict alone'
    if head.isascii() and ' '.join(head.decode().split()).isprintable():
        return 'it is a text'
    return 'it is cut off, damaged, or no file of torch or safetensors'


def _states(content: Any, depth: int = 3) -> Iterator[dict]:
    """All state dicts in a checkpoint: dicts with names of tensors, at any place."""
    if not isinstance(content, dict) or not depth:
        return
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str)
        and (isinstance(value, Tensor) or key.rpartition('.')[2] in OPENAI_INTEGERS)
    }
    if any(isinstance(value, Tensor) for value in state.values()):
        yield state
    for value in content.values():
        yield from _states(value, depth - 1)


def _prefixes(state: dict) -> list[str]:
    """What stands in front of the names of each CLIP in a state dict."""
    ends = [(key, mark) for key in state for mark in MARKS if f'.{key}'.endswith(f'.{mark}')]
    return [key.removesuffix(mark) for key, mark in ends]


def _rename(state: dict) -> ClipWeights:
    """Give a state dict the names of ``open_clip.CustomTextCLIP``, where it is a CLIP's."""
    prefixes = _prefixes(state)
    if len(prefixes) == 1:
        [prefix] = prefixes
        short = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(short) == len(state):  # no name stands with and without it
            state = short
    openai = OPENAI_INTEGERS <= state.keys()
    unused = OPENAI_INTEGERS | {'logit_bias'}  # the bias is of SigLIP's loss
    state = {
        key: value
        for key, value in state.items()
        if key not in unused and not key.endswith('embeddings.position_ids')
    }
    if MARKS[1] in state:
        state = _from_transformers(state)
    if 'positional_embedding' in state:
        state = {f'text.{k}' if k.startswith(TEXT) else k: v for k, v in state.items()}
    scale = state.get('logit_scale')
    if scale is not None and scale.numel() == 1:
        state['logit_scale'] = scale.reshape(())
    return ClipWeights(state, openai)


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' ``CLIPModel``."""
    names = {
        'vision_model.embeddings.class_embedding': 'visual.class_embedding',
        'vision_model.embeddings.patch_embedding.': 'visual.conv1.',
        'vision_model.embeddings.position_embedding.weight': 'visual.positional_embedding',
        'vision_model.pre_layrnorm.': 'visual.ln_pre.',
        'vision_model.post_layernorm.': 'visual.ln_post.',
        'vision_model.encoder.layers.': 'visual.transformer.resblocks.',
        'text_model.embeddings.token_embedding.': 'text.token_embedding.',
        'text_model.embeddings.position_embedding.weight': 'text.positional_embedding',
        'text_model.final_layer_norm.': 'text.ln_final.',
        'text_model.encoder.layers.': 'text.transformer.resblocks.',
        '.self_attn.out_proj.': '.attn.out_proj.',
        '.layer_norm1.': '.ln_1.',
        '.layer_norm2.': '.ln_2.',
        '.mlp.fc1.': '.mlp.c_fc.',
        '.mlp.fc2.': '.mlp.c_proj.',
    }
    if any(key.startswith(('visual.', 'text.')) for key in state):
        return state  # of both makers
    renamed = {}
    for key, value in state.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        renamed[key] = value
    for theirs, ours in (
        ('visual_projection.weight', 'visual.proj'),
        ('text_projection.weight', 'text.text_projection'),
    ):
        if theirs in renamed:
            renamed[ours] = renamed.pop(theirs).T
    for key in [key for key in renamed if '.self_attn.q_proj.' in key]:
        block, _, kind = key.partition('.self_attn.q_proj.')
        parts = [f'{block}.self_attn.{part}_proj.{kind}' for part in 'qkv']
        if all(part in renamed for part in parts):
            renamed[f'{block}.attn.in_proj_{kind}'] = torch.cat([renamed.pop(p) for p in parts])
    return renamed


def _fault(state: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> str | None:
    """Say in what a state differs from what is wanted, if it does."""
    for key, value in wanted.items():
        if key in state and state[key].shape != value.shape:
            return f'{key} is {list(state[key].shape)} in it, and {list(value.shape)} in {name}'
    lacks, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    for what, keys in (('it lacks', lacks), ('it also has', extra)):
        if keys:
            more = f' and {len(keys) - 2} more' if len(keys) > 2 else ''
            return f'{what} {", ".join(sorted(keys)[:2])}{more}'
    for key, value in state.items():
        is_number = value.is_floating_point() or not wanted[key].is_floating_point()
        if not is_number or value.is_meta or value.layout != torch.strided:
            return f'{key} is no plain tensor of floating point'
    return None


def _describe(
    content: Any, states: list[ClipWeights], faults: list[str | None], wanted: dict[str, Tensor]
) -> str:
    """Say what a file is that holds no such CLIP."""
    if not states:
        kind = f'entries {", ".join(map(str, content))}' if isinstance(content, dict) else ''
        return f'it holds no tensors, but {kind[:80] or type(content).__name__}'
    state, fault = max(
        ((weights.state, fault) for weights, fault in zip(states, faults)),
        key=lambda pair: len(pair[0].keys() & wanted.keys()),
    )
    for part, what in STRANGERS.items():
        if any(part in key for key in state) and not any(part in key for key in wanted):
            return what
    if len(_prefixes(state)) > 1:
        several = ', '.join(f"'{prefix}'" for prefix in sorted(_prefixes(state)))
        return f'it holds several CLIPs, by {several[:80]}: save the one that you mean alone'
    if state.keys() & wanted.keys():
        return str(fault)
    names = ', '.join(list(state)[:2])[:100]
    return f'its {len(state)} tensors ({names}, ...) do not have the names of a CLIP'
