from .checkpoint import check_fit, load_safely
from .config import check_data, open_config, pin_memory, use_amp
from .distributed import use_gloo_without_gpu
from .runner import NothingTrains, build_runner

__all__ = [
    'NothingTrains',
    'build_runner',
    'check_data',
    'check_fit',
    'load_safely',
    'open_config',
    'pin_memory',
    'use_amp',
    'use_gloo_without_gpu',
]
