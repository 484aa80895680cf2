"""The registries of the scope ``vop``.

They are children of MMEngine's root registries, so every MMEngine or
MMAction2 config can name a part of this package as ``type='vop.X'`` without
touching MMAction2's own classes of the same name.
"""

import inspect
import sys
from importlib import import_module
from typing import Any

from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import INFERENCERS as ROOT_INFERENCERS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODEL_WRAPPERS as ROOT_MODEL_WRAPPERS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TASK_UTILS as ROOT_TASK_UTILS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry


class ModelRegistry(Registry):
    """A registry that imports ``recognition``, and with it MMAction2's models, only if need be.

    Example:
        >>> MODELS.get('vop.VideoEncoder')
        <class 'projects.vop.models.vision.VideoEncoder'>
    """

    def get(self, key: str) -> type | None:
        import_module('projects.vop.models')
        scope, name = self.split_scope_key(key)
        if scope in (None, self.scope) and name in self.module_dict:
            return self.module_dict[name]
        return super().get(key)


def _child(name: str, parent: Registry, *modules: str, kind: type[Registry] = Registry) -> Registry:
    locations = [f'projects.vop.{module}' for module in modules]
    return kind(name, parent=parent, scope='vop', locations=locations)


# MMEngine imports the module `registry` of each scope that it meets. It must not look for it
# elsewhere, where it would run what has that name.
sys.modules['vop.registry'] = sys.modules[__name__]

MODELS = _child('vop model', ROOT_MODELS, 'models', 'recognition', kind=ModelRegistry)
MODEL_WRAPPERS = _child('vop model wrapper', ROOT_MODEL_WRAPPERS, 'engine.distributed')
DATASETS = _child('vop dataset', ROOT_DATASETS, 'datasets')
DATA_SAMPLERS = _child('vop data sampler', ROOT_DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child('vop transform', ROOT_TRANSFORMS, 'datasets')
METRICS = _child('vop metric', ROOT_METRICS, 'evaluation')
RESCORINGS = _child('vop rescoring', ROOT_TASK_UTILS, 'evaluation')
HOOKS = _child(
    'vop hook',
    ROOT_HOOKS,
    *('engine.checkpoint_hook', 'engine.finite', 'report'),
)
INFERENCERS = _child('vop inferencer', ROOT_INFERENCERS, 'apis')


def class_of(part: Any, registry: Registry, scope: str | None = None) -> type:
    """The class that MMEngine would build of a part of a config.

    Args:
        part (Any): A config with ``type``: a class, its name with or without a scope, or the
            path of where it is defined.
        registry (Registry): Where names are looked up, with its parents and children.
        scope (str, optional): ``default_scope`` of the config, in which names without one are.

    Returns:
        type: The class; ``object`` if the part names none.

    Example:
        >>> class_of(dict(type='vop.RetrievalMetric'), METRICS)
        <class 'projects.vop.evaluation.retrieval_metric.RetrievalMetric'>
    """
    kind = part.get('type') if isinstance(part, dict) else None
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(part.get('_scope_') or scope) as scoped:
            kind = scoped.get(kind)
    return kind if inspect.isclass(kind) else object


def is_kind(part: Any, name: str, registry: Registry, scope: str | None = None) -> bool:
    """Whether a part of a config is of the class ``name`` of this package, or of a subclass.

    Example:
        >>> is_kind(dict(type='vop.VideoBackbone'), 'vop.VideoEncoder', MODELS)
        True
    """
    kind = registry.get(name)
    assert kind is not None, name
    return issubclass(class_of(part, registry, scope), kind)
