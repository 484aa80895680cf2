"""The benchmark compares what it says."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS = ['vop', 'vop_p', 'vop_c', 'vop_f', 'vop_fp', 'vop_fc']


def test_both_forms_compute_the_same():
    done = subprocess.run([
        sys.executable, 'tools/analysis/benchmark.py', '--clip', 'ViT-S-32',
        '--batch', '1', '--frames', '3', '--repeats', '1', '--device', 'cpu'
    ], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.strip('| ').split(' | ') for line in done.stdout.splitlines()
            if line.startswith('| vop')]
    assert [row[0] for row in rows] == METHODS
    for method, difference, *ratios in rows:
        assert float(difference) < 1e-5
        assert len(ratios) == 4
        assert all(re.fullmatch(r'\d+\.\d\dx', ratio) for ratio in ratios)
