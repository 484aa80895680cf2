from .index import Hit, VideoIndex
from .indexing import Summary, update_index
from .inferencer import EncodedVideos, VoPInferencer

__all__ = ['EncodedVideos', 'Hit', 'Summary', 'VideoIndex', 'VoPInferencer', 'update_index']
