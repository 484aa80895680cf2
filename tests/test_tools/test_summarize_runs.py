"""The table, the csv and the plot of a reproduction."""

import csv
import json
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f'{way}/{name}' for way in ('t2v', 'v2t') for name in ('R@1', 'R@5', 'R@10', 'MdR', 'MnR')]


@pytest.fixture
def work_dir(tmp_path):
    """Writes results of runs; gives the folder."""

    def write(runs, dataset='msrvtt'):
        for method, lr, seed, value in runs:
            folder = tmp_path / f'{method}-{lr}-{seed}'
            folder.mkdir()
            (folder / 'result.json').write_text(
                json.dumps(
                    dict(
                        dataset=dataset,
                        method=method,
                        setting='',
                        lr=lr,
                        seed=seed,
                        trained=0 if lr is None else 122_880,
                        as_paper=0 if lr is None else 122_880,
                        **{name: value + i for i, name in enumerate(NAMES)},
                    )
                )
            )
        return tmp_path

    return write


@pytest.fixture
def report(run_tool, capsys):
    """Runs the tool; gives what it prints."""

    def report(folder):
        run_tool('tools/analysis/summarize_runs.py', folder)
        return capsys.readouterr().out

    return report


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_the_best_rate_is_shown_with_the_paper_beside_it(report, work_dir):
    folder = work_dir(
        [
            ('zero_shot', None, 0, 31.0),
            ('vop', 1e-3, 0, 38.0),
            ('vop', 1e-3, 1, 41.0),
            ('vop', 1e-2, 0, 30.0),
            ('vop', 1e-2, 1, 30.0),
            ('vop', 1e-4, 0, 50.0),  # better, but of one seed alone
        ]
    )
    output = report(folder)
    lines = [cells(line) for line in output.splitlines() if line.startswith('|')]
    assert [line[0] for line in lines] == [
        'method',
        lines[1][0],
        'zero-shot CLIP',
        '*the paper*',
        'VoP',
        '*the paper*',
    ]
    assert lines[4] == [
        'VoP',
        '122,880',
        '122,880 (0.103%)',
        '0.001',
        '2',
        '39.5 ± 2.1',
        '40.5 ± 2.1',
        '41.5 ± 2.1',
        '43.5 ± 2.1',
        '42.5 ± 2.1',
        '44.5 ± 2.1',
        '45.5 ± 2.1',
        '46.5 ± 2.1',
        '48.5 ± 2.1',
        '47.5 ± 2.1',
    ]
    assert lines[5][5:] == [
        '39.6',
        '66.7',
        '77.8',
        '17.2',
        '2',
        '42.1',
        '68.8',
        '80.7',
        '12.4',
        '2',
    ]
    assert lines[2][:6] == ['zero-shot CLIP', '0', '0 (0.000%)', '', '', '31.0']
    assert 'learning rate of each method is the one with' in output
    assert output.splitlines()[4] in (folder / 'results.md').read_text()
    with (folder / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(r['method'], r['lr'], r['seed']) for r in rows] == [
        ('zero_shot', '', '0'),
        ('vop', '0.0001', '0'),
        ('vop', '0.001', '0'),
        ('vop', '0.001', '1'),
        ('vop', '0.01', '0'),
        ('vop', '0.01', '1'),
    ]
    assert rows[2]['t2v/R@1'] == '38.0' and rows[2]['v2t/MnR'] == '47.0'
    picture = cv2.imread(str(folder / 'results.png'))
    assert picture.shape[0] > 400 and picture.std() > 5


def test_other_data_sets_have_no_row_of_the_paper(report, work_dir):
    output = report(work_dir([('vop', 1e-3, 0, 38.0)], dataset='didemo'))
    assert 'paper' not in output and '| VoP ' in output


def test_runs_that_diverged_are_in_the_csv_alone(report, work_dir):
    folder = work_dir([('vop', 1e-3, 0, 38.0), ('vop', 1e30, 0, 99.0)])
    path = folder / 'vop-1e+30-0/result.json'
    result = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in result.items() if '2' not in key}))
    output = report(folder)
    assert '1e+30' not in output and '| 38.0 ' in output
    with (folder / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]['lr'] == '1e+30' and rows[1]['t2v/R@1'] == ''
    (folder / 'vop-0.001-0/result.json').unlink()
    with pytest.raises(SystemExit, match='diverged; lower the learning rates'):
        report(folder)


def test_two_data_sets_are_not_mixed(report, work_dir):
    work_dir([('vop', 1e-3, 0, 38.0)], dataset='didemo')
    folder = work_dir([('vop', 1e-3, 1, 38.0)])
    with pytest.raises(SystemExit, match=r'2 data sets \(didemo, msrvtt\)'):
        report(folder)


def test_nothing_to_report_is_said(report, tmp_path):
    with pytest.raises(SystemExit, match='No run'):
        report(tmp_path)
