from ..lazy import names_of

__getattr__, __dir__ = names_of(
    __name__,
    checkpoint='check_state load_safely to_safetensors',
    checkpoint_hook='CheckpointHook use_checkpoint_hook',
    config='check_amp check_data fit_pixels fit_tokenizers merge_options open_config pin_memory '
    'use_amp work_dir_of',
    distributed='add_launcher_arguments check_launcher lock_work_dir tool use_gloo_without_gpu '
    'wrap_model',
    finite='FiniteHook',
    index_config='check_plain_config plain_config',
    resume='ResumeHook find_checkpoint prepare_resume',
    runner='build_runner build_train_runner',
)

__all__ = [
    'CheckpointHook',
    'FiniteHook',
    'ResumeHook',
    'add_launcher_arguments',
    'build_runner',
    'build_train_runner',
    'check_amp',
    'check_data',
    'check_plain_config',
    'check_launcher',
    'check_state',
    'find_checkpoint',
    'fit_pixels',
    'fit_tokenizers',
    'load_safely',
    'lock_work_dir',
    'merge_options',
    'open_config',
    'pin_memory',
    'prepare_resume',
    'plain_config',
    'to_safetensors',
    'tool',
    'use_amp',
    'use_checkpoint_hook',
    'use_gloo_without_gpu',
    'work_dir_of',
    'wrap_model',
]
