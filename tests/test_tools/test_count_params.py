"""tools/analysis/count_params.py."""

import json
from pathlib import Path

import open_clip
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def count(run_tool, monkeypatch, capsys):
    """Runs the tool; gives what it prints."""
    monkeypatch.chdir(ROOT)

    def count(*arguments):
        run_tool('tools/analysis/count_params.py', *arguments)
        return capsys.readouterr().out

    return count


def test_json_counts_every_part(count):
    counts = json.loads(count('configs/vop_fc_msrvtt.py', '--json'))
    parts = {name: tuple(c.values()) for name, c in counts['parts'].items()}
    assert parts == {
        'visual.frame_positional_embedding': (12 * 768, 0),
        'visual.backbone': (0, 87_849_216),
        'visual.prompts.0': (8 * 4 * 768, 0),
        'visual.prompts.1': (9_449_472 + 4_721_664, 0),
        'visual.prompts.2': (4 * 8 * 768, 0),
        'text.backbone': (0, 63_428_096),
        'text.prompts.0': (12 * 8 * 512, 0),
    }
    assert counts['trained'] == 14_278_656
    assert counts['frozen'] == 151_277_312


def test_recognizers_of_mmaction2_are_counted(count):
    counts = json.loads(count('configs/mix/vop_recognizer_kinetics400.py', '--json'))
    parts = {name: tuple(c.values()) for name, c in counts['parts'].items()}
    assert parts == {
        'backbone.frame_positional_embedding': (8 * 768, 0),
        'backbone.backbone': (0, 87_849_216),
        'backbone.prompts.0': (8 * 4 * 768, 0),
        'backbone.prompts.1': (8 * 8 * 4 * 768, 0),
        'backbone.prompts.2': (4 * 8 * 768, 0),
        'cls_head.fc_cls': (400 * 513, 0),
    }


def test_the_released_model_is_counted(count):
    counts = json.loads(count('vop_msrvtt_released', '--json'))
    assert (counts['trained'], counts['frozen']) == (122_880, 151_277_312)


def test_the_table_follows_cfg_options(count):
    output = count(
        'configs/adapter_ffn_didemo.py', '--cfg-options', 'model.text.adapters.0.hidden=1'
    )
    lines = [line.split() for line in output.splitlines()]
    assert ['visual.adapters.0', '1,189,632', '0'] in lines
    assert ['text.adapters.0', f'{12 * (2 * 512 + 1 + 512):,}', '0'] in lines


@pytest.mark.slow
def test_the_paper_column_is_exact(count):
    output = count('--paper')
    rows = {}
    for line in output.splitlines()[2:]:
        name, printed, counted, trained = (cell.strip() for cell in line.strip('|').split('|'))
        rows[name] = printed, counted, trained
    assert len(rows) == 16
    assert rows['LoRA (not in the paper)'] == ('', '491,520 (0.410%)', '491,520')
    assert rows['Bias'] == ('0.1M (0.104%)', '124,928 (0.104%)', '171,008')
    assert rows['VoP^C'] == ('14.3M (11.898%)', '14,257,152 (11.898%)', '14,257,152')
    assert rows['VoP^F+C'] == ('14.1M (11.785%)', '14,269,440 (11.908%)', '14,278,656')


def test_wrong_input_ends_it(count, capsys):
    with pytest.raises(ValueError, match='1 to 13'):
        count('configs/vop_msrvtt.py', '--cfg-options', 'model.text.prompts.0.layers=(1,13)')
    with pytest.raises(SystemExit):
        count()
    assert '--paper' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        count('--paper', '--clips')
    with pytest.raises(SystemExit):
        count('configs/mix/vop_recognizer_kinetics400.py', '--clips')
    assert '--clips replaces model.clip' in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_of_clips_lists_every_one_that_can_be_prompted(count):
    page = (ROOT / 'docs/models/clips.md').read_text()
    rows = json.loads(count('configs/vop_msrvtt.py', '--clips', '--json'))
    # Not those that other tests have added.
    own = {file.stem for file in Path(open_clip.__file__).parent.glob('model_configs/*.json')}
    rows = [row for row in rows if row['name'] in own]
    refused = {row['name']: row['refused'] for row in rows if 'refused' in row}
    names = [row['name'] for row in rows if row['name'] not in refused]
    table = page[page.index('| CLIP | pixels') :].splitlines()[2:]
    assert [line.split(' | ')[0].strip('| ') for line in table] == names
    for row, line in zip((row for row in rows if row['name'] in names), table, strict=True):
        assert f'| {row["pixels"]} | {row["layers"]} x {row["width"]} |' in line
        assert f'| {row["tokens"]} |' in line and f'| {row["trained"]:,} |' in line
    for name in own:
        family = 'PE-Core SigLIP EVA CLIPA MobileCLIP-B MobileCLIP2-B MobileCLIP2-L'.split()
        if any(part in name for part in family):
            assert name in names
    for part in 'RN50 convnext Swin FastVit ViTamin xlm-roberta coca'.split():
        reasons = {name: reason for name, reason in refused.items() if part in name + reason}
        assert reasons and all('cannot be prompted: ' in reason for reason in reasons.values())
