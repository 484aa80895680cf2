"""Reading videos side by side, in processes which a damaged video may crash or hang."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np

from ..damage import signs_of_damage, warn_of_damage
from ..errors import VideoReadError, reason_or_raise
from ..fileio import as_file, why_no_file
from ..isolation import FORKS, map_isolated


class VideoFrames(NamedTuple):
    """The ``path`` of a video, and its frames, uint8 of shape [f x 3 x h x w], or the error.

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

    Args:
        paths (Sequence[str]): The videos.
        pipeline (Callable): Transforms that make ``inputs.imgs`` of ``filename``.
        num_workers (int): Worker processes. 0 reads a video when it is asked for: in one worker on
            Linux, elsewhere in this process, without its protection.
        timeout (float, optional): Seconds that a worker may take for a video; None is no limit.
        ahead (int): How many videos may be read before they are asked for. It bounds the memory.

    Yields:
        VideoFrames: One per video, in order. Closing the generator ends the workers.
    """
    if not num_workers and not FORKS:
        for path in paths:
            yield _video(path, partial(_read, pipeline, False, path))
        return
    workers = max(1, min(num_workers, len(paths)))
    read = partial(_read, pipeline, True)
    ahead = ahead if num_workers else 0
    with closing(map_isolated(read, paths, workers, timeout, ahead)) as videos:
        for path, future in videos:
            yield _video(path, future.result)


def _read(pipeline: Callable, alone: bool, path: str) -> tuple[np.ndarray, list[str]]:
    if reason := why_no_file(path):
        raise VideoReadError(reason)
    with signs_of_damage(path, alone) as signs:
        data = pipeline(dict(filename=as_file(path), start_index=0, modality='RGB', text=[]))
    return data['inputs']['imgs'].numpy(), signs


def _video(path: str, get: Callable) -> VideoFrames:
    try:
        frames, signs = get()
    except Exception as error:
        return VideoFrames(path, None, f'{reason_or_raise(error, path)}.')
    warn_of_damage(path, signs)
    return VideoFrames(path, frames)
