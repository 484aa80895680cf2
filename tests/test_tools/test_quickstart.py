"""The quickstart, with less training and nothing installed."""

import csv
import shutil
import sys

import pytest
from helpers import ROOT, run, save_clip

# Installs nothing, and notes what else it is asked to do.
PYTHON = r"""#!/bin/sh
case "$*" in -c* | -m\ pip* | pip*) exit ;; esac
echo "$@" >> "$LOG"
exec "$FORKED_PYTHON" "$@"
"""


@pytest.mark.slow
def test_the_quickstart_compares_four_methods(forked_python, tmp_path):
    python, log = tmp_path / 'bin/python', tmp_path / 'log'
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    (python.parent / 'uv').symlink_to(python)
    (tmp_path / 'bash_env').write_text(f'PATH={python.parent}:$PATH\n')
    for folder in ('tools', 'configs'):  # so that it makes its data elsewhere
        shutil.copytree(ROOT / folder, tmp_path / folder)
    # To train the small CLIP takes a minute: here it is there.
    data = tmp_path / 'data/moving_shapes'
    save_clip(ROOT / 'configs/moving_shapes/moving-shapes-clip.json', data / 'clip.pt')
    (data / 'clip_settings.json').write_text('{"steps": 200, "seed": 0}')
    # Of the four, two are run here.
    arguments = ['--methods', 'zero_shot', 'vop_fp', '--cfg-options', 'train_cfg.max_epochs=1']
    env = dict(VIRTUAL_ENV=sys.prefix, LOG=str(log), FORKED_PYTHON=forked_python)
    env['BASH_ENV'] = str(tmp_path / 'bash_env')
    command = ['bash', tmp_path / 'tools/quickstart.sh', '--work-dir', tmp_path / 'runs']
    printed = run(*command, *arguments, **env)
    assert '--methods zero_shot vop vop_c vop_fp ' in log.read_text()
    with (tmp_path / 'runs/results.csv').open() as file:
        rows = {row['method']: row for row in csv.DictReader(file)}
    assert rows.keys() == {'zero_shot', 'vop_fp'} and rows['zero_shot']['trained'] == '0'
    # 4 layers of width 64 in both towers, 8 frames, 2 temporal layers.
    trained = (2 * (4 + 8 * 4) + 2 * 8 + 4 * 8 + 8) * 64
    assert rows['vop_fp']['trained'] == str(trained) and '| VoP^F+P ' in printed
    assert (tmp_path / 'runs/results.png').is_file()
