"""Transforms that MMAction2 does not have."""

import numpy as np
import torch
from mmaction.datasets.transforms import DecordInit
from mmcv.transforms import BaseTransform

from ..clip_config import PAPER_CLIP, open_tokenizer
from ..errors import UserError, VideoReadError
from ..registry import TRANSFORMS


@TRANSFORMS.register_module()
class CLIPTokenize(BaseTransform):
    """Turn captions into token ids.

    A caption longer than CLIP's context is cut and closed with [EOT].

    Required key: ``text``, a caption or a list of n. Modified key: ``text``,
    int64 token ids of shape [t] or [n x t].

    Args:
        name (str): The CLIP whose tokenizer to use, as ``clip.name`` of the
            model. Defaults to ``'ViT-B-32-quickgelu'``, whose byte-pair
            encoding all of OpenAI's and nearly all of LAION's CLIPs share.
            The tools set that of the model where it is another.
        cache_dir (str, optional): Where downloads are kept.

    Raises:
        UserError: If there is no such CLIP, or its tokenizer cannot be opened.

    Example:
        >>> train_pipeline = [
        ...     ...,
        ...     dict(type='vop.CLIPTokenize'),
        ...     dict(type='PackActionInputs', collect_keys=('imgs', 'text'))]
    """

    def __init__(self, name: str = PAPER_CLIP, cache_dir: str | None = None) -> None:
        self.tokenizer = open_tokenizer(name, cache_dir)
        self.name = name

    def transform(self, results: dict) -> dict:
        """Tokenise ``results['text']``."""
        text = results['text']
        tokens: torch.Tensor = self.tokenizer(text)
        results['text'] = tokens[0] if isinstance(text, str) else tokens
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r})'


@TRANSFORMS.register_module()
class DecordKeep(DecordInit):
    """Decode whole videos, and keep their frames in memory.

    For training on few, short clips, which is then as fast as if there were no
    files. Each process that runs the pipeline decodes a clip once and keeps all of
    them, so there are best none but the one that trains: ``num_workers=0`` and
    ``timeout=None``. It goes in place of ``DecordInit``, with ``ArrayDecode`` in
    place of ``DecordDecode``, and does not serve ``vop.TimeWindow``.

    Required key: ``filename``. Added keys: ``array``, RGB frames of shape
    [f x h x w x 3], uint8; ``total_frames``, f; and ``avg_fps``.

    Args:
        **kwargs: Arguments of ``DecordInit``.

    Example:
        >>> train_pipeline = [
        ...     dict(type='vop.DecordKeep'),
        ...     dict(type='UniformSample', clip_len=8, num_clips=1),
        ...     dict(type='ArrayDecode'),
        ...     ...]
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self._videos: dict[str, tuple[np.ndarray, float]] = {}

    def transform(self, results: dict) -> dict:
        """Add the frames."""
        path = results['filename']
        if path not in self._videos:
            opened = super().transform(dict(results))
            frames = opened['video_reader'].get_batch(range(opened['total_frames']))
            self._videos[path] = frames.asnumpy(), opened['avg_fps']
        results['array'], results['avg_fps'] = self._videos[path]
        results['total_frames'] = len(results['array'])
        return results


@TRANSFORMS.register_module()
class TimeWindow(BaseTransform):
    """Let the sampling of frames see a window of the video only.

    It goes between ``DecordInit`` and the sampling. The window holds the
    frames that are on screen between ``start`` and ``end``, by the time that
    the file gives each frame, from when the first one comes on screen. Only a
    file that lacks these times, or in which they start over as where files
    were joined, is taken to have a constant frame rate. A window that ends
    after the video's end is cut there. Without ``start`` and ``end``, the
    whole video is used.

    Required keys: ``filename``, ``total_frames``, and ``video_reader`` of
    ``DecordInit`` or, for a constant rate, ``avg_fps``. Optional keys:
    ``start`` and ``end``, in seconds. Modified keys: ``start_index`` and
    ``total_frames``.

    Raises:
        UserError: If the window starts after the video's end, if the frames
            are already sampled, or if another transform has opened the video.

    Example:
        >>> train_pipeline = [
        ...     dict(type='DecordInit'),
        ...     dict(type='vop.TimeWindow'),
        ...     dict(type='UniformSample', clip_len=12, num_clips=1),
        ...     ...]
    """

    def transform(self, results: dict) -> dict:
        """Restrict the frames to the window."""
        start, end = results.get('start'), results.get('end')
        if start is None and end is None:
            return results
        if 'frame_inds' in results:
            raise UserError(
                'In the pipeline, vop.TimeWindow must come right after DecordInit, '
                'before the transform that samples frames.'
            )
        starts, duration = frame_times(results)
        # What decord says is rounded to 32 bits.
        slack = np.spacing(np.float32(duration)) + 1e-6
        if (start or 0) + slack >= duration:
            until = 'the end' if end is None else f'{end} s'
            raise VideoReadError(
                f'{results["filename"]} lasts {duration:.2f} s, and its window from '
                f'{start} s to {until} starts after that. Correct the annotation file.'
            )
        first = int(np.searchsorted(starts, (start or 0) + slack, 'right')) - 1
        stop = len(starts) if end is None else int(np.searchsorted(starts, end - slack))
        results['start_index'] = results.get('start_index', 0) + first
        results['total_frames'] = max(1, stop - first)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def frame_times(results: dict) -> tuple[np.ndarray, float]:
    """When the frames of a video come on screen, and when the last one goes.

    Args:
        results (dict): What ``DecordInit`` made of a video; see :class:`TimeWindow`.

    Returns:
        tuple[np.ndarray, float]: Seconds [f] from when the first one comes on screen, and the
        duration in seconds.

    Raises:
        UserError: If another transform has opened the video.
        VideoReadError: If the file has neither times nor a frame rate.
    """
    total = results['total_frames']
    timestamps = getattr(results.get('video_reader'), 'get_frame_timestamp', None)
    if timestamps:  # it decodes nothing
        times = timestamps(range(total)).astype(np.float64)
        # A frame without a time has an absurd one. Where times start over, frames that follow
        # each other have the times of others; decord sorts them.
        same = np.diff(times[:, 0]) == 0
        if np.abs(times).max() < 1e8 and not (same[:-2] & same[2:]).any():
            starts, ends = (times - max(0, times[0, 0])).T
            # Frames that an edit list hides come before 0.
            shown = starts[np.searchsorted(starts, 0, 'right') - 1 :]
            # Not every file knows how long the last one stays: as long as others.
            step = (shown[-1] - shown[0]) / (len(shown) - 1) if len(shown) > 1 else 0
            return starts, starts[-1] + max(step, ends[-1] - starts[-1])
    if 'avg_fps' not in results:
        raise UserError(
            'In the pipeline, vop.TimeWindow must come right after DecordInit: it needs the '
            'time of each frame, which PyAVInit, OpenCVInit and their like do not give.'
        )
    fps = results['avg_fps']
    if not fps > 0:
        raise VideoReadError(
            f'{results["filename"]} has neither times of its frames nor a frame rate.'
        )
    return np.arange(total) / fps, total / fps
