"""Every change to a host package, and every use of what it does not publish.

Each repair says what is broken, looks whether it still is, and does nothing
where it is not. :func:`apply` runs before anything of MMAction2 is imported. What
it does not import itself, such as runners, is repaired when it is imported.
"""

import importlib.util
import inspect
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine import utils
from mmengine.config import config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import LocalBackend, file_client
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger, logger
from mmengine.utils import ManagerMixin, package_utils

from .errors import UserError
from .fileio import write_file

if TYPE_CHECKING:
    from torch import nn

# Logs are smoothed over some 20 steps; keeping all would make a checkpoint of
# half a megabyte grow by megabytes in a long training. An average over the
# whole run (window_size='global') covers so many steps after a resumption.
HISTORY_KEPT = 1000


def apply() -> None:
    """Apply every repair that this installation needs."""
    supply_missing_drn()
    leave_out_broken_vindlu()
    find_packages_without_pkg_resources()
    keep_message_hub_plain()
    when_imported('mmengine.runner.checkpoint', open_checkpoints_safely)
    when_imported('mmengine.dataset.base_dataset', copy_datasets_afresh)
    write_files_whole()
    silence_warnings_without_a_fault()
    log_without_torch()


def when_imported(name: str, repair: Callable[[ModuleType], None]) -> None:
    """Repair a module as soon as it is imported, or now if it is."""
    if name in sys.modules:
        repair(sys.modules[name])
        return

    def load(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        execute(module)
        repair(module)

    load_by(name, load)


def load_by(name: str, load: Callable[[Callable[[ModuleType], None], ModuleType], None]) -> None:
    """Let ``load(execute, module)`` run the code of a module when it is imported."""
    if not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, load))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, load: Callable) -> None:
        self.name, self.load = name, load

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            vars(spec.loader).update(exec_module=partial(self.load, spec.loader.exec_module))
        return spec


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
    for root in spec.submodule_search_locations or ():
        if (Path(root) / 'models' / 'localizers' / 'drn').is_dir():
            return

    class DRN:
        """Says that this MMAction2 has no DRN."""

        def __init__(self, *args, **kwargs) -> None:
            raise RuntimeError(
                'DRN is missing from the MMAction2 1.2.0 wheel; install '
                'MMAction2 from source to use it.'
            )

    package, module = ModuleType(name), ModuleType(f'{name}.drn')
    vars(package).update(__path__=[], drn=module)
    vars(module).update(DRN=DRN)
    sys.modules[name], sys.modules[f'{name}.drn'] = package, module


def leave_out_broken_vindlu() -> None:
    """Let ``mmaction.models`` be imported with a transformers that VindLU cannot use.

    MMAction2 1.2.0 imports VindLU where transformers is installed, and VindLU
    needs names that transformers 4.56 removed: nothing in ``mmaction.models``
    could be imported, nor with a transformers that is itself damaged. Where
    the import fails, building a VindLU says why. Where it does not, or without
    transformers, nothing changes.
    """
    load_by('mmaction.models.multimodal.vindlu', _try_vindlu)


def _try_vindlu(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        execute(module)
    except Exception as error:  # whatever a transformers raises
        from mmaction.registry import MODELS

        reason = f'{type(error).__name__}: {error}'

        def say_why(*args, **kwargs) -> None:
            raise ImportError(
                f'VindLU cannot be used with the transformers installed here ({reason}). '
                "pip install 'transformers<4.56' is what it was made for."
            )

        for name in ('VindLURetrieval', 'VindLURetrievalMC', 'VindLUVQA'):
            MODELS.register_module(name=name, module=say_why, force=True)


def find_packages_without_pkg_resources() -> None:
    """Let configs inherit from another package's, as in ``mmaction::...``.

    MMEngine looks for the package by means of ``pkg_resources``, which is no
    part of setuptools since its version 82. Python's own import system finds
    the same folder.
    """
    if importlib.util.find_spec('pkg_resources') is not None:
        return
    modules = {package: module for module, package in MODULE2PACKAGE.items()}

    def is_installed(package: str) -> bool:
        name = modules.get(package, package)
        return importlib.util.find_spec(name) is not None

    def get_installed_path(package: str) -> str:
        spec = importlib.util.find_spec(modules.get(package, package))
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f'{package} is not installed.')
        return spec.submodule_search_locations[0]

    hub = sys.modules.get('mmengine.hub.hub')  # which takes them from utils when it is imported
    for module in filter(None, (utils, package_utils, config, hub)):
        module.is_installed = is_installed
        module.get_installed_path = get_installed_path


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
    state_dict, load_state_dict = (MessageHub.state_dict, MessageHub.load_state_dict)

    def plain_state_dict(self) -> dict:
        state = state_dict(self)
        state['log_scalars'] = OrderedDict(
            (key, [values[-HISTORY_KEPT:].tolist() for values in buffer.data])
            for key, buffer in state['log_scalars'].items()
        )
        state['runtime_info'] = utils.apply_to(
            state['runtime_info'],
            lambda value: isinstance(value, (np.generic, np.ndarray)),
            lambda value: value.tolist(),
        )
        return state

    def load_plain_state_dict(self, state) -> None:
        if isinstance(state, dict) and 'log_scalars' in state:
            state = dict(state)
            state['log_scalars'] = OrderedDict(
                (key, HistoryBuffer(*value) if isinstance(value, list) else value)
                for key, value in state['log_scalars'].items()
            )
        load_state_dict(self, state)

    MessageHub.state_dict = plain_state_dict
    MessageHub.load_state_dict = load_plain_state_dict
    MessageHub._vop_plain_state = True


def open_checkpoints_safely(checkpoint: Any) -> None:
    """Let MMEngine open checkpoints without running code from them.

    MMEngine leaves ``weights_only`` to torch, whose default before 2.6 runs
    whatever code a pickle holds, and torch's own message advises to do that.
    The default for downloads still does, by which MMEngine opens addresses of
    the web, torchvision and OpenMMLab.
    """

    def load_from_local(filename: str, map_location: Any = None) -> dict:
        from .engine.checkpoint import load_safely

        return load_safely(filename, map_location)

    # MMEngine logs the part of the function's name after 'load_from_'.
    checkpoint.CheckpointLoader.register_scheme('', load_from_local, force=True)

    load_url = checkpoint.load_url
    if inspect.signature(load_url).parameters['weights_only'].default is True:
        return

    def load_url_safely(url: str, *args, weights_only: bool = True, **kwargs) -> dict:
        try:
            return load_url(url, *args, weights_only=True, **kwargs)
        except pickle.UnpicklingError as error:
            # torch advises to load the file unsafely: its message is not passed on.
            raise UserError(
                f'{url} is not a checkpoint that can be opened safely: only tensors and plain '
                'data are loaded.'
            ) from error

    checkpoint.load_url = load_url_safely


def write_files_whole() -> None:
    """Let MMEngine write checkpoints, and what else is no text, whole or not at all.

    It writes in place, and a checkpoint twice where the best one improves: a
    run that is killed meanwhile leaves half a checkpoint in place of a whole
    one, and a full disk is an ``OSError`` that names no file.
    """
    if LocalBackend.put.__module__ != LocalBackend.__module__:
        return

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_file(filepath, obj)

    # Not put_text, by which all processes write the same metrics at once.
    LocalBackend.put = put


def copy_datasets_afresh(base_dataset: Any) -> None:
    """Let subsets of a data set be made again and again.

    MMEngine notes all copies by the ids of their originals in one memo, a default argument, which
    it never empties: the id of a data set that is gone may be that of any part of another.
    """
    kind = base_dataset.BaseDataset
    copy_without_annotation = kind._copy_without_annotation
    if copy_without_annotation.__defaults__ != (None,):

        def copy_afresh(self, memo=None) -> Any:
            return copy_without_annotation(self, {} if memo is None else memo)

        kind._copy_without_annotation = copy_afresh


def silence_warnings_without_a_fault() -> None:
    """Keep two warnings from the screen that no user can do anything about.

    mmcv-lite warns, when it is imported, that it lacks an operator which it
    never has; MMEngine warns of ``FileClient`` in each worker, which MMAction2
    uses to open videos.
    """
    warnings.filterwarnings('ignore', module=r'mmcv\.cnn\.bricks\.transformer')
    if hasattr(file_client, 'print_log'):  # the module logs nothing else
        file_client.print_log = lambda *args, **kwargs: None


def log_without_torch() -> None:
    """Let a logger be made without importing torch, where nothing has.

    MMEngine asks torch for the rank of the process and for its GPU, which takes seconds. Without
    torch there is neither.
    """
    for name, value in dict(_get_rank=0, _get_device_id=0).items():
        ask = getattr(logger, name, None)
        if ask is not None and not hasattr(ask, 'without'):

            def find(ask: Callable[[], int] = ask, value: int = value) -> int:
                return ask() if 'torch' in sys.modules else value

            vars(find).update(without=value)
            setattr(logger, name, find)


def after_state_dict(module: 'nn.Module', hook: Callable) -> None:
    """Call ``hook(module, state_dict, prefix, local_metadata)`` after ``state_dict()``.

    torch before 2.5 has no public name for it.
    """
    register = getattr(module, 'register_state_dict_post_hook', None)
    (register or module._register_state_dict_hook)(hook)


def before_load_state_dict(module: 'nn.Module', hook: Callable) -> None:
    """Call ``hook(module, state_dict, prefix, ...)`` before a state is loaded.

    torch before 2.5 has no public name for it.
    """
    if hasattr(module, 'register_load_state_dict_pre_hook'):
        module.register_load_state_dict_pre_hook(hook)
    else:
        module._register_load_state_dict_pre_hook(hook, with_module=True)


@contextmanager
def fresh_instances() -> Iterator[None]:
    """Run something with MMEngine's named instances as a new process has them: none.

    MMEngine keeps one logger, message hub, scope and visualizer per name, and
    names them by the config and the second: two runs in one process within a
    second would share them.
    """
    managers = [ManagerMixin]
    for manager in managers:
        managers += manager.__subclasses__()
    before = [manager._instance_dict for manager in managers]
    for manager in managers:
        manager._instance_dict = OrderedDict()
    try:
        yield
    finally:
        for logger in MMLogger._instance_dict.values():
            for handler in logger.handlers:
                handler.close()
        for manager, instances in zip(managers, before):
            manager._instance_dict = instances
