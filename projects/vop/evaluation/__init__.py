from .embeddings import Embeddings
from .ranking import evaluate_embeddings, evaluate_similarity
from .rescoring import DSL, QBNorm, Rescoring
from .retrieval_metric import DumpPredictions, RetrievalMetric

__all__ = [
    'DSL',
    'DumpPredictions',
    'Embeddings',
    'QBNorm',
    'Rescoring',
    'RetrievalMetric',
    'evaluate_embeddings',
    'evaluate_similarity',
]
