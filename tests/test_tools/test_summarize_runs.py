"""The table, the csv and the plot of a reproduction."""

import csv
import json

import cv2
import numpy as np
import pytest
from matplotlib import pyplot

from projects.vop.errors import UserError

METRICS = ('R@1', 'R@5', 'R@10', 'MdR', 'MnR')
NAMES = [f'{direction}/{name}' for direction in ('t2v', 'v2t') for name in METRICS]


@pytest.fixture
def summarize(run_tool, capsys, tmp_path):
    """Writes results of runs, (method, lr, seed, t2v R@1 or None), and runs the tool."""

    def run(*runs, dataset='msrvtt'):
        for method, lr, seed, value in runs:
            count = 0 if lr is None else 122_880
            result = dict(dataset=dataset, method=method, setting='', lr=lr, seed=seed)
            result |= dict(trained=count, as_paper=count, sees_order=method != 'vop')
            if value is not None:  # else it diverged
                result |= {name: value + i for i, name in enumerate(NAMES)}
            folder = tmp_path / f'{method}-{lr}-{seed}'
            folder.mkdir()
            (folder / 'result.json').write_text(json.dumps(result))
        run_tool('tools/analysis/summarize_runs.py', tmp_path)
        with (tmp_path / 'results.csv').open() as file:
            return capsys.readouterr().out, list(csv.DictReader(file))

    return run


def test_the_best_rate_is_shown_with_the_paper_after_it(summarize, tmp_path):
    grid = [('vop', 1e-3, 0, 38.0), ('vop', 1e-3, 1, 41.0), ('vop', 1e-2, 0, 30.0)]
    grid += [('vop', 1e-2, 1, 30.0), ('vop', 1e-4, 0, 50.0)]  # better, but of one seed alone
    grid += [('vop', 1e30, 0, None), ('zero_shot', None, 0, 31.0)]
    output, rows = summarize(*grid)
    lines = [line.strip('|').split('|') for line in output.splitlines() if line.startswith('|')]
    lines = [[cell.strip() for cell in line] for line in lines]
    names = ['zero-shot CLIP', '*the paper*', 'VoP', '*the paper*']
    assert [line[0] for line in lines[:1] + lines[2:]] == ['method', *names]
    assert lines[2][:6] == ['zero-shot CLIP', '0', '0 (0.000%)', '', '', '31.0']
    assert lines[4][:5] == ['VoP', '122,880', '122,880 (0.103%)', '0.001', '2']
    # R@1, R@5, R@10, MnR, MdR, as the paper has them.
    numbers = [value + 5 * direction for direction in (0, 1) for value in (0, 1, 2, 4, 3)]
    assert lines[4][5:] == [f'{39.5 + number} ± 2.1' for number in numbers]
    assert lines[5][5:] == '39.6 66.7 77.8 17.2 2 42.1 68.8 80.7 12.4 2'.split()
    assert 'learning rate' in output and '1e+30' not in output
    assert output.splitlines()[4] in (tmp_path / 'results.md').read_text()
    runs = [(row['method'], row['lr'], row['seed']) for row in rows]
    rates = [('0.0001', '0'), ('0.001', '0'), ('0.001', '1'), ('0.01', '0'), ('0.01', '1')]
    assert runs == [('zero_shot', '', '0'), *(('vop', *rate) for rate in [*rates, ('1e+30', '0')])]
    assert rows[2]['t2v/R@1'] == '38.0' and rows[2]['v2t/MnR'] == '47.0'
    assert rows[-1]['t2v/R@1'] == ''
    picture = cv2.imread(str(tmp_path / 'results.png'))
    assert picture.shape[0] > 400 and picture.std() > 5


def test_other_data_sets_have_no_row_of_the_paper(summarize, tmp_path):
    output, _ = summarize(('vop', 1e-3, 0, 38.0), dataset='didemo')
    assert 'paper' not in output and '| VoP ' in output
    red = np.subtract(*np.split(cv2.imread(str(tmp_path / 'results.png')), 3, 2)[2:0:-1]) > 99
    assert 50 < red.sum() < 500  # a single point
    with pytest.raises(UserError, match='didemo, msrvtt'):
        summarize(('vop', 1e-3, 1, 38.0))


@pytest.mark.parametrize('known', [True, False])
def test_the_plot_says_which_methods_see_order(run_tool, tmp_path, monkeypatch, known):
    drawn = []
    show = pyplot.Axes.errorbar
    monkeypatch.setattr(
        pyplot.Axes, 'errorbar', lambda *args, **kw: drawn.append(kw['fmt']) or show(*args, **kw)
    )
    saved = []
    save = pyplot.Figure.savefig
    monkeypatch.setattr(
        pyplot.Figure, 'savefig', lambda self, *args, **kw: saved.append(self) or save(self, *args)
    )
    for number, method in enumerate(('vop', 'vop_p')):
        result = dict(dataset='moving_shapes', method=method, setting='', lr=0.01, seed=0)
        result |= dict(trained=10**number, as_paper=1, **dict.fromkeys(NAMES, 50.0))
        if known:
            result['sees_order'] = method == 'vop_p'
        (tmp_path / method).mkdir()
        (tmp_path / method / 'result.json').write_text(json.dumps(result))
    run_tool('tools/analysis/summarize_runs.py', tmp_path)
    [axes] = saved[0].axes
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    kinds = ['sees the order of frames', 'averages frames']
    assert drawn == (['s', 'o'] if known else ['D', 'D'])
    assert told == [*(kinds if known else []), 'ceiling of averaging frames']


def test_nothing_to_show_is_said(summarize):
    with pytest.raises(UserError, match='No run'):
        summarize()
    with pytest.raises(UserError, match='lower the learning rates'):
        summarize(('vop', 1e30, 0, None))
