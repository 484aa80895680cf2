"""``tools/test.py --report``."""

import json

import pytest
import torch
from helpers import in_two_processes

from projects.vop.errors import UserError
from projects.vop.registry import MODELS


@pytest.fixture
def config(tmp_path, retrieval_config):
    path = tmp_path / 'config.py'
    retrieval_config().dump(path)
    return path


@pytest.mark.slow
def test_the_page_has_what_was_tested(run_tool, retrieval_config, config, tmp_path, video_folder):
    model = MODELS.build(retrieval_config().model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'prompts.pth')
    (tmp_path / 'index.html').write_text('an older page')
    options = [f'--report={tmp_path}', '--report-queries=2', f'--work-dir={tmp_path / "work"}']
    changes = ['--cfg-options', 'test_dataloader.batch_size=3']
    run_tool('tools/test.py', config, tmp_path / 'prompts.pth', *options, *changes)
    html = (tmp_path / 'index.html').read_text(encoding='utf-8')
    (metrics,) = (json.loads(path.read_text()) for path in tmp_path.glob('work/*/*.json'))
    for text in (
        *(f'<data value="{metrics[key]}">' for key in ('t2v/R@1', 'v2t/MnR')),
        *(f'<dd dir="auto">{tmp_path / name}</dd>' for name in ('config.py', 'prompts.pth')),
        str(video_folder / 'test.json'),
        '<dd dir="auto">test_dataloader.batch_size=3</dd>',
        '5 videos, 15 captions',
        '2 worst of 15 queries',
        '2 random of 5 queries',
    ):
        assert text in html
    # Five of five videos for each of 6 captions, and one for each of 6 videos.
    assert html.count('<img ') == 36


@pytest.mark.slow
def test_two_processes_write_the_same_page(run_tool, config, tmp_path):
    """Five videos, in batches of 16, by one process and by two."""
    one, two = ([config, f'--report={tmp_path / n}', f'--work-dir={tmp_path}'] for n in '12')
    run_tool('tools/test.py', *one)
    in_two_processes(run_tool, 'tools/test.py', *two, '--launcher=pytorch')
    one, two = ((tmp_path / number / 'index.html').read_text() for number in '12')
    assert '<dt>Checkpoint</dt><dd dir="auto">none</dd>' in one
    assert one.split('<main')[1] == two.split('<main')[1]


@pytest.mark.parametrize('option', ['--report-queries=0', '--cfg-options=test_evaluator.type=Acc'])
def test_what_cannot_be_is_said_before_the_model_is_made(run_tool, config, tmp_path, option):
    with pytest.raises(UserError) as error:
        run_tool('tools/test.py', config, '--report', tmp_path, option, '--work-dir', tmp_path)
    assert ('num_queries' if '0' in option else 'vop.RetrievalMetric') in str(error.value)
    assert not list(tmp_path.glob('*/*.log'))
