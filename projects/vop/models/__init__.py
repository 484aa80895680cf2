from .adapters import LoRA, ParallelAdapter
from .clip import CLIPTowers, open_towers
from .context import ContextUpdate
from .data_preprocessor import RetrievalDataPreprocessor
from .losses import ContrastiveLoss
from .modelscope import ModelScopeTextEncoder
from .prompts import ContextPrompt, LearnedPrompt, PositionPrompt
from .retriever import RetrievalRecognizer
from .text import TextEncoder
from .vision import VideoEncoder

__all__ = [
    'CLIPTowers',
    'ContextPrompt',
    'ContextUpdate',
    'ContrastiveLoss',
    'LearnedPrompt',
    'LoRA',
    'ParallelAdapter',
    'PositionPrompt',
    'ModelScopeTextEncoder',
    'RetrievalDataPreprocessor',
    'RetrievalRecognizer',
    'TextEncoder',
    'VideoEncoder',
    'open_towers',
]
