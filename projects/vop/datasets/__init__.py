from .annotations import Annotation, read_annotations
from .sampler import ReproducibleSampler
from .transforms import CLIPTokenize, DecordKeep, TimeWindow
from .video_text import VideoTextDataset, explain_data_loader

__all__ = [
    'Annotation',
    'CLIPTokenize',
    'DecordKeep',
    'ReproducibleSampler',
    'TimeWindow',
    'VideoTextDataset',
    'explain_data_loader',
    'read_annotations',
]
