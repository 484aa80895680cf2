from ..lazy import names_of

__getattr__, __dir__ = names_of(
    __name__,
    read='Answers Hit VideoIndex combine open_model',
    update='Summary model_files update_index',
)

__all__ = [
    'Answers',
    'Hit',
    'Summary',
    'VideoIndex',
    'combine',
    'model_files',
    'open_model',
    'update_index',
]
