"""Benchmarks that run in this process, from where they can start others."""

import importlib
import multiprocessing
import sys

import pytest

# Imported once, by the server that forks the processes of all benchmarks.
multiprocessing.set_forkserver_preload(
    [f'benchmarks.{n}' for n in ('annotations', 'encoder', 'moments', 'ranking', 'search')]
)


@pytest.fixture
def benchmark_rows(monkeypatch, capfd):  # processes that it starts print, too
    """Runs a benchmark; gives the cells of its tables, and all that it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        importlib.import_module(f'benchmarks.{name}').main()
        printed = capfd.readouterr().out
        lines = [line for line in printed.splitlines() if line.startswith('| ')]
        return [line.strip('| ').split(' | ') for line in lines], printed

    return run
