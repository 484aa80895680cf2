"""Opening checkpoint files without running code from them."""

import hashlib
import os.path as osp
from typing import Any

import safetensors.torch
import torch
from mmengine.model import is_model_wrapper
from mmengine.registry import STRATEGIES
from torch import Tensor, nn

from ..errors import UserError
from ..fileio import PRETRAINED_WEIGHTS, check_zip, code_in, is_safetensors


def load_safely(filename: str, map_location: Any = None) -> dict:
    """Load a local checkpoint file: tensors and plain data, never code.

    MMEngine's own loading goes through it, too (see ``compat.py``).

    Args:
        filename (str): Path of a file of torch or safetensors, or of a folder of
            :meth:`.VoPInferencer.save_pretrained`.
        map_location (Any): As in ``torch.load``; for safetensors, the name of a device.

    Returns:
        dict: The checkpoint; of safetensors, the state dict.

    Raises:
        UserError: If there is no such file, if it cannot be read, if it is
            damaged or not a checkpoint, or if it holds more than data.

    Example:
        >>> load_safely('work_dirs/vop_msrvtt/epoch_5.pth', map_location='cpu').keys()
        dict_keys(['meta', 'state_dict', ...])
    """
    filename = osp.expanduser(filename)
    if osp.isdir(filename):
        filename = osp.join(filename, PRETRAINED_WEIGHTS)
    if not osp.isfile(filename):
        raise UserError(f'There is no checkpoint {filename}.')
    of_torch = True
    try:
        if is_safetensors(filename):
            of_torch = False
            return _load_safetensors(filename, str(map_location or 'cpu'))
        check_zip(filename)
        return torch.load(filename, map_location=map_location, weights_only=True)
    except OSError as error:
        raise UserError(f'{filename} cannot be read: {error.strerror}.') from error
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if of_torch and _opens_in_place(filename):  # memory was short
            raise
        reason = code_in(filename) or 'it is damaged, or not a checkpoint'
        # torch advises to load the file unsafely: its message is not passed on.
        raise UserError(
            f'{filename} is not a checkpoint that can be opened safely: {reason}.'
        ) from error


def to_safetensors(state: dict[str, Tensor]) -> bytes:
    """Make a file of safetensors of a state dict, with the checksum that the format lacks.

    Args:
        state (dict[str, Tensor]): The tensors; which may be on a GPU.

    Returns:
        bytes: What :func:`load_safely` reads, and compares with the checksum.

    Example:
        >>> Path('prompts.safetensors').write_bytes(to_safetensors(model.state_dict()))
    """
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    return safetensors.torch.save(state, dict(blake2b=_checksum(state)))


def _load_safetensors(filename: str, device: str) -> dict[str, Tensor]:
    with safetensors.safe_open(filename, 'pt') as file:
        wanted = (file.metadata() or {}).get('blake2b')
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if wanted not in (None, _checksum(state)):
        raise ValueError('its checksum is another')
    return {name: value.to(device) for name, value in state.items()}


def _checksum(state: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        digest.update(f'{name}{value.dtype}{tuple(value.shape)}'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _opens_in_place(filename: str) -> bool:
    """Whether a file of torch can be opened without memory for what it holds: it is whole."""
    try:
        check_zip(filename)
        torch.load(filename, map_location='cpu', weights_only=True, mmap=True)
    except Exception:
        return False
    return True


def unwrap(model: Any) -> Any:
    """The model in a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def is_whole(runner: Any) -> bool:
    """Whether each process holds the whole model, as FSDP's and DeepSpeed's do not."""
    whole = [STRATEGIES.get(name) for name in ('SingleDeviceStrategy', 'DDPStrategy')]
    return 'runner_type' not in runner.cfg or type(runner.strategy) in whole


def tensors_of(checkpoint: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in the model, whatever wrapper saved them.

    Args:
        checkpoint (Any): What a file holds: a state dict, or a dict with a ``state_dict``.

    Returns:
        dict[str, Tensor]: Empty if it holds none.

    Example:
        >>> tensors_of(dict(epoch=3, state_dict={'module.weight': torch.zeros(2)}))
        {'weight': tensor([0., 0.])}
    """
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    # MMEngine's DDPStrategy saves the names of its wrapper, and its loading takes them away again.
    return {
        name.removeprefix('module.'): value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _shapes(tensors: dict[str, Tensor]) -> dict:
    # What identifies the CLIP is compared when the state is loaded.
    return {
        name: tuple(value.shape)
        for name, value in tensors.items()
        if not name.endswith('_extra_state')
    }


def check_state(model: nn.Module, checkpoint: Any, filename: str) -> None:
    """Refuse a checkpoint that does not hold just what a model has.

    MMEngine loads what fits and logs the rest: a test with the wrong config
    would run with prompts that were never trained.

    Args:
        model (nn.Module): The model, or its distributed wrapper.
        checkpoint (Any): What the file holds.
        filename (str): The file that it is from, for messages.

    Raises:
        UserError: If weights are missing, unknown or of another shape; the
            message names them.

    Example:
        >>> path = 'work_dirs/vop_msrvtt/epoch_5.pth'
        >>> check_state(runner.model, load_safely(path, 'cpu'), path)
    """
    tensors = tensors_of(checkpoint)
    if not tensors:
        raise UserError(f'{filename} holds no state dict: name a checkpoint of a model.')
    theirs, ours = _shapes(tensors), _shapes(unwrap(model).state_dict())
    faults = [
        f'{what} {", ".join(sorted(names)[:4])}{", ..." if len(names) > 4 else ""}'
        for what, names in (
            ('it lacks', ours.keys() - theirs.keys()),
            ('the model has no', theirs.keys() - ours.keys()),
            (
                'of another shape are',
                {k for k in ours.keys() & theirs.keys() if ours[k] != theirs[k]},
            ),
        )
        if names
    ]
    if faults:
        raise UserError(
            f'{filename} does not fit the config: '
            f'{"; ".join(faults)}. Was it trained with another '
            'one?'
        )
