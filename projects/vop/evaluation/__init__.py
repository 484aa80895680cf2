from .ranking import evaluate_embeddings, evaluate_similarity
from .rescoring import DSL, QBNorm
from .retrieval_metric import RetrievalMetric

__all__ = ['DSL', 'QBNorm', 'RetrievalMetric', 'evaluate_embeddings', 'evaluate_similarity']
