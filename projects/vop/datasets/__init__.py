from .sampler import ReproducibleSampler
from .transforms import CLIPTokenize, TimeWindow
from .video_text import Annotation, VideoTextDataset, read_annotations

__all__ = [
    'Annotation',
    'CLIPTokenize',
    'ReproducibleSampler',
    'TimeWindow',
    'VideoTextDataset',
    'read_annotations',
]
