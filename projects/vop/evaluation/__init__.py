from .embeddings import Embeddings
from .ranking import evaluate_embeddings, evaluate_similarity
from .rescoring import DSL, QBNorm, Rescoring
from .retrieval_metric import RetrievalMetric

__all__ = [
    'DSL',
    'Embeddings',
    'QBNorm',
    'Rescoring',
    'RetrievalMetric',
    'evaluate_embeddings',
    'evaluate_similarity',
]
