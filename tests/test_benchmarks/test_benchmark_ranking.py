"""The benchmark of ranking compares what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_both_forms_rank_the_same_and_all_are_measured():
    options = '--texts 300 --videos 70 --dim 16 --bank 20 --repeats 1 --device cpu'.split()
    command = [sys.executable, 'benchmarks/ranking.py', *options]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    (ratio, memory, difference), *scaled = (
        line.strip('| ').split(' | ')[1:] for line in output.splitlines() if '300 x 70 |' in line
    )
    assert float(difference) < 1e-6
    assert [row[0] for row in scaled] == ['raw', 'dsl', 'qb_norm', 'both']
    for figure in (ratio, memory, *(x for row in scaled for x in (*row[1:-1], row[-1][:-4]))):
        assert float(figure.rstrip('x')) >= 0
