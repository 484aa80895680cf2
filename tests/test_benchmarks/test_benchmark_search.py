"""benchmarks/search.py."""

import re

import pytest


@pytest.mark.slow
def test_it_compares_what_it_says(benchmark_rows):
    rows, printed = benchmark_rows(
        'search', '--hnsw', '--size', 3000, '--width', 16, '--queries', 20
    )
    assert '3,000 synthetic videos of 16 numbers' in printed
    assert re.search(r'IVF with 110 lists, of which \d+ are read', printed)
    searches, updates = rows[2:6], rows[8:]
    assert [row[0] for row in searches] == ['exact', 'IVF-Flat', 'ours', 'HNSW']
    for row in searches:
        assert float(row[1]) > 0 and float(row[2]) > 0 and float(row[3].rstrip('x')) > 0
        assert all(0.85 <= float(recall) <= 1 for recall in row[4:6])
    assert searches[0][4:6] == ['1.000', '1.000'] and searches[1][3] == '1x'
    assert [row[0] for row in updates] == [
        '3,000 added, 0 removed, 0 kept',
        '1,000 added, 0 removed, 3,000 kept',
        '0 added, 1,000 removed, 3,000 kept',
    ]
    assert all(float(cell.split()[0]) > 0 for row in updates for cell in row[1:])
