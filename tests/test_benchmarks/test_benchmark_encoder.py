"""The benchmark of the encoder compares what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METHODS = ['vop', 'vop_p', 'vop_c', 'vop_f', 'vop_fp', 'vop_fc']
# Large enough for its matrix products to be most of its operations.
SMALL_CLIP = dict(
    embed_dim=128,
    quick_gelu=True,
    vision_cfg=dict(image_size=224, patch_size=32, layers=8, width=256),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=1),
)


@pytest.fixture
def rows(tmp_path):
    """Runs the tool; gives the rows of the table that it prints."""
    clip = tmp_path / 'small-clip.json'
    clip.write_text(json.dumps(SMALL_CLIP))

    def rows(*args):
        done = subprocess.run(
            [
                sys.executable,
                'benchmarks/encoder.py',
                '--clip',
                clip,
                '--frames',
                '3',
                '--device',
                'cpu',
                *args,
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        header, _, *rows = [
            line.strip('| ').split(' | ')
            for line in done.stdout.splitlines()
            if line.startswith('|')
        ]
        return [dict(zip(header, row, strict=True)) for row in rows]

    return rows


@pytest.mark.slow
def test_both_forms_compute_the_same(rows):
    table = rows('--batch', '1', '--repeats', '1')
    assert [row['method'] for row in table] == METHODS
    for row in table:
        assert float(row['difference']) < 1e-5
        ratios = list(row.values())[2:]
        assert all(re.fullmatch(r'\d+\.\d\dx', ratio) for ratio in ratios)
        # A frozen tower has no gradient of its weights, which would take
        # half as much again.
        assert 0.7 < float(row['operations: ours / floor'][:-1]) < 1.25


@pytest.mark.slow
def test_memory(rows):
    (row,) = rows('vop', '--batch', '8', '--memory')
    assert float(row['ours / concat'][:-1]) < 0.8
    assert float(row['peak memory of a step, GiB']) > 0.05
