from .sampler import ReproducibleSampler
from .transforms import CLIPTokenize, TimeWindow
from .video_text import Annotation, VideoReadError, VideoTextDataset, read_annotations

__all__ = [
    'Annotation',
    'CLIPTokenize',
    'ReproducibleSampler',
    'TimeWindow',
    'VideoReadError',
    'VideoTextDataset',
    'read_annotations',
]
