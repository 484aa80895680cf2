"""The benchmark of a GPU, as far as a CPU can."""

import copy
import json
import re

import pytest
import torch
from helpers import TINY_CLIP

from benchmarks import gpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason='where there is a GPU, run it itself'),
]


@pytest.fixture
def page(tmp_path, benchmark_rows):
    """Runs the benchmark; gives the rows of its two tables, and the page."""
    clip = copy.deepcopy(TINY_CLIP)
    clip['vision_cfg']['layers'] = 5  # of which VoP^F needs four
    (tmp_path / 'clip.json').write_text(json.dumps(clip))

    def run(*arguments):
        sizes = '--batch', 3, '--frames', 2, '--repeats', 1, '--clip', tmp_path / 'clip.json'
        try:
            benchmark_rows('gpu', *sizes, '--out', tmp_path / 'gpu.md', *arguments)
        finally:
            text = (tmp_path / 'gpu.md').read_text()
            tables = [part.splitlines() for part in text.split('\n\n') if part.startswith('|')]
            cells = [[line[2:-2].split(' | ') for line in lines] for lines in tables]
            run.found = [[dict(zip(head, row)) for row in rows] for head, _, *rows in cells], text
        return run.found

    return run


def test_the_page_has_tests_and_steps(page, monkeypatch):
    """One form of VoP^F+C finds too little memory."""

    def concatenating(encoder, frames):
        if encoder.frame_positional_embedding is not None:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')
        return concatenate(encoder, frames)

    concatenate = gpu.concatenating
    monkeypatch.setattr(gpu, 'concatenating', concatenating)
    (tests, steps), text = page()
    assert 'No GPU' in text and 'in float32' in text and 'the time was over: nothing.' in text
    assert len(tests) >= 10
    for row in tests:
        assert row['passed'] == row['failed'] == '0' and int(row['skipped']) > 0
        assert row['why'] == 'there is no GPU'
    forms = ['ours', 'concatenating', 'plain CLIP, Full']
    wanted = [(method, form) for method in ('vop', 'vop_fc') for form in forms]
    assert [(row['method'], row['form']) for row in steps] == wanted
    lost = steps.pop(4)
    assert lost['step, ms'] == 'out of memory' and lost['videos/s'] == ''
    for row in steps:
        assert float(row['videos/s']) == pytest.approx(3000 / float(row['step, ms']), rel=0.02)
        for what in ('step', 'encoding'):
            assert re.fullmatch(r'\d+\.\d\dx', row[f'{what}: form / ours'])
        assert re.fullmatch(r'\d+%', row['share of the rate'])
        assert row['memory, GiB'] == 'not measured'
    assert steps[0]['step: form / ours'] == steps[3]['step: form / ours'] == '1.00x'


def test_what_the_minutes_do_not_hold_is_named(page):
    with pytest.raises(SystemExit) as stop:
        page('--minutes', 0.001)
    (steps,), text = page.found
    assert stop.value.code == 1 and not steps
    assert 'They were stopped after 0.0 minutes' in text
    assert re.search(r'the time was over: vop on \S+clip.json, vop_fc on \S+clip.json\.', text)
