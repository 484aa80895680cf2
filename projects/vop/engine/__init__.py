from .checkpoint import load_safely
from .distributed import use_gloo_without_gpu

__all__ = ['load_safely', 'use_gloo_without_gpu']
