"""Opening checkpoint files without running code from them."""

import os.path as osp
import re
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import nn


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_safely(filename: str, map_location: Any = None) -> dict:
    """Load a local checkpoint file, in place of MMEngine's own loader.

    MMEngine leaves ``weights_only`` to torch, whose default before 2.6 runs
    whatever code a pickle holds.

    Args:
        filename (str): Path of the file.
        map_location (Any): As in ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or holds more than data.
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'There is no checkpoint {filename}.')
    try:
        return torch.load(filename, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        # torch wraps the reason into advice to load the file unsafely.
        reason = re.search(r'nsupported (?:global: GLOBAL|GLOBAL|class) (\S+)', str(error))
        raise ValueError(
            f'{filename} is not a checkpoint that can be opened safely: '
            + (
                f'it would call {reason[1]}, and only tensors and plain data are loaded.'
                if reason
                else 'it is damaged, or no checkpoint of torch.'
            )
        ) from error


# MMEngine logs which backend loads a file, by the name behind 'load_from_'.
load_safely.__name__ = 'load_from_local'


def _shapes(state_dict: dict) -> dict:
    # What identifies the CLIP is compared when the state is loaded.
    return {
        name: tuple(value.shape)
        for name, value in state_dict.items()
        if not name.endswith('_extra_state')
    }


def check_fit(model: nn.Module, filename: str) -> None:
    """Refuse a checkpoint that does not hold just what a model has.

    MMEngine loads what fits and logs the rest: a test with the wrong config
    would go on with prompts that were never trained.

    Args:
        model (nn.Module): The model, or its distributed wrapper.
        filename (str): Path of the checkpoint.

    Raises:
        ValueError: If weights are missing, unknown or of another shape; the
            message names them.
    """
    if is_model_wrapper(model):
        model = model.module
    checkpoint = load_safely(filename, map_location='cpu')
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{filename} holds no state dict but a {type(checkpoint).__name__}.')
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
        raise ValueError(
            f'{filename} does not fit the config: '
            f'{"; ".join(faults)}. Was it trained with another '
            'one?'
        )
