"""Functions that hang, crash, and end their process."""

import ast
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

from projects.vop import isolation
from projects.vop.errors import ProcessFailed, UserError
from projects.vop.isolation import Isolated, map_isolated


class Stubborn(Exception):
    """Can be pickled, and not be made of its pickle."""

    def __init__(self, one, two):
        super().__init__(f'{one} {two}')


def fail(kind, *args):
    raise kind(*args)


ACTS = dict(
    pid=os.getpid,
    rows=lambda n, *shape: dict(a=np.full(shape, n), t=torch.full(shape, n), name=str(n)),
    odd=lambda n: ODD[n],
    hang=lambda: time.sleep(60),
    # Keeps the interpreter's lock, so that no other thread of its process can act.
    hang_in_c=lambda: ctypes.PyDLL(None).sleep(60),
    crash=lambda: ctypes.string_at(0),
    kill=lambda: os.kill(os.getpid(), signal.SIGKILL),
    terminate=lambda: os.kill(os.getpid(), signal.SIGTERM),
    exit=lambda: sys.exit(3),
    leave=lambda: os.execvp('true', ['true']),
    error=lambda: fail(KeyError, 'a key'),
    stubborn=lambda: fail(Stubborn, 'one', 'two'),
    function=lambda: lambda: 0,
)
ODD = [
    torch.ones(3, dtype=torch.bfloat16),
    torch.eye(3).to_sparse(),
    torch.arange(24).reshape(4, 6)[:, ::2],
    torch.ones(2, requires_grad=True),
    torch.empty(0, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array(3.5),
    None,
]


def act(name, *args):
    return ACTS[name](*args)


@pytest.fixture
def isolated():
    with closing(Isolated(act, timeout=60)) as call:
        yield call


def holds(result, n):
    return bool(np.all(result['a'] == n) and (result['t'] == n).all() and result['name'] == str(n))


@pytest.mark.parametrize('arena', [isolation.ARENA, 60_000, 100])
def test_results_stay_what_they_are(isolated, arena, monkeypatch):
    """In memory that is used again, and where there is too little of it."""
    monkeypatch.setattr(isolation, 'ARENA', arena)
    held = [isolated('rows', n, 3, 500) for n in range(5)]
    for n in range(5, 20):
        assert holds(isolated('rows', n, 3, 500), n)
    del held[::2]
    held += [isolated('rows', n, 2, 400) for n in (1, 3)]
    assert all(holds(result, n) for result, n in zip(held, (1, 3, 1, 3), strict=True))
    held[0]['t'] += 1  # can be written to, and no other is
    assert holds(held[2], 1) and not holds(held[0], 1)


def test_whatever_a_result_is_made_of(isolated):
    for n, value in enumerate(ODD):
        assert repr(isolated('odd', n)) == repr(value)


REASONS = dict(
    hang='longer than 1 s',
    hang_in_c='longer than 1 s',
    crash='signal 11, Segmentation fault',
    kill='signal 9, Killed, perhaps because memory ran out',
    terminate='signal 15',
    exit='exit code 3',
    leave='exit code 0',
)


@pytest.mark.slow
@pytest.mark.parametrize('name', REASONS)
def test_a_process_that_failed_is_replaced(isolated, name):
    first = isolated('pid')
    assert first == isolated('pid') != os.getpid()
    if name.startswith('hang'):
        isolated.timeout = 1
    with pytest.raises(ProcessFailed, match=REASONS[name]):
        isolated(name)
    isolated.timeout = 60
    assert first != isolated('pid')
    assert not Path(f'/proc/{first}').exists()
    second = isolated('pid')
    os.kill(second, signal.SIGKILL)  # while it waits, which is no fault of a video
    os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
    assert holds(isolated('rows', 3, 2), 3)


def test_errors_are_those_of_the_function(isolated):
    before = isolated('pid')
    with pytest.raises(KeyError, match='a key') as error:
        isolated('error')
    assert 'in fail' in str(error.value.__cause__)  # the line that it was raised in
    with pytest.raises(RuntimeError, match='Stubborn: one two'):
        isolated('stubborn')
    with pytest.raises(TypeError, match='cannot leave its process'):
        isolated('function')
    assert isolated('pid') == before
    for timeout in (0, -1, float('nan'), float('inf'), '60', [1]):
        with pytest.raises(UserError, match='timeout='):
            isolation.check_timeout(timeout)


def test_an_answer_that_nobody_waited_for_is_not_taken_for_another(isolated):
    isolated('pid')
    ring = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    ring.start()
    with pytest.raises(KeyboardInterrupt):
        isolated('hang')
    assert holds(isolated('rows', 3, 2), 3)


@pytest.mark.slow
def test_a_process_ends_that_is_forgotten(isolated, monkeypatch):
    monkeypatch.setattr(isolation, 'IDLE', 4)
    first = isolated('pid')
    assert isolated('pid') == first
    time.sleep(2.1)  # it is about to end, so it is asked no more
    second = isolated('pid')
    assert second != first
    deadline = time.time() + 30
    while multiprocessing.active_children():
        assert time.time() < deadline
        time.sleep(0.02)
    assert isolated('pid') not in (first, second)


def test_many_threads(isolated):
    with closing(map_isolated(act_on, range(40), num_workers=4, timeout=9, ahead=8)) as results:
        assert all(holds(future.result(), n) for n, future in results)
    begun = map_isolated(act_on, range(40), num_workers=2, timeout=60, ahead=2)
    next(begun)
    begun.close()
    assert not multiprocessing.active_children()


def act_on(n):
    return act('rows', n, 3, 500)


@pytest.mark.slow
def test_where_processes_are_not_forked(monkeypatch):
    monkeypatch.setattr(isolation, 'FORKS', False)
    with closing(Isolated(eval, timeout=60)) as call:
        assert call('__import__("numpy").arange(5)').tolist() == list(range(5))
        with pytest.raises(ProcessFailed, match='signal 6'):
            call('__import__("os").abort()')


def hang_in_child(connection):
    call = Isolated(act)
    connection.send(call('pid'))
    call('hang_in_c')


@pytest.mark.slow
def test_it_ends_with_its_parent():
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe()
    parent = context.Process(target=hang_in_child, args=[theirs])
    parent.start()
    child = Path('/proc', str(ours.recv()))
    time.sleep(0.3)
    assert child.exists()
    parent.kill()
    parent.join()
    deadline = time.time() + 10
    while child.exists():
        assert time.time() < deadline
        time.sleep(0.02)


# What Python has on Unix alone.
MODULES = {'fcntl', 'grp', 'posix', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'}
NAMES = {'fork', 'register_at_fork', 'sched_getaffinity', 'mkfifo', 'getuid', 'SIGKILL', 'SIGCHLD'}
GUARDS = ('FORKS', 'hasattr', 'os.name', 'sys.platform')


def unguarded(tree):
    """Uses of what Windows lacks, but for those after a look at where this runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.If, ast.IfExp)) and any(
            guard in ast.unparse(node.test) for guard in GUARDS
        ):
            continue
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node.lineno
        names = [alias.name for alias in getattr(node, 'names', ()) if isinstance(alias, ast.alias)]
        if MODULES & {*names, getattr(node, 'module', None)}:
            yield node.lineno
        yield from unguarded(node)


@pytest.mark.parametrize('path', sorted((ROOT / 'projects/vop').rglob('*.py')), ids=str)
def test_the_package_can_be_imported_on_windows(path):
    assert not list(unguarded(ast.parse(path.read_text())))


def test_that_test():
    for bad in ('import fcntl', 'from os import path\nos.fork()', 'def f():\n    import pwd'):
        assert list(unguarded(ast.parse(bad)))
    assert not list(unguarded(ast.parse('if FORKS:\n    os.fork()')))
