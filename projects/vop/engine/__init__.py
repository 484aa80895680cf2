from .checkpoint import check_fit, load_safely
from .config import check_data, open_config, use_amp
from .distributed import use_gloo_without_gpu

__all__ = [
    'check_data', 'check_fit', 'load_safely', 'open_config',
    'use_amp', 'use_gloo_without_gpu'
]
