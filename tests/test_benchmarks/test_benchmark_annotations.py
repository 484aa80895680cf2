"""The benchmark of annotations compares what it says."""

import pytest


@pytest.mark.slow
def test_arrays_are_smaller_than_pickles(benchmark_rows):
    rows, printed = benchmark_rows('annotations', '--videos', 1000, '--captions', 30000)
    assert '30,000 captions of 1,000 videos' in printed
    assert [row[0] for row in rows[2:]] == ['ours', 'MMEngine']
    held = [float(row[2].removesuffix(' MiB')) for row in rows[2:]]
    assert held[0] < held[1]
    assert all(float(row[4].removesuffix(' MiB')) < 5 for row in rows[2:])
