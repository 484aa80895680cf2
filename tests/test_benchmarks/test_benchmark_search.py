"""benchmarks/search.py."""

import re

import pytest


@pytest.mark.slow
def test_it_compares_what_it_says(benchmark_rows):
    rows, printed = benchmark_rows(
        'search', '--hnsw', '--size', 3000, '--width', 16, '--queries', 20
    )
    assert '3,000 synthetic videos of 16 numbers' in printed
    assert re.search(r'IVF with 219 lists, of which \d+ are read', printed)
    assert [row[0] for row in rows[2:]] == ['exact', 'IVF', 'HNSW']
    for row in rows[2:]:
        assert float(row[1]) > 0 and float(row[2].rstrip('x')) > 0
        assert all(0.85 <= float(recall) <= 1 for recall in row[3:5])
    assert rows[2][2:5] == ['1x', '1.000', '1.000']
