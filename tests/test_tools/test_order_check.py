"""tools/analysis/order_check.py."""

import json

import pytest
import torch
from helpers import ROOT
from mmengine.config import Config

from projects.vop.errors import UserError
from projects.vop.models import TextEncoder, VideoEncoder

TOOL = 'tools/analysis/order_check.py'


@pytest.fixture
def check(run_tool, retrieval_config, tmp_path, monkeypatch, capsys):
    """Runs the tool on a method; gives its rows by data set."""
    monkeypatch.chdir(ROOT)

    def run(*arguments, method='vop', **model):
        torch.manual_seed(0)
        config = retrieval_config(method, **model)
        path = tmp_path / 'config.py'
        config.dump(path)
        run_tool(TOOL, path, '--clips', 24, '--json', *arguments)
        rows = json.loads(capsys.readouterr().out)
        return {row['data']: row for row in rows}

    return run


def test_a_model_that_averages_frames_does_not_see_order(check):
    rows = check('--data')
    for row in rows.values():
        assert row['recall'] == 50 and row['cosine'] == pytest.approx(1)
        assert row['largest_difference_of_embeddings'] < 1e-5 and row['difference'] < 1e-3
        assert 'does not see the order' in row['verdict']
    assert (rows['MovingShapes']['clips'], rows['MovingShapes']['captions']) == (24, 24)
    low, high = rows['MovingShapes']['interval']
    assert low == pytest.approx(31.4, abs=0.1) and high == pytest.approx(68.6, abs=0.1)
    # Five clips, whose three captions each say the same.
    assert (rows['the test data']['clips'], rows['the test data']['captions']) == (5, 15)
    assert rows['the test data']['interval'] == pytest.approx([17.0, 83.0], abs=0.1)


def test_an_untrained_model_of_order_does_no_better_than_chance(check):
    row = check(
        method='vop_fp',
        visual=dict(
            type='vop.VideoEncoder',
            num_frames=4,
            temporal_layers=1,
            prompts=[dict(type='vop.PositionPrompt', length=4, init_std=1.0)],
        ),
    )['MovingShapes']
    assert row['largest_difference_of_embeddings'] > 1e-3 and row['difference'] > 1e-3
    assert row['interval'][0] <= 50 <= row['interval'][1]
    assert 'no better than chance' in row['verdict']


@pytest.mark.parametrize('word', ['from', 'to'])
def test_a_model_that_sees_order_is_told_from_chance(check, monkeypatch, word):
    """One that reads where the shape of the first frame is, and in captions where it starts.

    Or where it ends, by mistake.
    """

    def see(self, frames):
        first = frames[:, :1].mean(2)  # brightness
        bright = first - first.amin((2, 3), keepdim=True)
        bright = bright / bright.sum((2, 3), keepdim=True)
        steps = torch.linspace(-1, 1, frames.shape[-1])
        x, y = (bright.sum(2) * steps).sum(2), (bright.sum(3) * steps).sum(2)
        known = torch.stack([x, y], -1)
        return torch.nn.functional.pad(known, (0, 30)).expand(-1, frames.shape[1], -1)

    def read(self, tokens):
        starts = dict(left=(-1, 0), right=(1, 0), top=(0, -1), bottom=(0, 1))
        tokenize = SimpleTokenizer()
        embeddings = torch.zeros(len(tokens), 32)
        for row, ids in zip(embeddings, tokens.tolist()):
            words = tokenize.decode(ids).split()
            row[:2] = torch.tensor(starts[words[words.index(word) + 2]])
        return embeddings

    from open_clip import SimpleTokenizer

    monkeypatch.setattr(VideoEncoder, 'forward', see)
    monkeypatch.setattr(TextEncoder, 'forward', read)
    row = check()['MovingShapes']
    if word == 'from':
        assert row['recall'] > 90 and row['interval'][0] > 50
        assert 'It sees the order of frames:' in row['verdict']
    else:
        assert row['recall'] < 10 and row['interval'][1] < 50
        assert 'captions of the opposite' in row['verdict']


def test_the_table_and_wrong_input(run_tool, retrieval_config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    config: Config = retrieval_config('vop')
    config.dump(tmp_path / 'config.py')
    run_tool(TOOL, tmp_path / 'config.py', '--clips', 2)
    sentence, _, head, _, row = capsys.readouterr().out.splitlines()
    assert sentence.startswith('It does not see') and head.startswith('| data | clips |')
    assert row.startswith('| MovingShapes | 2 | 1.000000 |')
    run_tool(TOOL, tmp_path / 'config.py', '--clips', 1)
    assert '| MovingShapes | 1 | 1.000000 | - | 50.0 |' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_tool(TOOL, tmp_path / 'config.py', '--clips', 0)
    config.test_dataloader.dataset.ann_file = 'none.json'
    config.dump(tmp_path / 'config.py')
    with pytest.raises(UserError, match='none.json'):
        run_tool(TOOL, tmp_path / 'config.py', '--clips', 2, '--data')
