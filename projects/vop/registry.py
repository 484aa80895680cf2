"""The registries of the scope ``vop``.

They are children of MMEngine's root registries, so every MMEngine or
MMAction2 config can name a part of this package as ``type='vop.X'`` without
touching MMAction2's own classes of the same name.
"""

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


def _child(name: str, parent: Registry, *subpackages: str) -> Registry:
    return Registry(
        name,
        parent=parent,
        scope='vop',
        locations=[f'projects.vop.{subpackage}' for subpackage in subpackages],
    )


MODELS = _child('vop model', ROOT_MODELS, 'models', 'recognition')
MODEL_WRAPPERS = _child('vop model wrapper', ROOT_MODEL_WRAPPERS, 'engine')
DATASETS = _child('vop dataset', ROOT_DATASETS, 'datasets')
DATA_SAMPLERS = _child('vop data sampler', ROOT_DATA_SAMPLERS, 'datasets')
TRANSFORMS = _child('vop transform', ROOT_TRANSFORMS, 'datasets')
METRICS = _child('vop metric', ROOT_METRICS, 'evaluation')
RESCORINGS = _child('vop rescoring', ROOT_TASK_UTILS, 'evaluation')
HOOKS = _child('vop hook', ROOT_HOOKS, 'report', 'engine')
INFERENCERS = _child('vop inferencer', ROOT_INFERENCERS, 'apis')
