from ..lazy import names_of

__getattr__ = names_of(__name__, read='Hit VideoIndex', update='Summary update_index')

__all__ = ['Hit', 'Summary', 'VideoIndex', 'update_index']
