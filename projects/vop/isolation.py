"""Calling a function in a process of its own, which a damaged video may crash or hang."""

import ctypes
import faulthandler
import gc
import io
import itertools
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing import pool
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from .errors import ProcessFailed, UserError

# A forked process is there at once, and scripts need no `if __name__ == '__main__'`; macOS and
# Windows start one anew.
FORKS = sys.platform == 'linux'
A_WEEK = 7 * 24 * 3600  # waiting cannot take a much larger number
# Shared memory of a process, of which only what is used is allocated: 140 clips of 12 frames.
ARENA = 256 * 2**20
# A process ends that was not asked for so many seconds, as its owner may be forgotten and not gone:
# it would keep memory that the parent has changed since. The parent asks none after half of them.
IDLE = 30.0
# Starting a process is one at a time: another that is forked meanwhile would inherit its pipe,
# and hide its end.
_starting = threading.Lock()


def _forget_threads() -> None:
    global _starting
    _starting = threading.Lock()  # a thread that is not here may have held it


if FORKS:
    os.register_at_fork(after_in_child=_forget_threads)


def check_timeout(timeout: Any) -> float | None:
    """Refuse a time limit that is none.

    Raises:
        UserError: If it is neither None nor such a number of seconds.
    """
    if timeout is None or (isinstance(timeout, (int, float)) and 0 < timeout <= A_WEEK):
        return timeout
    raise UserError(
        f'timeout={timeout!r} must be a number of seconds, above 0 and a week at most, or None.'
    )


class Isolated:
    """A function in a process of its own, where it may hang, crash or be killed.

    The process is forked at the first call (on Linux; elsewhere it is started anew), serves all
    calls of a thread, and is replaced when it has failed. It must not touch a GPU. On Linux it
    ends with its parent, however that ends, and arrays and CPU tensors of the result come by
    shared memory. Daemonic processes, such as the workers of data loaders, may use it.

    Args:
        function (Callable): The function. What it returns and raises must be picklable, and so
            must it be where processes are not forked.
        timeout (float, optional): Seconds that a call may take. None is no limit.

    Raises:
        ProcessFailed: From a call that took longer, or ended its process.

    Example:
        >>> read = Isolated(pipeline, timeout=60)
        >>> data = read(dict(filename='a.mp4', start_index=0, modality='RGB'))
    """

    def __init__(self, function: Callable, timeout: float | None = None) -> None:
        self.function: Any = function
        self.timeout = timeout
        # One for each thread, as a process ends with the thread that forked it.
        self._children: dict[tuple[int, int], _Child] = {}
        self._closed = False

    def __reduce__(self) -> tuple:
        return Isolated, (self.function, self.timeout)

    def __del__(self) -> None:  # takes no lock, as it runs anywhere
        for child in self._own_children():
            child.process.kill()

    def __call__(self, *args) -> Any:
        """Call the function with these arguments."""
        key = os.getpid(), threading.get_ident()
        child = self._children.get(key)
        if child is None or not child.send(args):  # ended since the last call
            with _starting:
                child = self._children[key] = _Child(self.function)
            child.send(args)
        try:
            if self._closed:
                raise ProcessFailed('it was stopped')
            result, error = child.receive(self.timeout)
        except BaseException:  # such as KeyboardInterrupt: the next answer would be this one's
            del self._children[key]
            child.end()
            raise
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the processes; calls that other threads wait for fail."""
        self._closed = True
        for child in self._own_children():
            child.process.kill()
        for child in self._own_children():
            child.process.join(5)

    def _own_children(self) -> list['_Child']:
        """Those of this process, not of one that it was forked from."""
        return [child for (pid, _), child in list(self._children.items()) if pid == os.getpid()]


def map_isolated(
    function: Callable,
    items: Iterable,
    num_workers: int,
    timeout: float | None,
    ahead: int,
    ordered: bool = True,
) -> Generator[tuple[Any, Future], None, None]:
    """Call a function with each item, side by side, each call :class:`Isolated`.

    Args:
        function (Callable): The function, of one item.
        items (Iterable): The items.
        num_workers (int): Processes.
        timeout (float, optional): Seconds that a call may take. None is no limit.
        ahead (int): How many items may be begun before they are asked for.
        ordered (bool): Whether items come in their order. Else they come as they are done, and
            one that takes long holds none back.

    Yields:
        tuple[Any, Future]: Each item, and what gives or raises its result. Closing the
        generator ends the processes.

    Example:
        >>> for path, future in map_isolated(read, paths, num_workers=8, timeout=60, ahead=16):
        ...     print(path, future.result().shape)
    """
    call = Isolated(function, timeout)
    threads = ThreadPoolExecutor(num_workers)  # each waits for the process that it starts
    begun: dict[Future, Any] = {}

    def next_one() -> tuple[Any, Future]:
        done = begun if ordered else wait(begun, return_when=FIRST_COMPLETED).done
        future = next(iter(done))
        return begun.pop(future), future

    try:
        for item in items:
            begun[threads.submit(call, item)] = item
            if len(begun) > ahead:
                yield next_one()
        while begun:
            yield next_one()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        call.close()
        threads.shutdown()


class _Child:
    """A process that serves calls, and what its parent knows of it."""

    def __init__(self, function: Callable) -> None:
        context: Any = multiprocessing.get_context('fork' if FORKS else 'spawn')
        self.freed: list[int] = []  # where in the arena results began that nobody holds any more
        self.idle_since = time.monotonic()
        current = multiprocessing.current_process()
        daemonic = current.daemon
        try:
            self.arena: Any = mmap.mmap(-1, ARENA) if FORKS else None
            self.connection, theirs = context.Pipe()
            args = function, theirs, self.arena, os.getpid()
            self.process = context.Process(target=_serve, args=args, daemon=True)
            if daemonic:  # which could not start others, lest these stay behind: ours do not
                current.daemon = False
            self.process.start()
            theirs.close()
        except OSError as error:
            raise UserError(f'A process to read videos in cannot be started: {error}.') from error
        finally:
            if daemonic:
                current.daemon = True

    def send(self, args: tuple) -> bool:
        """Ask for a call, unless the process has ended, or is about to."""
        if time.monotonic() - self.idle_since > IDLE / 2:
            self.end()
            return False
        freed = self.freed[:]  # which other threads may add to
        del self.freed[: len(freed)]
        try:
            self.connection.send_bytes(pickle.dumps((args, freed), 5))
        except OSError:
            self.end()
            return False
        return True

    def receive(self, timeout: float | None) -> tuple[Any, Exception | None]:
        """What the call gave or raised."""
        try:
            if not self.connection.poll(timeout):
                raise ProcessFailed(f'it took longer than {timeout:g} s')
            payload, sizes, start = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise ProcessFailed(*self._why()) from None
        self.idle_since = time.monotonic()
        if start is None:
            return pickle.loads(payload, buffers=sizes)
        region = np.frombuffer(self.arena, np.uint8, sum(map(_rounded, sizes)), start)
        # Once no array of the result refers to it.
        weakref.finalize(region, self.freed.append, start)
        places = itertools.accumulate(map(_rounded, sizes), initial=0)
        buffers = [region[at : at + size] for at, size in zip(places, sizes)]
        return pickle.loads(payload, buffers=buffers)

    def _why(self) -> tuple[str, int | None]:
        with _starting:  # which looks for processes that have ended, too
            self.process.join(5)
        code = self.process.exitcode
        how = f'exit code {code}'
        if code is not None and code < 0:
            how = f'signal {-code}, {signal.strsignal(-code)}'
        if code == -getattr(signal, 'SIGKILL', 0):
            how += ', perhaps because memory ran out'
        return f'its decoder ended the process ({how})', code

    def end(self) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        self.process.join(5)  # not for ever, as a file system that hangs can keep it
        self.connection.close()


def _rounded(size: int) -> int:
    return -(-size // 64) * 64


def _serve(function: Callable, connection: Connection, arena: Any, parent: int) -> None:
    """Answer calls until there are none."""
    _end_with(parent)
    gc.freeze()  # a collection would copy memory that is shared with the parent
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork, and processes share cores
    taken: dict[int, int] = {}  # where results begin and end that the parent still holds
    while connection.poll(IDLE):
        try:
            args, freed = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        for start in freed:
            del taken[start]
        try:
            outcome = function(*args), None
        except Exception as error:
            outcome = None, _portable(error)
        try:
            answer = _pack(outcome, arena, taken)
        except Exception as error:
            message = f'What {function} returned cannot leave its process: {error}'
            answer = _pack((None, TypeError(message)), arena, taken)
        print(end='', flush=True)  # what the function printed, as this process may be killed
        connection.send_bytes(pickle.dumps(answer, 5))


def _end_with(parent: int) -> None:
    """Let this process end with its parent and as others do, not as the parent set it up."""
    faulthandler.disable()  # the parent says what happened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    for name in ('SIGTERM', 'SIGSEGV', 'SIGBUS', 'SIGFPE', 'SIGCHLD'):
        if hasattr(signal, name):  # Windows lacks some
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if FORKS:
        # The kernel ends it even where it hangs. 1 is PR_SET_PDEATHSIG.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            raise SystemExit


def _portable(error: Exception) -> Any:
    """An exception as it can be pickled, with its traceback as its cause."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f'{type(error).__name__}: {error}').with_traceback(error.__traceback__)
    return pool.ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[attr-defined]


def _pack(outcome: tuple, arena: Any, taken: dict[int, int]) -> tuple:
    """Pickle what a call gave, with arrays in the arena, or beside it where there is no room."""
    buffers: list[pickle.PickleBuffer] = []
    payload = io.BytesIO()
    _Pickler(payload, 5, buffer_callback=buffers.append).dump(outcome)
    raws = [buffer.raw() for buffer in buffers]
    total = sum(_rounded(raw.nbytes) for raw in raws)
    start = 0
    for other in sorted(taken):
        if start + total <= other:
            break
        start = taken[other]
    if arena is None or start + total > ARENA or not total:
        return payload.getvalue(), [bytearray(raw) for raw in raws], None
    taken[start] = start + total
    at = start
    for raw in raws:
        memoryview(arena)[at : at + raw.nbytes] = raw
        at += _rounded(raw.nbytes)
    return payload.getvalue(), [raw.nbytes for raw in raws], start


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose memory need not be copied into the pickle."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and not value.requires_grad:
            try:
                return torch.from_numpy, (value.numpy(),)
            except (RuntimeError, TypeError):  # sparse, bfloat16
                pass
        return NotImplemented
