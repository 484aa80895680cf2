"""benchmarks/moments.py."""

import pytest


@pytest.mark.slow
def test_it_compares_what_it_says(benchmark_rows):
    rows, printed = benchmark_rows('moments', '--minutes', 0.5, '--repeats', 1)
    assert '5 windows of 10 s, one each 5 s, in 30 s' in printed
    assert 'Both sides read the same frames.' in printed
    assert [row[0] for row in rows[2:4]] == ['reading alone', 'with a small CLIP']
    for row in rows[2:4]:
        assert all(float(cell.removesuffix(' s')) > 0 for cell in row[1:3])
        assert all(float(cell.removesuffix('x')) > 0 for cell in row[3:])
    assert [row[:2] for row in rows[6:]] == [['30 s', '5'], ['120 s', '23']]
