"""The benchmark of ranking compares what it says."""

import re

import pytest


@pytest.mark.slow
def test_both_forms_rank_the_same_and_all_are_measured(benchmark_rows):
    sizes = ['--texts', 300, '--videos', 70, '--dim', 16, '--bank', 20]
    rows, _ = benchmark_rows('ranking', *sizes, '--repeats', 1, '--device', 'cpu')
    (_, time, memory, difference), *scaled = [row for row in rows if row[0].startswith('300 x 70')]
    assert float(difference) < 1e-6
    assert [row[1] for row in scaled] == ['raw', 'dsl', 'qb_norm', 'both']
    for _, _, taken, rate, *products, memory_of_ours in scaled:
        assert float(taken) >= 0 and float(rate) > 0
        assert re.fullmatch(r'-?\d+ MiB', memory_of_ours)
        assert all(re.fullmatch(r'\d+\.\d\dx', ratio) for ratio in (time, *products))
    assert re.fullmatch(r'\d+\.\dx', memory)


def test_one_size_takes_both_numbers(benchmark_rows, capfd):
    with pytest.raises(SystemExit) as stop:
        benchmark_rows('ranking', '--texts', 300)
    assert stop.value.code == 2 and '--videos' in capfd.readouterr().err
