from .read import Hit, VideoIndex
from .update import Summary, update_index

__all__ = ['Hit', 'Summary', 'VideoIndex', 'update_index']
