"""What single queries find, at other sizes than a page shows them."""

import pytest
import torch

from projects.vop.evaluation import evaluate_similarity, scores
from projects.vop.evaluation.embeddings import Embeddings
from projects.vop.report.examples import find_examples


def test_tiles_change_nothing(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    video_of_text = torch.arange(20).repeat_interleave(3)
    video = torch.randn(20, 8, generator=rng).round()
    text = video[video_of_text] + torch.randn(60, 8, generator=rng).round()
    tested = Embeddings([str(i) for i in range(20)], video, text, video_of_text)
    whole = find_examples(tested, 4)
    some = [example.query for example in whole['t2v'].examples['random']]
    assert len(set(some)) == 4 and max(some) > 4
    monkeypatch.setattr(scores, 'TILE', 7)
    for direction, tiled in find_examples(tested, 4).items():
        assert whole[direction].examples == tiled.examples
        assert whole[direction].histogram() == tiled.histogram()


def test_a_collapsed_model_has_the_ranks_of_chance():
    """All scores are the same: every rank is as likely."""
    tested = Embeddings([''] * 200, torch.ones(200, 4), torch.ones(200, 4), torch.arange(200))
    bins = [(1, 1, 1), (2, 5, 4), (6, 10, 5), (11, 50, 40), (51, 100, 50), (101, 200, 100)]
    for direction in find_examples(tested, 2).values():
        assert direction.histogram() == [pytest.approx(counted) for counted in bins]
        example = direction.examples['worst'][0]
        assert example.rank == 100.5 and example.tied == 199
        assert all(hit.tied for hit in example.top)


def test_a_video_without_captions_is_no_query():
    tested = Embeddings(['a', 'b', 'c'], torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 2]))
    found = find_examples(tested, 5)
    expected = evaluate_similarity(torch.eye(3)[:2], [0, 2], topk=[1])
    assert {example.query for example in found['v2t'].examples['random']} == {0, 2}
    assert found['t2v'].histogram()[0][2] == expected['t2v/R@1'] / 100 * 2
    assert found['v2t'].items == 2 and found['t2v'].items == 3
