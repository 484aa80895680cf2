"""Repairs that MMAction2 1.2 and MMEngine 0.10 need today.

Each repair says what is broken, looks whether it still is, and does nothing
where it is not. :func:`apply` runs before anything of MMAction2 is imported.
"""
import importlib.util
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.utils import apply_to

# Logs are smoothed over some 20 steps; keeping all would make a checkpoint of
# half a megabyte grow by megabytes in a long training. An average over the
# whole run (window_size='global') covers so many steps after a resumption.
HISTORY_KEPT = 1000


def apply() -> None:
    """Apply every repair that this installation needs."""
    supply_missing_drn()
    keep_message_hub_plain()


def supply_missing_drn() -> None:
    """Let ``mmaction.models`` be imported from the MMAction2 1.2.0 wheel.

    The wheel lacks the folder ``mmaction/models/localizers/drn`` but imports
    it (open-mmlab/mmaction2 issue 2714), so nothing in ``mmaction.models``
    can be imported. A stand-in class takes DRN's name; building a DRN from it
    says what is missing. A checkout or a later wheel that has the folder is
    left alone.
    """
    name = 'mmaction.models.localizers.drn'
    spec = importlib.util.find_spec('mmaction')
    if spec is None or name in sys.modules:
        return
    for root in spec.submodule_search_locations:
        if (Path(root) / 'models' / 'localizers' / 'drn').is_dir():
            return

    class DRN:
        """Says that this MMAction2 has no DRN."""

        def __init__(self, *args, **kwargs) -> None:
            raise RuntimeError(
                'DRN is missing from the MMAction2 1.2.0 wheel; install '
                'MMAction2 from source to use it.')

    package, module = ModuleType(name), ModuleType(f'{name}.drn')
    package.__path__ = []
    package.drn, module.DRN = module, DRN
    sys.modules[name], sys.modules[f'{name}.drn'] = package, module


def keep_message_hub_plain() -> None:
    """Make checkpoints of MMEngine loadable with ``weights_only=True``.

    MMEngine saves the histories of its message hub as ``HistoryBuffer``
    objects, and the time left as a NumPy number. Their pickles call
    functions that a safe unpickler refuses, so since torch 2.6, whose
    ``torch.load`` is safe by default, ``--resume`` and ``tools/test.py``
    cannot open what training wrote. NumPy's numbers become Python's. A
    history is two lists of numbers: the last ``HISTORY_KEPT`` of them are
    saved as such, and made into a buffer again when they are loaded.
    """
    if getattr(MessageHub, '_vop_plain_state', False):
        return
    state_dict, load_state_dict = (MessageHub.state_dict,
                                   MessageHub.load_state_dict)

    def plain_state_dict(self) -> dict:
        state = state_dict(self)
        state['log_scalars'] = OrderedDict(
            (key, [values[-HISTORY_KEPT:].tolist() for values in buffer.data])
            for key, buffer in state['log_scalars'].items())
        state['runtime_info'] = apply_to(
            state['runtime_info'],
            lambda value: isinstance(value, (np.generic, np.ndarray)),
            lambda value: value.tolist())
        return state

    def load_plain_state_dict(self, state) -> None:
        if isinstance(state, dict) and 'log_scalars' in state:
            state = dict(state)
            state['log_scalars'] = OrderedDict(
                (key, HistoryBuffer(*value) if isinstance(value, list)
                 else value)
                for key, value in state['log_scalars'].items())
        load_state_dict(self, state)

    MessageHub.state_dict = plain_state_dict
    MessageHub.load_state_dict = load_plain_state_dict
    MessageHub._vop_plain_state = True
