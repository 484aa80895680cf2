from .inferencer import EncodedVideos, VoPInferencer

__all__ = ['EncodedVideos', 'VoPInferencer']
