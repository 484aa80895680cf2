"""benchmarks/search.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_compares_what_it_says():
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, '-m', 'benchmarks.search', '--hnsw']
    command += ['--size', '3000', '--width', '16', '--queries', '20']
    out = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert '3,000 synthetic videos of 16 numbers' in out
    assert re.search(r'IVF with 219 lists, of which \d+ are read', out)
    rows = [line.strip('| ').split(' | ') for line in out.splitlines() if line.startswith('|')][2:]
    assert [row[0] for row in rows] == ['exact', 'IVF', 'HNSW']
    for row in rows:
        assert float(row[1]) > 0 and float(row[2].rstrip('x')) > 0
        assert all(0.85 <= float(recall) <= 1 for recall in row[3:5])
    assert rows[0][2:5] == ['1x', '1.000', '1.000']
