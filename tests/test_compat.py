"""Repairs of MMAction2 and MMEngine.

Without that of DRN, nothing of this project can be imported.
"""

import gc
import importlib
import importlib.util
import resource
import sys
import weakref
from pathlib import Path
from types import ModuleType

import mmengine
import numpy as np
import pytest
import torch
from helpers import run
from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import save_checkpoint
from mmengine.utils import get_installed_path, is_installed

from projects.vop import compat
from projects.vop.errors import UserError


def wheel_has_drn():
    [root] = importlib.util.find_spec('mmaction').submodule_search_locations
    return (Path(root) / 'models' / 'localizers' / 'drn').is_dir()


@pytest.mark.skipif(wheel_has_drn(), reason='this MMAction2 has DRN')
def test_drn_says_that_it_is_missing():
    from mmaction.models.localizers import DRN

    with pytest.raises(RuntimeError, match='DRN is missing .* from source'):
        DRN(vocab_size=1)


def test_real_drn_is_left_alone(tmp_path, monkeypatch):
    """A checkout of MMAction2 that has the folder gets no stand-in."""
    package = tmp_path / 'mmaction'
    (package / 'models' / 'localizers' / 'drn').mkdir(parents=True)
    (package / '__init__.py').touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split('.')[0] == 'mmaction']:
        monkeypatch.delitem(sys.modules, name)
    compat.supply_missing_drn()
    assert not any(name.startswith('mmaction') for name in sys.modules)


def test_without_mmaction_nothing_happens(monkeypatch):
    for name in [n for n in sys.modules if n.split('.')[0] == 'mmaction']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'path', [])
    monkeypatch.setattr(sys, 'meta_path', [])
    compat.supply_missing_drn()
    assert not any(name.startswith('mmaction') for name in sys.modules)


VINDLU = ('VindLURetrieval', 'VindLURetrievalMC', 'VindLUVQA')


@pytest.mark.parametrize('code', ['works = True', 'from transformers import gone', '1 / 0'])
def test_vindlu_is_left_out_where_it_cannot_be_imported(tmp_path, monkeypatch, code):
    """MMAction2's own needs a transformers that is not installed here."""
    name = 'mmaction.models.multimodal.vindlu'
    parent = ModuleType(name.rpartition('.')[0])
    parent.__path__ = [str(tmp_path)]
    (tmp_path / 'vindlu').mkdir()
    (tmp_path / 'vindlu/__init__.py').write_text(code)
    monkeypatch.setitem(sys.modules, parent.__name__, parent)
    monkeypatch.setitem(sys.modules, name, None)  # so that it is as before afterwards
    del sys.modules[name]
    before = object()
    for kind in VINDLU:
        monkeypatch.setitem(MODELS.module_dict, kind, before)
    module = importlib.import_module(name)
    if hasattr(module, 'works'):
        assert all(MODELS.get(kind) is before for kind in VINDLU)
    else:
        for kind in VINDLU:
            with pytest.raises(ImportError, match='VindLU.*(gone|transformers|ZeroDivision)'):
                MODELS.build(dict(type=kind))


@pytest.mark.slow
def test_a_new_transformers_does_not_stop_the_import(tmp_path):
    """Of it, MMAction2 asks for the version alone, before it imports what is gone."""
    (tmp_path / 'transformers-4.56.0.dist-info').mkdir()
    (tmp_path / 'transformers-4.56.0.dist-info/METADATA').write_text(
        'Metadata-Version: 2.1\nName: transformers\nVersion: 4.56.0\n'
    )
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers/__init__.py').touch()
    code = (
        'import projects.vop, mmaction.models; from mmaction.utils.dependency import '
        'WITH_MULTIMODAL as w; print(w, mmaction.models.Recognizer2D.__name__)'
    )
    assert 'True Recognizer2D' in run(sys.executable, '-c', code, paths=[tmp_path])


def test_configs_inherit_from_other_packages(tmp_path):
    """As all MMEngine does that looks for a package."""
    path = 'mmaction::_base_/models/tsn_r50.py'
    (tmp_path / 'tsn.py').write_text(f"_base_ = '{path}'\n")
    assert Config.fromfile(tmp_path / 'tsn.py').model.type == 'Recognizer2D'
    assert get_config(path).model.type == 'Recognizer2D'
    assert Path(get_installed_path('mmaction2'), '.mim').is_dir()
    assert not is_installed('mmnothing')
    (tmp_path / 'none.py').write_text("_base_ = 'mmflow::_base_/none.py'\n")
    with pytest.raises(ModuleNotFoundError, match='mmflow is not installed'):
        Config.fromfile(tmp_path / 'none.py')


@pytest.fixture
def hub(request):
    hub = MessageHub(f'hub of {request.node.name}')
    for step in range(5):
        hub.update_scalar('train/loss', 2.0 / (step + 1), count=step + 1)
    hub.update_scalar('train/time', 0.1, resumed=False)
    hub.update_info('iter', 5)
    return hub


def reload(hub, path):
    """Through a checkpoint file into a new hub."""
    torch.save(dict(message_hub=hub.state_dict()), path)
    new = MessageHub(f'reloaded {hub.instance_name}')
    new.load_state_dict(torch.load(path, weights_only=True)['message_hub'])
    return new


def test_message_hub_survives_a_safe_checkpoint(hub, tmp_path):
    new = reload(hub, tmp_path / 'a.pth')
    buffer = new.get_scalar('train/loss')
    assert isinstance(buffer, HistoryBuffer)
    for mine, theirs in zip(hub.get_scalar('train/loss').data, buffer.data):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    assert buffer.mean() == hub.get_scalar('train/loss').mean()
    assert new.get_info('iter') == 5
    assert 'train/time' not in new.log_scalars  # not to be resumed


def test_a_reloaded_hub_goes_on(hub, tmp_path):
    new = reload(hub, tmp_path / 'a.pth')
    new.update_scalar('train/loss', 0.1)
    again = reload(new, tmp_path / 'b.pth')
    assert again.get_scalar('train/loss').current() == 0.1
    assert len(again.get_scalar('train/loss').data[0]) == 6


def test_a_checkpoint_keeps_the_end_of_a_long_history(hub, tmp_path):
    for step in range(compat.HISTORY_KEPT):
        hub.update_scalar('train/loss', float(step), count=step)
    kept = reload(hub, tmp_path / 'a.pth').get_scalar('train/loss').data
    for values in kept:
        np.testing.assert_array_equal(values, range(compat.HISTORY_KEPT))
    # The history in memory is not cut.
    assert len(hub.get_scalar('train/loss').data[0]) == 5 + compat.HISTORY_KEPT


def test_reads_what_mmengine_wrote_itself(hub):
    """Hubs of other runs hold buffers, or are a hub."""
    state = hub.state_dict()
    state['log_scalars'] = dict(hub.log_scalars)
    for number, source in enumerate((state, hub)):
        new = MessageHub(f'{number} of {hub.instance_name}')
        new.load_state_dict(source)
        assert new.get_scalar('train/loss').current() == 0.4


def test_loading_leaves_the_state_as_it_was(hub):
    state = hub.state_dict()
    MessageHub(f'new {hub.instance_name}').load_state_dict(state)
    assert isinstance(state['log_scalars']['train/loss'], list)


@pytest.mark.parametrize('write', [mmengine.dump, save_checkpoint])
def test_mmengine_writes_files_whole(tmp_path, write):
    """A limit on the size of files stands for a full disk."""
    path = tmp_path / 'new' / 'file.pkl'
    write(dict(a=1), str(path))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r'file\.pkl cannot be written'):
            write(dict(a=torch.zeros(10_000)), str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]


def test_repairs_apply_once():
    methods = MessageHub.state_dict, MessageHub.load_state_dict
    modules = {n: m for n, m in sys.modules.items() if 'drn' in n}
    compat.apply()
    assert (MessageHub.state_dict, MessageHub.load_state_dict) == methods
    assert {n: m for n, m in sys.modules.items() if 'drn' in n} == modules


def test_a_module_is_repaired_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / 'imported_later.py').write_text('broken = True')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path])
    name, repaired = 'imported_later', []
    monkeypatch.delitem(sys.modules, name, raising=False)
    compat.when_imported(name, lambda module: repaired.append(module.broken))
    assert not repaired
    module = importlib.import_module(name)
    assert repaired == [True]
    monkeypatch.setitem(sys.modules, name, module)  # which is gone afterwards
    compat.when_imported(name, lambda module: repaired.append(module))
    assert repaired == [True, module]


def test_a_subset_that_is_gone_is_forgotten():
    """Else its id, taken by another object, would stand for it."""

    class Numbers(BaseDataset):
        def load_data_list(self):
            return [dict(number=number) for number in range(3)]

    subset = Numbers().get_subset(2)
    assert len(subset) == 2
    gone = weakref.ref(subset)
    del subset
    gc.collect()
    assert gone() is None
