"""Data-parallel runs: on machines without a GPU, and of tests."""

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..registry import MODEL_WRAPPERS


def use_gloo_without_gpu(cfg: Config) -> None:
    """Prepare a distributed run on CPUs.

    MMEngine's launcher takes a GPU for granted: it sets the CUDA device and
    wraps the model with ``device_ids=[LOCAL_RANK]``. Without one, this opens
    a gloo process group before the Runner does, and asks for a wrapper
    without device ids. It does nothing where there is a GPU, or one process.

    Args:
        cfg (Config): Config of the run, with ``launcher`` set.

    Raises:
        ValueError: If the launcher is one that needs GPUs.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'There is no GPU here, and launcher '
            f"'{cfg.launcher}' needs one; on CPUs use "
            "'pytorch' (tools/dist_*.sh)."
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        {'type': 'MMDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False},
    )


@MODEL_WRAPPERS.register_module()
class Unwrapped:
    """A model wrapper that gives the model back as it is, for testing."""

    def __new__(cls, module: nn.Module) -> nn.Module:
        return module
