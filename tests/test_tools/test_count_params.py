"""The parameter counter."""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def count(*arguments, ok=True):
    done = subprocess.run(
        [sys.executable, 'tools/analysis/count_params.py', *arguments],
        cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout if ok else done.stderr


def test_json_counts_every_part():
    counts = json.loads(count('configs/vop_fc_msrvtt.py', '--json'))
    parts = {name: tuple(c.values()) for name, c in counts['parts'].items()}
    assert parts == {
        'visual.frame_positional_embedding': (12 * 768, 0),
        'visual.backbone': (0, 87_849_216),
        'visual.prompts.0': (8 * 4 * 768, 0),
        'visual.prompts.1': (9_449_472 + 4_721_664, 0),
        'visual.prompts.2': (4 * 8 * 768, 0),
        'text.backbone': (0, 63_428_096),
        'text.prompts.0': (12 * 8 * 512, 0)
    }
    assert counts['trained'] == 14_278_656
    assert counts['frozen'] == 151_277_312


def test_the_table_follows_cfg_options():
    output = count('configs/adapter_ffn_didemo.py', '--cfg-options',
                   'model.text.adapters.0.hidden=1')
    lines = [line.split() for line in output.splitlines()]
    assert ['visual.adapters.0', '1,189,632', '0'] in lines
    assert ['text.adapters.0', f'{12 * (2 * 512 + 1 + 512):,}', '0'] in lines


def test_the_paper_column_is_exact():
    output = count('--paper')
    rows = {}
    for line in output.splitlines()[2:]:
        name, printed, counted, trained = (
            cell.strip() for cell in line.strip('|').split('|'))
        rows[name] = printed, counted, trained
    assert len(rows) == 15
    assert rows['Bias'] == ('0.1M (0.104%)', '124,928 (0.104%)', '171,008')
    assert rows['VoP^C'] == ('14.3M (11.898%)', '14,257,152 (11.898%)',
                             '14,257,152')
    assert rows['VoP^F+C'] == ('14.1M (11.785%)', '14,269,440 (11.908%)',
                               '14,278,656')


def test_bad_input_is_refused():
    assert 'no config configs/vop_q.py' in count('configs/vop_q.py', ok=False)
    assert 'either a config or --paper' in count(ok=False)
    assert 'no layers 1 to 13' in count(
        'configs/vop_msrvtt.py', '--cfg-options',
        'model.text.prompts.0.layers=(1,13)', ok=False)
