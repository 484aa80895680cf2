"""DSL and QB-Norm against their formulas, written out on whole matrices."""

import numpy as np
import pytest
import torch

from projects.vop.errors import UserError
from projects.vop.evaluation import (
    DSL,
    QBNorm,
    Rescoring,
    evaluate_embeddings,
    evaluate_similarity,
    scores,
)


def naive_dsl(rows, scale, is_query):
    """For each query (row) and item, s * softmax over the queries."""
    exp = np.exp(scale * rows)
    return rows * exp / exp[is_query].sum(axis=0)


def naive_qb_norm(rows, bank, beta):
    """The dynamic inverted softmax; bank: [bank queries x items]."""
    activated = set()
    for query in bank:
        activated |= set(np.flatnonzero(query == query.max()))
    result = np.empty_like(rows)
    for q, query in enumerate(rows):
        best = set(np.flatnonzero(query == query.max()))
        for i, score in enumerate(query):
            result[q, i] = score
            if best & activated:
                result[q, i] = np.exp(beta * score) / sum(
                    np.exp(beta * other) for other in bank[:, i]
                )
    return result


def naive_metrics(prefix, t2v, v2t, video_of_text):
    """Scores that differ by rounding alone tie."""
    t2v, v2t = (np.vectorize(lambda x: float(f'{x:.9g}'))(rows) for rows in (t2v, v2t))
    result = {}
    for direction, similarity in (('t2v', t2v), ('v2t', v2t.T)):
        for key, value in evaluate_similarity(similarity, video_of_text).items():
            if key.startswith(direction):
                result[f'{prefix}/{key}'] = value
    return result


@pytest.mark.parametrize('tile', [3, 1024])
@pytest.mark.parametrize('levels', [1, 2, 4, 1000])
def test_matrices_agree_with_the_formulas(monkeypatch, tile, levels):
    """With distractors, several captions a video, ties, negative scores."""
    monkeypatch.setattr(scores, 'TILE', tile)
    rng = np.random.default_rng(levels)
    for _ in range(8):
        texts, videos = rng.integers(1, 12, 2)
        video_of_text = rng.integers(0, videos, texts)

        def draw(*shape):
            # Multiples of a power of two: their sums are exact.
            return (rng.integers(0, levels, shape) - levels // 3) * 2.0**-9

        similarity = draw(texts, videos)
        banks = draw(rng.integers(1, 6), videos), draw(rng.integers(1, 6), texts)
        scale, beta = rng.choice([1.0, 20.0, 100.0], 2)
        result = evaluate_similarity(
            similarity,
            video_of_text,
            rescoring=[DSL(scale), QBNorm(*(torch.tensor(bank) for bank in banks), beta)],
        )
        is_query = np.isin(np.arange(videos), video_of_text)
        dsl = naive_dsl(similarity, scale, slice(None)), naive_dsl(similarity.T, scale, is_query)
        qb_norm = (
            naive_qb_norm(similarity, banks[0], beta),
            naive_qb_norm(similarity.T, banks[1], beta),
        )
        wanted = (
            evaluate_similarity(similarity, video_of_text)
            | naive_metrics('dsl', *dsl, video_of_text)
            | naive_metrics('qb_norm', *qb_norm, video_of_text)
        )
        assert list(result) == list(wanted)
        assert result == pytest.approx(wanted)


@pytest.mark.parametrize('tile', [3, 1024])
def test_embeddings_score_as_their_products(monkeypatch, tile):
    monkeypatch.setattr(scores, 'TILE', tile)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        # Few values, so that pairs tie and products are exact.
        text, video, bank_text, bank_video = (
            torch.randint(-1, 2, (n, 4), generator=generator) / 8 for n in (23, 9, 11, 7)
        )
        video_of_text = torch.randint(0, 9, (23,), generator=generator)
        assert evaluate_embeddings(
            text, video, video_of_text, rescoring=[DSL(), QBNorm(bank_text, bank_video)]
        ) == evaluate_similarity(
            text @ video.T,
            video_of_text,
            rescoring=[DSL(), QBNorm(bank_text @ video.T, bank_video @ text.T)],
        )


@pytest.mark.parametrize(
    'size, tile', [(5, 3), (7, 3), (33, 3), (33, 1024), (1000, 100), (1000, 1024)]
)
def test_a_collapsed_model_scores_chance(monkeypatch, size, tile):
    monkeypatch.setattr(scores, 'TILE', tile)
    row = torch.randn(513, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(row, dim=0).expand(size, 513).clone()
    result = evaluate_embeddings(
        rows, rows.clone(), range(size), rescoring=[DSL(), QBNorm(rows[:4], rows[:3])]
    )
    for key, value in result.items():
        wanted = 100 / size if 'R@1' in key else (size + 1) / 2
        if key.endswith(('R@1', 'MnR', 'MdR')):
            assert value == pytest.approx(wanted), key


def test_equal_videos_tie():
    """Each is in the gallery twice, at another place of the tiles."""
    generator = torch.Generator().manual_seed(0)
    video = torch.nn.functional.normalize(torch.randn(60, 64, generator=generator), dim=1)
    noise = torch.randn(60, 64, generator=generator)
    text = torch.nn.functional.normalize(video + 0.02 * noise, dim=1)
    bank = torch.nn.functional.normalize(torch.randn(200, 64, generator=generator), dim=1)
    result = evaluate_embeddings(
        text, torch.cat([video, video.flip(0)]), range(60), rescoring=[DSL(), QBNorm(bank, bank)]
    )
    for key in ('t2v/R@1', 'dsl/t2v/R@1', 'qb_norm/t2v/R@1'):
        assert result[key] == pytest.approx(50), key


def test_qb_norm_leaves_queries_alone_whose_best_is_not_activated():
    """The bank knows video 0 alone as a hub, and text 2 is near video 2."""
    similarity = torch.tensor([[0.9, 0.1, 0.1], [0.8, 0.7, 0.1], [0.1, 0.15, 0.2]])
    bank = torch.tensor([[0.9, 0.1, 0.9 - 1e-4], [0.9, 0.1, 0.1]])
    result = evaluate_similarity(similarity, rescoring=[QBNorm(bank, torch.full((1, 3), 0.5))])
    assert result['t2v/R@1'] == pytest.approx(200 / 3)
    assert result['qb_norm/t2v/R@1'] == 100


class MeanRescorer:
    def __init__(self, queries, items):
        self.mean, self.queries = torch.zeros(items, dtype=torch.float64), queries

    def add(self, queries, items, tile):
        self.mean[items] += tile.double().sum(0) / self.queries

    def __call__(self, scores, queries, items):
        return scores - self.mean[items]


class Centering(Rescoring):
    """The example of Rescoring's documentation."""

    name, looks_at = 'centering', 'all queries of the test set at once'

    def bind(self, scores):
        texts, videos = scores.shape
        return MeanRescorer(texts, videos), MeanRescorer(videos, texts)


def test_a_method_of_your_own():
    """Video 0 is near to all, a bit nearer to its own caption."""
    similarity = torch.tensor([[0.9, 0.1, 0.1], [0.8, 0.7, 0.1], [0.8, 0.1, 0.7]])
    result = evaluate_similarity(similarity, rescoring=[Centering(), DSL()])
    alone = evaluate_similarity(similarity, rescoring=[Centering()])
    assert result == evaluate_similarity(similarity, rescoring=[DSL()]) | alone
    assert alone['t2v/R@1'] < alone['centering/t2v/R@1'] == result['dsl/t2v/R@1'] == 100


def test_refuses_what_has_no_softmax():
    similarity = torch.eye(3)
    similarity[0, 2] = -torch.inf
    assert evaluate_similarity(similarity)['t2v/R@1'] == 100
    with pytest.raises(ValueError, match='video 2 are infinite'):
        evaluate_similarity(similarity, rescoring=[DSL()])


@pytest.mark.parametrize(
    'text, video, message',
    [
        (torch.ones(2, 4), torch.ones(2, 3), r'text .* x 3\], got \[2, 4\]'),
        (torch.ones(2, 3), torch.ones(3), 'video'),
        (torch.ones(0, 3), torch.ones(2, 3), 'text'),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), 'video .* not finite'),
    ],
)
def test_refuses_banks_that_do_not_fit(text, video, message):
    for evaluate in (
        evaluate_similarity,
        lambda x, **kw: evaluate_embeddings(x, x, range(3), **kw),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(torch.eye(3), rescoring=[QBNorm(text, video)])


@pytest.mark.parametrize('scale', [0, True, float('nan'), float('inf'), -1.0, None, 'large'])
def test_refuses_scales_that_are_not_positive(scale):
    with pytest.raises(UserError, match='dsl'):
        DSL(scale)
    with pytest.raises(UserError, match='beta'):
        QBNorm(torch.eye(2), torch.eye(2), beta=scale)


@pytest.mark.parametrize(
    'kwargs', [{}, dict(text=torch.eye(2)), dict(video=torch.eye(2), bank='bank.pt')]
)
def test_refuses_half_a_bank_and_two(kwargs):
    with pytest.raises(UserError, match='bank'):
        QBNorm(**kwargs)
