"""What single queries find, held against one query at a time."""

import numpy as np
import pytest
import torch

from projects.vop.evaluation import evaluate_embeddings, scores
from projects.vop.evaluation.embeddings import Embeddings
from projects.vop.report.examples import Example, find_examples


def expect(query, row, own):
    """What a query with these scores finds, of which these are its own."""
    hits = [(i, row[i], own[i], (row == row[i]).sum() > 1) for i in np.argsort(-row, kind='stable')]
    best = next(hit for hit in hits if hit[2])
    ties = row == best[1]
    tied = (ties & ~own).sum()
    rank = (row > best[1]).sum() + 1 + tied / ((ties & own).sum() + 1)
    below = None if best in hits[:5] else (*best[:3], tied > 0)
    return Example(query, pytest.approx(rank), tied, hits[:5], below), -best[1]


@pytest.mark.parametrize('tile', [7, 1024])
def test_queries_find_what_scores_highest(tile, monkeypatch):
    monkeypatch.setattr(scores, 'TILE', tile)
    rng = torch.Generator().manual_seed(0)  # whole numbers, whose scores often tie
    video, text = (torch.randint(-2, 3, (n, 4), generator=rng).float() for n in (21, 60))
    owners = torch.arange(20).repeat_interleave(3)  # the last video has no caption
    directions = find_examples(Embeddings([''] * 21, video, text, owners), 4)
    metrics = evaluate_embeddings(text, video, owners)
    table, right = (text @ video.T).numpy(), np.equal.outer(owners.numpy(), np.arange(21))
    for name, (rows, owns) in dict(t2v=(table, right), v2t=(table.T[:20], right.T)).items():
        groups, bins = directions[name].examples, directions[name].histogram()
        expected = [expect(i, row, own) for i, (row, own) in enumerate(zip(rows, owns))]
        shown = [example for group in groups.values() for example in group]
        assert shown == [expected[example.query][0] for example in shown]
        assert any(e.below for e in shown) and any(e.tied for e in shown)
        # Of the same rank, that with the higher score is the better one.
        order = sorted((example.rank.expected, score) for example, score in expected)
        for group, wanted in dict(worst=order[:-5:-1], best=order[:4]).items():
            assert [(e.rank, expected[e.query][1]) for e in groups[group]] == wanted
        some = [example.query for example in groups['random']]
        assert len(set(some)) == 4 and max(some) > 4
        recalls = [metrics[f'{name}/R@{k}'] / 100 * len(rows) for k in (1, 5, 10)]
        assert np.cumsum([count for *_, count in bins])[:3] == pytest.approx(recalls)
        assert bins[-1][1] == directions[name].items == len(table[0] if name == 't2v' else table)


def test_a_collapsed_model_has_the_ranks_of_chance():
    tested = Embeddings([''] * 200, torch.ones(200, 4), torch.ones(200, 4), torch.arange(200))
    bins = [(1, 1, 1), (2, 5, 4), (6, 10, 5), (11, 50, 40), (51, 100, 50), (101, 200, 100)]
    for direction in find_examples(tested, 2).values():
        assert direction.histogram() == [pytest.approx(counted) for counted in bins]
        example = direction.examples['worst'][0]
        assert example.rank == 100.5 and example.tied == 199
        assert all(hit.tied for hit in example.top)
