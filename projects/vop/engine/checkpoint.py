"""Opening checkpoint files without running code from them."""

import os.path as osp
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import nn

from ..errors import UserError
from ..fileio import unsafe_globals


def load_safely(filename: str, map_location: Any = None) -> dict:
    """Load a local checkpoint file: tensors and plain data, never code.

    MMEngine's own loading goes through it, too (see ``compat.py``).

    Args:
        filename (str): Path of the file.
        map_location (Any): As in ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        UserError: If there is no such file, if it is not a checkpoint, or if
            it holds more than data.

    Example:
        >>> load_safely('work_dirs/vop_msrvtt/epoch_5.pth', map_location='cpu').keys()
        dict_keys(['meta', 'state_dict', ...])
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise UserError(f'There is no checkpoint {filename}.')
    try:
        return torch.load(filename, map_location=map_location, weights_only=True)
    except PermissionError as error:
        raise UserError(f'{filename} cannot be read: {error.strerror}.') from error
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        code = ', '.join(unsafe_globals(filename))
        reason = (
            f'it would call {code}, and only tensors and plain data are loaded'
            if code
            else 'it is damaged, or not a checkpoint of torch'
        )
        # torch advises to load the file unsafely: its message is not passed on.
        raise UserError(
            f'{filename} is not a checkpoint that can be opened safely: {reason}.'
        ) from error


def _shapes(state_dict: dict) -> dict:
    # What identifies the CLIP is compared when the state is loaded. MMEngine's DDPStrategy
    # saves the names of its wrapper, and its loading takes them away again.
    return {
        name.removeprefix('module.'): tuple(value.shape)
        for name, value in state_dict.items()
        if not name.endswith('_extra_state')
    }


def check_fit(model: nn.Module, filename: str) -> None:
    """Refuse a checkpoint that does not hold just what a model has.

    MMEngine loads what fits and logs the rest: a test with the wrong config
    would run with prompts that were never trained.

    Args:
        model (nn.Module): The model, or its distributed wrapper.
        filename (str): Path of the checkpoint.

    Raises:
        UserError: If weights are missing, unknown or of another shape; the
            message names them.

    Example:
        >>> check_fit(runner.model, 'work_dirs/vop_msrvtt/epoch_5.pth')
    """
    check_state(model, load_safely(filename, map_location='cpu'), filename)


def check_state(model: nn.Module, checkpoint: Any, filename: str) -> None:
    """Refuse a checkpoint that is loaded, as :func:`check_fit` does.

    Args:
        model (nn.Module): The model, or its distributed wrapper.
        checkpoint (Any): What the file holds.
        filename (str): The file that it is from.

    Raises:
        UserError: If weights are missing, unknown or of another shape.
    """
    if not isinstance(checkpoint, dict):
        raise UserError(f'{filename} holds no state dict but a {type(checkpoint).__name__}.')
    if is_model_wrapper(model):
        model = model.get_submodule('module')
    theirs = _shapes(checkpoint.get('state_dict', checkpoint))
    ours = _shapes(model.state_dict())
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
