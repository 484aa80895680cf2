from .annotations import Annotation, read_annotations
from .sampler import ReproducibleSampler
from .transforms import CLIPTokenize, TimeWindow
from .video_text import VideoTextDataset

__all__ = [
    'Annotation',
    'CLIPTokenize',
    'ReproducibleSampler',
    'TimeWindow',
    'VideoTextDataset',
    'read_annotations',
]
