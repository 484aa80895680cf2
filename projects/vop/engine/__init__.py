from .checkpoint import check_fit, load_safely
from .config import (
    check_amp,
    check_data,
    merge_options,
    open_config,
    pin_memory,
    use_amp,
    work_dir_of,
)
from .distributed import (
    add_launcher_arguments,
    check_launcher,
    tool,
    use_gloo_without_gpu,
    wrap_model,
)
from .finite import FiniteHook
from .runner import build_runner, build_train_runner

__all__ = [
    'FiniteHook',
    'add_launcher_arguments',
    'build_runner',
    'build_train_runner',
    'check_amp',
    'check_data',
    'check_fit',
    'check_launcher',
    'load_safely',
    'merge_options',
    'open_config',
    'pin_memory',
    'tool',
    'use_amp',
    'use_gloo_without_gpu',
    'work_dir_of',
    'wrap_model',
]
