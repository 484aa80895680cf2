from .adapters import ParallelAdapter
from .backbone import VideoBackbone
from .caption_head import CaptionHead
from .clip import CLIPTowers, open_towers
from .context import ContextUpdate
from .data_preprocessor import RetrievalDataPreprocessor
from .losses import ContrastiveLoss
from .prompts import ContextPrompt, LearnedPrompt, PositionPrompt
from .released import ReleasedTextEncoder
from .retriever import RetrievalRecognizer
from .text import TextEncoder
from .vision import VideoEncoder

__all__ = [
    'CLIPTowers',
    'CaptionHead',
    'ContextPrompt',
    'ContextUpdate',
    'ContrastiveLoss',
    'LearnedPrompt',
    'ParallelAdapter',
    'PositionPrompt',
    'ReleasedTextEncoder',
    'RetrievalDataPreprocessor',
    'RetrievalRecognizer',
    'TextEncoder',
    'VideoBackbone',
    'VideoEncoder',
    'open_towers',
]
