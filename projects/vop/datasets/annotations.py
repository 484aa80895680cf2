"""Annotation files: read and checked."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..fileio import read_json

FORMAT = (
    'expected is {"video0.mp4": ["a caption", ...], ...}, or with a window in seconds '
    '{"video0.mp4": {"captions": ["a caption", ...], "start": 0, "end": 30}, ...}'
)


class Annotation(NamedTuple):
    """What an annotation file says of a video.

    Example:
        >>> Annotation(['a dog runs', 'a dog on a beach'], end=30)
    """

    captions: list[str]
    start: float | None = None  # of the window in use, in seconds
    end: float | None = None


def read_annotations(ann_file: str | Path) -> dict[str, Annotation]:
    """Read and check an annotation file.

    Args:
        ann_file (str | Path): A JSON file ``{"video0.mp4": ["a caption"]}``,
            the format of MMAction2's ``VideoTextDataset``. A value may also
            be ``{"captions": ["a caption"], "start": 0, "end": 30}``: only the
            video between these seconds is used. Both are optional.

    Returns:
        dict[str, Annotation]: The annotation of each video.

    Raises:
        UserError: If there is no such file, or it is not of that format; the
            message names the place.

    Example:
        >>> captions = read_annotations('data/msrvtt/test_1k.json')['video0.mp4'].captions
    """
    if not Path(ann_file).is_file():
        raise UserError(
            f'There is no annotation file {ann_file}. Make it with a converter'
            ' of tools/data, or correct ann_file and data_root.'
        )
    videos = read_json(ann_file)
    if not isinstance(videos, dict) or not videos:
        raise UserError(f'{ann_file} holds {_cut(videos)}; {FORMAT}.')
    return {video: _check(value, f'{ann_file}: "{video}"') for video, value in videos.items()}


def _check(value: Any, place: str) -> Annotation:
    fields = value if isinstance(value, dict) else dict(captions=value)
    for key in fields.keys() - set(Annotation._fields):
        raise UserError(f'{place} has the unknown key "{key}"; {FORMAT}.')
    captions = fields.get('captions')
    if not isinstance(captions, list) or not captions:
        raise UserError(f'{place} has no list of captions but {_cut(value)}; {FORMAT}.')
    for number, text in enumerate(captions, start=1):
        check_caption(text, f'{place}: caption {number}')
    check_window({key: fields[key] for key in ('start', 'end') if key in fields}, place)
    return Annotation(**fields)


def _cut(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f'{text[:100]}...'


# For the converters, too.


def check_caption(text: Any, place: str) -> str:
    """Check that a caption is a text with words, and return it stripped."""
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{place} is {_cut(text)}; it must be a text with words.')
    return text.strip()


def check_window(window: dict[str, Any], place: str) -> None:
    """Check ``start`` and ``end``, in seconds, where ``window`` has them."""
    for key, seconds in window.items():
        # A bool is an int, too.
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise UserError(
                f'{place}: "{key}" is {_cut(seconds)}; it must be a number of seconds, 0 or more.'
            )
    start, end = window.get('start', 0), window.get('end', math.inf)
    if end <= start:
        raise UserError(f'{place}: the window ends at {end} s but starts at {start} s.')
