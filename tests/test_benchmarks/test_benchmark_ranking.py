"""The benchmark of ranking compares what it says."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, 'benchmarks/ranking.py', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_both_forms_rank_the_same_and_all_are_measured():
    done = run(
        '--texts',
        '300',
        '--videos',
        '70',
        '--dim',
        '16',
        '--bank',
        '20',
        '--repeats',
        '1',
        '--device',
        'cpu',
    )
    assert done.returncode == 0, done.stderr
    rows = [
        line.strip('| ').split(' | ')
        for line in done.stdout.splitlines()
        if line.startswith('| 300 x 70')
    ]
    (_, time, memory, difference), *scaled = rows
    assert float(difference) < 1e-6
    assert [row[1] for row in scaled] == ['raw', 'dsl', 'qb_norm', 'both']
    for _, _, taken, rate, *products, memory_of_ours in scaled:
        assert float(taken) >= 0 and float(rate) > 0
        assert re.fullmatch(r'-?\d+ MiB', memory_of_ours)
        for ratio in (time, *products):
            assert re.fullmatch(r'\d+\.\d\dx', ratio)
    assert re.fullmatch(r'\d+\.\dx', memory)


def test_one_size_takes_both_numbers():
    done = run('--texts', '300')
    assert done.returncode == 2
    assert '--texts and --videos go together' in done.stderr
