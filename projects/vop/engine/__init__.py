from .checkpoint import check_fit, load_safely
from .distributed import use_gloo_without_gpu

__all__ = ['check_fit', 'load_safely', 'use_gloo_without_gpu']
