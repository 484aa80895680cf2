"""The quickstart, with less training and nothing installed."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_quickstart_compares_four_methods(tmp_path):
    python = tmp_path / 'bin' / 'python'
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\n[ "$1 $2" = "-m pip" ] && exit 0\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    arguments = ['--work-dir', tmp_path / 'runs', '--cfg-options', 'train_cfg.max_epochs=1']
    done = subprocess.run(
        ['bash', 'tools/quickstart.sh', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            VIRTUAL_ENV=sys.prefix,
            PYTHONPATH=str(ROOT),
            OMP_NUM_THREADS='1',
            PATH=f'{python.parent}:{os.environ["PATH"]}',
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / 'runs/results.csv').open() as file:
        rows = {row['method']: row for row in csv.DictReader(file)}
    assert list(rows) == ['zero_shot', 'vop', 'vop_c', 'vop_fp']
    for name in ('zero-shot CLIP', 'VoP', 'VoP^C', 'VoP^F+P'):
        assert f'| {name} ' in done.stdout
    # 6 layers of width 128 in both towers, 8 frames, 3 temporal layers.
    assert rows['zero_shot']['trained'] == '0'
    assert rows['vop']['trained'] == str(2 * 6 * 8 * 128)
    fp = (3 * (4 + 8 * 4) + 3 * 8 + 6 * 8 + 8) * 128
    assert rows['vop_fp']['trained'] == str(fp)
    assert (tmp_path / 'runs/results.png').is_file()
