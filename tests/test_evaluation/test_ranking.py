"""Ranking against a naive count, in which ties are broken in all orders."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from projects.vop.evaluation import DSL, QBNorm, evaluate_embeddings, evaluate_similarity, scores

ONE_EACH = [0, 1, 2, 3, 4]
SEVERAL_EACH = [2, 0, 0, 1, 2, 2]
WITH_DISTRACTORS = [4, 1, 1, 4, 1]  # videos 0, 2 and 3 have no caption


def orders(scores):
    """All lists of the items, best first, that the scores allow."""
    groups = [
        [item for item, score in enumerate(scores) if score == level]
        for level in sorted(set(scores), reverse=True)
    ]
    permutations = (itertools.permutations(group) for group in groups)
    for order in itertools.product(*permutations):
        yield list(itertools.chain(*order))


def naive_direction(rows, rights, topk):
    """Average over all orders; ``rights`` are the right items of each row."""
    ranks = [
        [1 + min(order.index(item) for item in right) for order in orders(row)]
        for row, right in zip(rows, rights)
    ]
    result = {f'R@{k}': 100 * np.mean([np.mean(np.array(r) <= k) for r in ranks]) for k in topk}
    result['MdR'] = np.median([np.mean(r) for r in ranks])
    result['MnR'] = np.mean([np.mean(r) for r in ranks])
    return result


def naive(similarity, video_of_text, topk=(1, 5, 10)):
    captions = {
        video: [i for i, v in enumerate(video_of_text) if v == video]
        for video in sorted(set(video_of_text))
    }
    columns = similarity.T.tolist()
    t2v = naive_direction(similarity.tolist(), [[v] for v in video_of_text], topk)
    v2t = naive_direction([columns[video] for video in captions], captions.values(), topk)
    return {f't2v/{k}': v for k, v in t2v.items()} | {f'v2t/{k}': v for k, v in v2t.items()}


@pytest.mark.parametrize(
    'video_of_text, videos', [(ONE_EACH, 5), (SEVERAL_EACH, 3), (WITH_DISTRACTORS, 5)]
)
@pytest.mark.parametrize('levels', [1, 2, 3, 1000])
def test_agrees_with_a_naive_count(video_of_text, videos, levels):
    """One level is a collapsed model; a thousand leave hardly a tie."""
    rng = np.random.default_rng(levels)
    for _ in range(3):
        similarity = torch.tensor(rng.integers(0, levels, (len(video_of_text), videos))).float()
        topk = (1, 2, 3, 5, 10)
        assert evaluate_similarity(similarity, video_of_text, topk) == pytest.approx(
            naive(similarity, video_of_text, topk)
        )


@pytest.mark.parametrize('tile', [7, 1024])
def test_agrees_with_a_naive_count_on_a_larger_gallery(monkeypatch, tile):
    monkeypatch.setattr(scores, 'TILE', tile)
    similarity = torch.randn(120, 40, generator=torch.Generator().manual_seed(0))
    video_of_text = torch.arange(40).repeat(3).tolist()
    for i, video in enumerate(video_of_text):  # better than chance, worse than perfect
        similarity[i, video] += 1.5
    result = evaluate_similarity(similarity, video_of_text)
    assert result == pytest.approx(naive(similarity, video_of_text))
    assert 20 < result['t2v/R@1'] < 80
    assert result['t2v/R@1'] != result['v2t/R@1']


def test_collapsed_model_scores_chance():
    """With three captions each, a video meets one of its own among 30 by chance."""
    result = evaluate_similarity(torch.zeros(30, 10), torch.arange(30) // 3)
    wanted = {'t2v/R@1': 10, 't2v/MnR': 5.5, 'v2t/R@1': 10, 'v2t/MnR': 1 + 27 / 4}
    assert {key: result[key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize('sign, recall, rank', [(1, 100, 1), (-1, 0, 702)])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.int32, np.float64])
def test_perfect_and_worst_scores_of_any_type(sign, recall, rank, dtype):
    """Half precision cannot count to 702."""
    eye = np.eye(702) if dtype is np.float64 else torch.eye(702, dtype=dtype)
    values = {'R@1': recall, 'R@5': recall, 'R@10': recall, 'MdR': rank, 'MnR': rank}
    result = evaluate_similarity(sign * eye, np.arange(702))
    assert list(result.items()) == [
        (f'{d}/{k}', v) for d in ('t2v', 'v2t') for k, v in values.items()
    ]


def test_distractors_are_in_the_gallery_and_are_no_queries():
    similarity = torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.6, 0.1]])
    result = evaluate_similarity(similarity, [0, 1])
    assert result['t2v/R@1'] == 50  # video 2 comes before video 0
    assert result['v2t/R@1'] == 100  # of videos 0 and 1


class Made(TorchDispatchMode):
    """Notes the sizes of the tensors that are made, and of matrix products."""

    def __init__(self):
        super().__init__()
        self.sizes, self.products = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        self.sizes += [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if func is torch.ops.aten.mm.default:
            self.products.append(result.numel())
        return result


@pytest.mark.parametrize('rescored', [False, True])
def test_never_holds_all_scores(monkeypatch, rescored):
    """Nothing made is larger than the embeddings, of 100 x 2, or a tile.

    Each tile is made once for both directions, and once more for all methods
    of rescoring together; those of a bank twice.
    """
    monkeypatch.setattr(scores, 'TILE', 8)
    text, video = torch.randn(100, 2), torch.randn(40, 2)
    rescoring = [DSL(), QBNorm(text[:50], video[:30])] if rescored else []
    video_of_text = torch.arange(100) % 40
    with Made() as made:
        evaluate_embeddings(text, video, video_of_text, rescoring=rescoring)
    assert 64 <= max(made.sizes) <= 200
    bank = 50 * 40 + 30 * 100 if rescored else 0
    assert sum(made.products) == (1 + rescored) * 100 * 40 + 2 * bank
    similarity = text @ video.T
    with Made() as made:
        evaluate_similarity(similarity, video_of_text)
    assert 64 <= max(made.sizes) <= 8 * 40  # a view of 8 rows


@pytest.mark.parametrize('size', [5, 7, 33, 1000])
@pytest.mark.parametrize('dim', [512, 513])
def test_equal_embeddings_tie_exactly(size, dim):
    """Whatever order a matrix product sums in: not 0 or 100 but chance."""
    row = torch.randn(dim, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(row, dim=0).expand(size, dim).clone()
    result = evaluate_embeddings(rows, rows.clone(), torch.arange(size))
    for direction in ('t2v', 'v2t'):
        assert result[f'{direction}/R@1'] == pytest.approx(100 / size)
        assert result[f'{direction}/R@5'] == pytest.approx(500 / size)
        assert result[f'{direction}/MdR'] == pytest.approx((size + 1) / 2)
        assert result[f'{direction}/MnR'] == pytest.approx((size + 1) / 2)


@pytest.mark.parametrize('tile', [7, 1024])
def test_a_right_pair_is_not_compared_with_itself(monkeypatch, tile):
    """With products that cancel, whose sums are all rounding."""
    monkeypatch.setattr(scores, 'TILE', tile)
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(40, 256, generator=generator)
    text, video = torch.cat([half, half], 1), torch.cat([half, -half], 1)
    video_of_text = torch.arange(40) * 7 % 40

    def right_pairs(table):
        for rows, columns, tile in table.tiles():
            for row, column in enumerate(video_of_text[rows].tolist()):
                if columns.start <= column < columns.stop:
                    yield tile[row, column - columns.start].item()

    table = scores.Scores(text, video, video_of_text)
    assert list(right_pairs(scores.Scores(text, video))) != list(right_pairs(table))
    assert sorted(right_pairs(table)) == sorted(table.right.tolist())


def test_nan_names_the_first_bad_video():
    similarity = torch.eye(6)
    similarity[1, 4] = similarity[5, 3] = torch.nan
    with pytest.raises(ValueError, match='video 3 .*NaN'):
        evaluate_similarity(similarity)


@pytest.mark.parametrize('shape', [(3,), (2, 2, 2), (0, 3), (3, 0)])
def test_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match='similarity'):
        evaluate_similarity(torch.zeros(shape))


@pytest.mark.parametrize(
    'video_of_text', [None, [0, 1], [0, 1, 2], [0, -1, 1], [0.0, 0.5, 1.0], range(2)]
)
def test_refuses_a_video_of_text_that_does_not_fit(video_of_text):
    with pytest.raises(ValueError, match='3 .*video_of_text|video_of_text must be 3 integers'):
        evaluate_similarity(torch.zeros(3, 2), video_of_text)


@pytest.mark.parametrize(
    'text, video, message',
    [
        (torch.ones(3), torch.ones(2, 4), r'text .*\[3\]'),
        (torch.ones(3, 4), torch.ones(0, 4), r'video .*\[0, 4\]'),
        (torch.ones(3, 4), torch.ones(2, 5), '4 .* 5'),
        (torch.ones(3, 4), torch.ones(3, 4), 'video_of_text'),
    ],
)
def test_refuses_embeddings_that_do_not_fit(text, video, message):
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(text, video, [0, 1, 3])


@pytest.mark.parametrize('what', ['text', 'video'])
@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_says_which_embedding_is_not_finite(what, value):
    embeddings = dict(text=torch.ones(5, 4), video=torch.ones(5, 4))
    embeddings[what][3, 1] = embeddings[what][4, 0] = value
    with pytest.raises(ValueError, match=f'of {what} 3 '):
        evaluate_embeddings(**embeddings, video_of_text=range(5))
