"""What several benchmarks share: timing, processes of their own, and tables."""

import multiprocessing
import time
from collections.abc import Callable, Sequence

import torch


def timed(function: Callable, *args) -> float:
    """Seconds that a call takes, on a GPU until its work is done."""
    _synchronize()
    start = time.perf_counter()
    function(*args)
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def run_in_process(function: Callable, *args):
    """Call a function in a new process, whose memory is its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, args)


def print_row(cells: Sequence[str], header: bool = False) -> None:
    """Print a row of a Markdown table, with the rule below if it is the header."""
    print('| ' + ' | '.join(cells) + ' |', flush=True)
    if header:
        print_row(['---'] * len(cells))
