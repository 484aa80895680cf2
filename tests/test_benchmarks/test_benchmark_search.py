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
    made, searches, updates = rows[2:5], rows[7:11], rows[13:]
    assert [row[0] for row in made] == ['IVF-Flat', 'HNSW', 'ours']
    assert [row[0] for row in searches] == ['exact', 'IVF-Flat', 'HNSW', 'ours']
    for row in searches:
        assert float(row[1]) > 0 and all(float(cell.rstrip('x')) > 0 for cell in row[3:5])
        assert all(0.85 <= float(recall) <= 1 for recall in row[5:7])
    assert searches[0][3] == searches[1][4] == '1x' and searches[0][5:7] == ['1.000', '1.000']
    assert [row[0] for row in updates] == [
        '3,000 added, 0 removed, 0 kept',
        '1,000 added, 0 removed, 3,000 kept',
        '0 added, 1,000 removed, 3,000 kept',
    ]
    for row in made + updates:
        assert float(row[1]) > 0 and float(row[2]) >= 0 and float(row[3].removesuffix(' GB')) > 0
