"""The benchmark of exported encoders compares the same embeddings."""

import json

import pytest
from helpers import TINY_CLIP


@pytest.mark.slow
def test_all_forms_embed_the_same(tmp_path, benchmark_rows):
    small = {key: dict(of, layers=1) for key, of in TINY_CLIP.items() if isinstance(of, dict)}
    (tmp_path / 'clip.json').write_text(json.dumps(TINY_CLIP | small))
    arguments = ['--clip', tmp_path / 'clip.json', '--config', 'zero_shot_msrvtt', '--videos', 2]
    (header, _, *rows), _ = benchmark_rows('deployment', *arguments, '--repeats', 1, '--no-compile')
    rows = [dict(zip(header, row)) for row in rows]
    forms = ['torch', 'ONNX', 'ONNX, 8 bits']
    assert [(row['encoder'], row['form']) for row in rows] == [
        (kind, form) for kind in ('video', 'text') for form in forms
    ]
    for row in rows:
        assert float(row['least cosine with torch']) > (0.9 if '8 bits' in row['form'] else 0.9999)
        assert float(row['ms']) > 0 and row['torch takes'][-1] == 'x'
