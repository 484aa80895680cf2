from .ranking import evaluate_embeddings, evaluate_similarity
from .retrieval_metric import RetrievalMetric

__all__ = ['RetrievalMetric', 'evaluate_embeddings', 'evaluate_similarity']
