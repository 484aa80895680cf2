"""The benchmark of faults finds none that is silent."""

import pytest


@pytest.fixture
def table(benchmark_rows, monkeypatch, tmp_path):
    """Runs a part; gives its rows."""
    monkeypatch.chdir(tmp_path)  # from where one part goes elsewhere

    def run(*arguments):
        (header, _, *rows), _ = benchmark_rows('faults', *arguments)
        return [dict(zip(header, row, strict=True)) for row in rows]

    return run


@pytest.mark.slow
def test_damaged_videos_are_used_or_named(table):
    for row in table('videos', '--count', 12):
        assert row['neither'] == row['whole ones named'] == '0'
        assert int(row['not named, other pictures']) <= 3
        assert int(row['named']) >= int(row['named and left out']) > 0


@pytest.mark.slow
def test_damaged_annotations_are_read_or_refused(table):
    for row in table('annotations', '--count', 40):
        kinds = {kind.rstrip(' 0123456789') for kind in row['outcome'].split(', ')}
        assert kinds <= {'read', 'read with other captions', 'refused by name'}


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(table):
    for row in table('kills', '--count', 1):
        assert row['ran to the end when started again'] == '1'
        assert all(part.endswith(' 1') for part in row['equal'].split(', '))
