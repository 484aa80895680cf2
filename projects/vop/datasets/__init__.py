from .sampler import ReproducibleSampler
from .transforms import CLIPTokenize
from .video_text import VideoReadError, VideoTextDataset, read_captions

__all__ = [
    'CLIPTokenize', 'ReproducibleSampler', 'VideoReadError',
    'VideoTextDataset', 'read_captions'
]
