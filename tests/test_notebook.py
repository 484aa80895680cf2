"""demo/vop_tutorial.ipynb, from top to bottom."""

import ast

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / 'demo/vop_tutorial.ipynb'


def test_it_is_kept_without_outputs():
    """Which would name folders of who ran it, and be of another version some day."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get('outputs') and cell.get('execution_count') is None


@pytest.mark.slow
def test_it_runs_and_learns_the_order_of_frames(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    data = [output.data for output in outputs if 'data' in output]
    assert sum('image/png' in each for each in data) == 2
    texts = [each['text/plain'] for each in data if 'image/png' not in each]
    _, both, scores = texts
    before, after = ast.literal_eval(both)
    # A model that does not see the order finds the right one of a clip and its reverse by chance.
    assert before < 50 < after
    (own, reverse), _ = ast.literal_eval(scores.removeprefix('tensor(')[:-1])
    assert abs(own - reverse) > 1e-3
    printed = ''.join(output.text for output in outputs if output.output_type == 'stream')
    assert 'Summary(added=192, ' in printed and 'Traceback' not in printed
