"""Reading videos in worker processes, which a damaged video may crash or hang."""

import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, TimeoutError  # Python's own from 3.11 on
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log
from pebble import ProcessExpired, ProcessPool

from ..length import warn_if_cut


class VideoFrames(NamedTuple):
    """The ``path`` of a video, and its frames, uint8 of shape [f x 3 x h x w], or the error.

    An array travels whole, where a tensor is lost if its worker ends in the meantime.

    Example:
        >>> VideoFrames('a.mp4', None, 'there is no such file.').error
        'there is no such file.'
    """

    path: str
    frames: np.ndarray | None
    error: str | None = None


def read_videos(
    paths: Sequence[str],
    pipeline: Callable[[dict], dict],
    num_workers: int,
    timeout: float | None = 60,
    ahead: int = 16,
) -> Generator[VideoFrames, None, None]:
    """Read videos in worker processes; one that crashes or hangs its decoder fails alone.

    A daemonic process, such as a worker of ``multiprocessing.Pool``, may not start others. It
    reads the videos itself, with a warning.

    Args:
        paths (Sequence[str]): The videos.
        pipeline (Callable): Transforms that make ``inputs.imgs`` of ``filename``.
        num_workers (int): Worker processes; 0 reads in this process, without its protection.
        timeout (float, optional): Seconds that a worker may take for a video; None is no limit.
        ahead (int): How many videos may be read before they are asked for. It bounds the memory.

    Yields:
        VideoFrames: One per video, in order. Closing the generator ends the workers.
    """
    if num_workers and multiprocessing.current_process().daemon:
        message = 'A daemonic process reads videos itself: one that hangs or crashes stops it.'
        print_log(message, 'current', logging.WARNING)
        num_workers = 0
    if not num_workers or not paths:
        yield from (_read(path, pipeline) for path in paths)
        return
    # Threads of OpenMP do not survive a fork, and the workers share the cores.
    one_thread: dict[str, Any] = dict(initializer=torch.set_num_threads, initargs=(1,))
    # As in torch's DataLoader: a forked worker is there at once, and scripts
    # need no `if __name__ == '__main__'`. It touches neither GPU nor model.
    method = 'fork' if sys.platform == 'linux' else None
    context = multiprocessing.get_context(method)
    pool = ProcessPool(min(num_workers, len(paths)), context=context, **one_thread)
    scheduled: deque[tuple[str, Future]] = deque()
    try:
        for path in paths:
            scheduled.append((path, pool.schedule(_read, (path, pipeline), timeout=timeout)))
            if len(scheduled) > ahead:
                yield _result(*scheduled.popleft(), timeout)
        while scheduled:
            yield _result(*scheduled.popleft(), timeout)
    finally:
        pool.stop()
        pool.join()


def _read(path: str, pipeline: Callable[[dict], dict]) -> VideoFrames:
    if not os.path.isfile(path):
        return VideoFrames(path, None, 'there is no such file.')
    try:
        data = pipeline(dict(filename=path, start_index=0, modality='RGB', text=[]))
        frames = data['inputs']['imgs'].numpy()
        warn_if_cut(path)
        return VideoFrames(path, frames)
    except Exception as error:  # a damaged file can raise nearly anything
        return VideoFrames(path, None, f'{type(error).__name__}: {error}')


def _result(path: str, future: Future, timeout: float | None) -> VideoFrames:
    try:
        return future.result()
    except TimeoutError:
        return VideoFrames(path, None, f'it took longer than {timeout:g} s to read.')
    except ProcessExpired as expired:
        code = expired.exitcode
        how = f'exit code {code}' if code > 0 else f'signal {-code}, {signal.strsignal(-code)}'
        return VideoFrames(path, None, f'its decoder ended the process ({how}).')
