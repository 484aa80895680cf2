from ..lazy import names_of

__getattr__ = names_of(__name__, inferencer='EncodedVideos VoPInferencer', reader='Windows')

__all__ = ['EncodedVideos', 'VoPInferencer', 'Windows']
