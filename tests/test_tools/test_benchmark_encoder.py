"""The benchmark of the encoder compares what it says."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS = ['vop', 'vop_p', 'vop_c', 'vop_f', 'vop_fp', 'vop_fc']


SMALL = ['--clip', 'ViT-S-32', '--frames', '3', '--device', 'cpu']


def rows(*args):
    """The rows of the table that the tool prints."""
    done = subprocess.run([
        sys.executable, 'tools/analysis/benchmark_encoder.py', *SMALL, *args
    ], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, _, *rows = [
        line.strip('| ').split(' | ') for line in done.stdout.splitlines()
        if line.startswith('|')
    ]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_both_forms_compute_the_same():
    table = rows('--batch', '1', '--repeats', '1')
    assert [row['method'] for row in table] == METHODS
    for row in table:
        assert float(row['difference']) < 1e-5
        ratios = list(row.values())[2:]
        assert all(re.fullmatch(r'\d+\.\d\dx', ratio) for ratio in ratios)
        # A frozen tower has no gradient of its weights, which would take
        # half as much again.
        assert 0.7 < float(row['operations: ours / floor'][:-1]) < 1.25


def test_memory():
    row, = rows('vop', '--batch', '8', '--memory')
    assert float(row['ours / concat'][:-1]) < 0.8
    assert float(row['peak memory of a step, GiB']) > 0.05
