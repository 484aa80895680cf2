from ..lazy import names_of

__getattr__, __dir__ = names_of(
    __name__, inferencer='EncodedVideos VoPInferencer', reader='Windows'
)

__all__ = ['EncodedVideos', 'VoPInferencer', 'Windows']
