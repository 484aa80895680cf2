"""Reading videos side by side, in processes which a damaged video may crash or hang."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..damage import header_duration, signs_of_damage, warn_of_damage
from ..errors import ProcessFailed, UserError, VideoReadError, reason_or_raise
from ..fileio import as_file, why_no_file
from ..isolation import FORKS, map_isolated

PICTURES = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP')  # Pillow starts Ghostscript for others
PIECE = 32  # windows of a video that a worker reads at a time, as all of a film fill the memory


class VideoFrames(NamedTuple):
    """The frames of a video or of a window of it, or why they cannot be read.

    Attributes:
        path (str): The video.
        frames (np.ndarray, optional): uint8 of shape [f x 3 x h x w].
        error (str, optional): The reason, in place of ``frames``.
        start (float): When they begin, in seconds.
        end (float): When they end; nan if a whole video does not say how long it is.
        is_last (bool): Whether no other window of the video follows.

    Example:
        >>> VideoFrames('a.mp4', None, 'there is no such file.').error
        'there is no such file.'
    """

    path: str
    frames: np.ndarray | None
    error: str | None = None
    start: float = 0
    end: float = math.nan
    is_last: bool = True


class Windows(NamedTuple):
    """Windows of a video: one of ``length`` seconds begins each ``stride`` seconds.

    The last one ends with the video, and is half a stride shorter or longer at most.

    Example:
        >>> Windows(10, 5).spans(21.0)
        [(0, 10), (5, 15), (10, 21.0)]
    """

    length: float
    stride: float

    def check(self) -> 'Windows':
        """Give these windows, or refuse what are none.

        Raises:
            UserError: If they are not finite, not above 0, or leave out parts of a video.
        """
        if 0 < self.stride <= self.length < math.inf:
            return self
        raise UserError(f'{self} must be seconds above 0, and the stride no longer.')

    def spans(self, duration: float) -> list[tuple[float, float]]:
        """Begin and end of each window of a video that lasts ``duration`` seconds."""
        last = max(0, math.floor((duration - self.length) / self.stride + 0.5))
        starts = [number * self.stride for number in range(last + 1)]
        return [*((start, start + self.length) for start in starts[:-1]), (starts[-1], duration)]


def read_videos(
    paths: Sequence[str],
    pipeline: Callable[[dict], dict],
    num_workers: int,
    timeout: float | None = 60,
    ahead: int = 16,
    windows: Windows | None = None,
) -> Generator[VideoFrames, None, None]:
    """Read videos in worker processes; one that crashes or hangs its decoder fails alone.

    Args:
        paths (Sequence[str]): The videos.
        pipeline (Callable): Transforms that make ``inputs.imgs`` of ``filename``. For windows a
            ``Compose`` with ``DecordInit``, ``vop.TimeWindow`` and ``DecordDecode``.
        num_workers (int): Worker processes. 0 reads a video when it is asked for: in one worker on
            Linux, elsewhere in this process, without its protection.
        timeout (float, optional): Seconds that a worker may take for a video, or for 32 windows
            of it; None is no limit.
        ahead (int): How many videos may be read before they are asked for, or 32 windows each. It
            bounds the memory.
        windows (Windows, optional): Read windows of each video. It is decoded in order and once,
            but for what two windows share that are 32 apart.

    Yields:
        VideoFrames: One per video, in order, or one per window; for a video that cannot be read
        to its end, the last one is the error. Closing the generator ends the workers.

    Raises:
        UserError: If the pipeline cannot read windows.
    """
    isolated = bool(num_workers) or FORKS
    read = _Reader(pipeline, windows, isolated)
    failed: set[str] = set()
    pieces = _pieces(paths, windows, timeout, ahead, failed)
    if not isolated:
        done = ((piece, lambda piece=piece: read(piece)) for piece in pieces)
        yield from _in_order(done, failed)
        return
    workers = max(1, min(num_workers, len(paths)) if windows is None else num_workers)
    ahead = ahead if num_workers else 0
    with closing(map_isolated(read, pieces, workers, timeout, ahead)) as results:
        yield from _in_order(((piece, future.result) for piece, future in results), failed)


Piece = tuple[str, int, int | None]  # a video, and its windows from and to


def _pieces(
    paths: Iterable[str],
    windows: Windows | None,
    timeout: float | None,
    ahead: int,
    failed: set[str],
) -> Iterator[Piece]:
    """Divide videos by what their headers say; the last piece goes as far as there is video."""
    if windows is None:
        yield from ((path, 0, None) for path in paths)
        return
    with closing(map_isolated(header_duration, paths, 1, timeout, ahead)) as durations:
        for path, future in durations:
            try:
                duration = future.result()
            except ProcessFailed:  # reading it says why
                duration = math.nan
            count = 1 if math.isnan(duration) else len(windows.spans(duration))
            for first in range(0, count, PIECE):
                if path not in failed:
                    yield path, first, first + PIECE if first + PIECE < count else None


def _in_order(results: Iterable[tuple[Piece, Callable]], failed: set[str]) -> Iterator[VideoFrames]:
    """Turn the result of each piece into frames, of which the last of a video is known."""
    held: VideoFrames | None = None
    for (path, _, stop), get in results:
        if path in failed:
            continue
        try:
            windows, signs = get()
        except Exception as error:
            failed.add(path)
            clips = [VideoFrames(path, None, f'{reason_or_raise(error, path)}.')]
        else:
            warn_of_damage(path, signs)
            clips = [VideoFrames(path, each, None, a, b, False) for each, a, b in windows]
        for clip in clips:
            if held is not None:
                yield held
            held = clip
        if held is not None and (stop is None or path in failed):
            yield held._replace(is_last=True)
            held = None


def read_image(path: str, pipeline: Callable[[dict], dict]) -> VideoFrames:
    """Read a picture as the frames of a video in which nothing moves.

    Args:
        path (str): JPEG, PNG, WebP, GIF or BMP.
        pipeline (Callable): A ``Compose`` as for windows of :func:`read_videos`.

    Raises:
        VideoReadError: If it is not there, no picture, or too large.
        UserError: If the pipeline is another.
    """
    _, sampling, _, finishing = _split(pipeline)
    if reason := why_no_file(path):
        raise VideoReadError(f'{path} cannot be read: {reason}')
    try:
        with Image.open(path, formats=PICTURES) as file:
            picture = np.asarray(ImageOps.exif_transpose(file).convert('RGB'))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoReadError(f'{path} cannot be read as a picture: {error}') from error
    data: dict[str, Any] = dict(
        filename=path, start_index=0, total_frames=1, modality='RGB', text=[]
    )
    data = _apply(sampling, data)
    data.update(original_shape=picture.shape[:2], img_shape=picture.shape[:2])
    data.update(imgs=[picture] * data['frame_inds'].size)
    return VideoFrames(path, _apply(finishing, data)['inputs']['imgs'].numpy())


class _Reader:
    """Reads a piece of a video in a worker process, which keeps the video open for the next."""

    def __init__(self, pipeline: Callable, windows: Windows | None, alone: bool) -> None:
        self.pipeline, self.alone = pipeline, alone
        self.path: str | None = None
        self.opened: dict = {}
        self.windows: Any = windows
        if windows is not None:
            self.opening, self.sampling, self.decode, self.finishing = _split(pipeline)

    def __call__(self, piece: Piece) -> tuple[list[tuple[np.ndarray, float, float]], list[str]]:
        path, first, stop = piece
        if reason := why_no_file(path):
            raise VideoReadError(reason)
        with signs_of_damage(path, self.alone, measure=not first) as signs:
            data = dict(filename=as_file(path), start_index=0, modality='RGB', text=[])
            if self.windows is None:
                imgs = self.pipeline(data)['inputs']['imgs'].numpy()
                clips = [(imgs, 0.0, header_duration(path))]
            else:
                clips = list(self._read_windows(path, data, slice(first, stop)))
        return clips, signs

    def _read_windows(self, path: str, data: dict, which: slice) -> Iterator[tuple]:
        from ..datasets.transforms import frame_times

        if self.path != path:
            self.path, self.opened = None, {}  # the last one takes memory
            self.opened = _apply(self.opening, data)
            self.duration = frame_times(self.opened)[1]
            self.path = path
        spans = self.windows.spans(self.duration)[which]
        clips = [_apply(self.sampling, dict(self.opened, start=a, end=b)) for a, b in spans]
        numbers = [clip['frame_inds'].ravel().tolist() for clip in clips]
        last_use = {each: place for place, own in enumerate(numbers) for each in own}
        left = sorted(last_use)
        frames: dict[int, np.ndarray] = {}
        for place, (clip, own, span) in enumerate(zip(clips, numbers, spans)):
            upto = sum(each <= max(own) for each in left)
            new, left = left[:upto], left[upto:]  # also those between, of the next windows
            if new:
                decoded = self.decode(dict(self.opened, frame_inds=np.array(new)))
                frames.update(zip(new, decoded.pop('imgs')))
            clip.update({key: decoded[key] for key in ('original_shape', 'img_shape')})
            clip.update(imgs=[frames[each] for each in own], video_reader=None)
            yield _apply(self.finishing, clip)['inputs']['imgs'].numpy(), *span
            frames = {each: frame for each, frame in frames.items() if last_use[each] > place}


def _split(pipeline: Callable) -> tuple[list, list, Callable, list]:
    """Divide a pipeline into what opens a video, samples frames, decodes and finishes them."""
    from mmaction.datasets import DecordDecode

    from ..datasets import TimeWindow

    steps = list(getattr(pipeline, 'transforms', ()))
    at = [[isinstance(step, kind) for step in steps] for kind in (TimeWindow, DecordDecode)]
    if not all(map(any, at)):
        raise UserError(
            'Windows of videos, and pictures, need a test pipeline with vop.TimeWindow after '
            'DecordInit, and with DecordDecode.'
        )
    sample, decode = (each.index(True) for each in at)
    return steps[:sample], steps[sample:decode], steps[decode], steps[decode + 1 :]


def _apply(steps: Sequence[Callable], data: dict) -> dict:
    for step in steps:
        data = step(data)
    return data
