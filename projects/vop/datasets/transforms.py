"""Transforms that MMAction2 does not have."""

import math

import torch
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
class TimeWindow(BaseTransform):
    """Let the sampling of frames see a window of the video only.

    It goes between ``DecordInit`` and the sampling. The window holds the
    frames that are on screen between ``start`` and ``end``, at the average
    frame rate; one that ends after the video's end is cut there. Without
    ``start`` and ``end``, the whole video is used.

    Required keys: ``filename``, ``avg_fps``, ``total_frames``. Optional keys:
    ``start`` and ``end``, in seconds. Modified keys: ``start_index`` and
    ``total_frames``.

    Raises:
        UserError: If the window starts after the video's end, or if the
            frames are already sampled.

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
        fps, total = results['avg_fps'], results['total_frames']

        # Rounded, as 0.29 s at 100 frames per second are 29 frames, not 28.99.
        first = math.floor(round((start or 0) * fps, 6))
        stop = total if end is None else min(total, math.ceil(round(end * fps, 6)))
        if first >= total:
            until = 'the end' if end is None else f'{end} s'
            raise VideoReadError(
                f'{results["filename"]} lasts {total / fps:.2f} s, and its window from '
                f'{start} s to {until} starts after that. Correct the annotation file.'
            )
        results['start_index'] = results.get('start_index', 0) + first
        results['total_frames'] = stop - first
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
