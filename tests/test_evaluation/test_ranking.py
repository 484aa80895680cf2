"""Ranking against a naive count, in which every tie is broken every way."""

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
    ways = (itertools.permutations(group) for group in groups)
    for way in itertools.product(*ways):
        yield list(itertools.chain(*way))


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


def test_agrees_with_a_naive_count_on_a_larger_gallery():
    similarity = torch.randn(120, 40, generator=torch.Generator().manual_seed(0))
    video_of_text = torch.arange(40).repeat(3).tolist()
    for i, video in enumerate(video_of_text):  # better than chance, worse than perfect
        similarity[i, video] += 1.5
    result = evaluate_similarity(similarity, video_of_text)
    assert result == pytest.approx(naive(similarity, video_of_text))
    assert 20 < result['t2v/R@1'] < 80
    assert result['t2v/R@1'] != result['v2t/R@1']


def test_collapsed_model_scores_chance():
    result = evaluate_similarity(torch.full((200, 200), 0.7))
    for direction in ('t2v', 'v2t'):
        assert result[f'{direction}/R@1'] == pytest.approx(0.5)
        assert result[f'{direction}/R@10'] == pytest.approx(5)
        assert result[f'{direction}/MdR'] == pytest.approx(100.5)
        assert result[f'{direction}/MnR'] == pytest.approx(100.5)


def test_collapsed_model_with_several_captions_a_video():
    """A video meets one of its 3 among 30 captions by chance."""
    result = evaluate_similarity(torch.zeros(30, 10), torch.arange(30) // 3)
    assert result['t2v/R@1'] == pytest.approx(10)
    assert result['v2t/R@1'] == pytest.approx(10)
    assert result['v2t/MnR'] == pytest.approx(1 + 27 / 4)


def test_perfect_and_worst_scores():
    best = evaluate_similarity(torch.eye(20))
    worst = evaluate_similarity(-torch.eye(20))
    for direction in ('t2v', 'v2t'):
        for key, wanted in {
            'R@1': (100, 0),
            'R@10': (100, 0),
            'MdR': (1, 20),
            'MnR': (1, 20),
        }.items():
            assert best[f'{direction}/{key}'] == wanted[0]
            assert worst[f'{direction}/{key}'] == wanted[1]


def test_distractors_are_in_the_gallery_and_ask_nothing():
    similarity = torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.6, 0.1]])
    result = evaluate_similarity(similarity, [0, 1])
    assert result['t2v/R@1'] == 50  # video 2 comes before video 0
    assert result['v2t/R@1'] == 100  # of videos 0 and 1


def test_ten_keys_by_default():
    names = ('R@1', 'R@5', 'R@10', 'MdR', 'MnR')
    assert list(evaluate_similarity(torch.eye(3))) == [f't2v/{n}' for n in names] + [
        f'v2t/{n}' for n in names
    ]


@pytest.mark.parametrize(
    'similarity',
    [
        np.eye(4),
        np.eye(4, dtype=np.int64),
        torch.eye(4, dtype=torch.int32),
        torch.eye(4, dtype=torch.float16),
    ],
)
def test_takes_arrays_and_any_numbers(similarity):
    result = evaluate_similarity(similarity, np.arange(4))
    assert result['t2v/R@1'] == result['v2t/R@1'] == 100


def test_chunks_do_not_change_the_result(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 6, (31, 10), generator=generator).float()
    video_of_text = torch.arange(31) % 10
    whole = evaluate_similarity(similarity, video_of_text)
    monkeypatch.setattr(scores, 'TILE', 3)
    assert evaluate_similarity(similarity, video_of_text) == pytest.approx(whole)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize('rescored', [False, True])
def test_never_holds_all_scores(monkeypatch, rescored):
    """Nothing made is larger than the embeddings, of 200 x 2, or a tile."""
    monkeypatch.setattr(scores, 'TILE', 8)
    text, video = torch.randn(200, 2), torch.randn(60, 2)
    rescoring = [DSL(), QBNorm(text[:90], video[:50])] if rescored else []
    video_of_text = torch.arange(200) % 60
    with Largest() as largest:
        evaluate_embeddings(text, video, video_of_text, rescoring=rescoring)
    assert 64 <= largest.numel <= 400
    similarity = text @ video.T
    with Largest() as largest:
        evaluate_similarity(similarity, video_of_text)
    assert 64 <= largest.numel <= 8 * 60  # a view of 8 rows


def test_each_tile_is_made_once_for_both_directions(monkeypatch):
    monkeypatch.setattr(scores, 'TILE', 8)
    products = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **kwargs or {})
            if func is torch.ops.aten.mm.default:
                products.append(result.numel())
            return result

    text, video = torch.randn(30, 2), torch.randn(20, 2)
    with Products():
        evaluate_embeddings(text, video, torch.arange(30) % 20)
    assert sum(products) == 30 * 20


@pytest.mark.parametrize('chunk', [256, 2])
def test_nan_names_the_first_bad_video(monkeypatch, chunk):
    monkeypatch.setattr(scores, 'TILE', chunk)
    similarity = torch.eye(6)
    similarity[1, 4] = similarity[5, 3] = torch.nan
    with pytest.raises(ValueError, match='video 3 .*NaN'):
        evaluate_similarity(similarity)


@pytest.mark.parametrize('shape', [(3,), (2, 2, 2), (0, 3), (3, 0)])
def test_refuses_what_is_no_matrix(shape):
    with pytest.raises(ValueError, match='must be a matrix'):
        evaluate_similarity(torch.zeros(shape))


@pytest.mark.parametrize(
    'video_of_text, message',
    [
        (None, 'which video'),
        ([0, 1], 'there are 3 texts'),
        ([0, 1, 2], '0 to 1'),
        ([0, -1, 1], '0 to 1'),
        ([0.0, 0.5, 1.0], 'video_of_text'),
    ],
)
def test_refuses_owners_that_do_not_fit(video_of_text, message):
    with pytest.raises(ValueError, match=message):
        evaluate_similarity(torch.zeros(3, 2), video_of_text)


def test_embeddings_score_as_their_products(monkeypatch):
    monkeypatch.setattr(scores, 'TILE', 7)
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(20, 16, generator=generator)
    video_of_text = torch.arange(45) % 20
    text = video[video_of_text] + 2 * torch.randn(45, 16, generator=generator)
    assert evaluate_embeddings(text, video, video_of_text) == evaluate_similarity(
        text @ video.T, video_of_text
    )


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


@pytest.mark.parametrize('chunk', [7, 1024])
def test_a_right_pair_is_not_held_against_itself(monkeypatch, chunk):
    """With products that cancel, whose sums are all rounding."""
    monkeypatch.setattr(scores, 'TILE', chunk)
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


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_counts_exactly_in_half_precision(dtype):
    result = evaluate_similarity(-torch.eye(702, dtype=dtype))
    assert result['t2v/MnR'] == result['v2t/MnR'] == 702


@pytest.mark.parametrize(
    'text, video, video_of_text, message',
    [
        (torch.ones(3), torch.ones(2, 4), [0, 1, 1], r'text must .*\[3\]'),
        (torch.ones(3, 4), torch.ones(0, 4), [0, 1, 1], r'video must .*\[0, 4\]'),
        (torch.ones(3, 4), torch.ones(2, 5), [0, 1, 1], 'have 4 .* videos 5'),
        (torch.ones(3, 4), torch.ones(2, 4), [0, 1], 'there are 3 texts'),
        (torch.ones(3, 4), torch.ones(2, 4), [0, 1, 2], '0 to 1'),
        (torch.ones(3, 4), torch.ones(2, 4), [0.0, 1.0, 1.0], 'whole numbers'),
    ],
)
def test_refuses_embeddings_that_do_not_fit(text, video, video_of_text, message):
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(text, video, video_of_text)


@pytest.mark.parametrize('what', ['text', 'video'])
@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_says_which_embedding_is_not_finite(what, value):
    embeddings = dict(text=torch.ones(5, 4), video=torch.ones(5, 4))
    embeddings[what][3, 1] = embeddings[what][4, 0] = value
    with pytest.raises(ValueError, match=f'of {what} 3 .*NaN'):
        evaluate_embeddings(**embeddings, video_of_text=range(5))
