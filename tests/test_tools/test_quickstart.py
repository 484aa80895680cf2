"""The quickstart, with less training."""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_what_the_runs_measured(tmp_path):
    done = subprocess.run([
        sys.executable, 'tools/quickstart.py', '--epochs', '1', '--work-dir',
        str(tmp_path)
    ], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split('|')]
        if len(cells) == 12 and re.fullmatch(r'[\d,]+', cells[1]):
            rows[cells[0]] = cells[1:]
    assert list(rows) == ['zero-shot CLIP', 'VoP', 'VoP^C', 'VoP^F+P']
    # 6 layers of width 128 in both towers, 8 frames, 3 temporal layers.
    assert rows['zero-shot CLIP'][0] == '0'
    assert rows['VoP'][0] == f'{2 * 6 * 8 * 128:,}'
    fp = (3 * (4 + 8 * 4) + 3 * 8 + 6 * 8 + 8) * 128
    assert rows['VoP^F+P'][0] == f'{fp:,}'
    for method, folder in (('zero-shot CLIP', 'zero_shot'), ('VoP', 'vop'),
                           ('VoP^C', 'vop_c'), ('VoP^F+P', 'vop_fp')):
        logged = [
            json.loads(line) for path in (tmp_path / folder).rglob('*.json')
            for line in path.read_text().splitlines()
        ]
        logged = next(r for r in reversed(logged) if 't2v/R@1' in r)
        assert rows[method][1:] == [
            f'{logged[f"{way}/{name}"]:.1f}' for way in ('t2v', 'v2t')
            for name in ('R@1', 'R@5', 'R@10', 'MdR', 'MnR')
        ]
