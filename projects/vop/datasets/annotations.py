"""Annotation files: read and checked."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple


class Annotation(NamedTuple):
    """What an annotation file says of a video."""

    captions: list[str]
    start: float | None = None  # of the window in use, in seconds
    end: float | None = None


WANTED = (
    'expected {"video0.mp4": ["a caption", ...], ...}, or with a window '
    'in seconds {"video0.mp4": {"captions": ["a caption", ...], '
    '"start": 0, "end": 30}, ...}'
)


def read_annotations(ann_file: str) -> dict[str, Annotation]:
    """Read and check an annotation file.

    Args:
        ann_file (str): A JSON file ``{"video0.mp4": ["a caption", ...]}``,
            the format of MMAction2's ``VideoTextDataset``. A value may also
            be ``{"captions": ["a caption", ...], "start": 0, "end": 30}``:
            only the video between these seconds is used. Both are optional.

    Returns:
        dict[str, Annotation]: What it says of each video.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of that format; the message names the place.
    """
    path = Path(ann_file)
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no annotation file {ann_file}. Make it with a converter'
            ' of tools/data, or correct ann_file and data_root.'
        )

    def unique(pairs: list) -> dict:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(
                f'{ann_file}: "{twice}" stands there twice. Put '
                'all captions of a video into one list.'
            )
        return values

    try:
        videos = json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{ann_file}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).'
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f'{ann_file} is not UTF-8 text: {error}.') from error
    if not isinstance(videos, dict):
        raise ValueError(f'{ann_file} holds a {type(videos).__name__}; {WANTED}.')
    if not videos:
        raise ValueError(f'{ann_file} names no video; {WANTED}.')
    return {video: _check_annotation(value, ann_file, video) for video, value in videos.items()}


def _check_annotation(value: Any, ann_file: str, video: str) -> Annotation:
    fields = value if isinstance(value, dict) else dict(captions=value)
    unknown = sorted(fields.keys() - set(Annotation._fields))
    if unknown:
        raise ValueError(f'{ann_file}: "{video}" has the unknown key "{unknown[0]}"; {WANTED}.')
    captions = fields.get('captions')
    if not isinstance(captions, list) or not captions:
        raise ValueError(
            f'{ann_file}: "{video}" has no list of captions but {json.dumps(value)}; {WANTED}.'
        )
    for number, text in enumerate(captions, start=1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f'{ann_file}: caption {number} of "{video}" is '
                f'{json.dumps(text)}; it must be a text with words.'
            )
    for key in fields.keys() - {'captions'}:
        seconds = fields[key]
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, (int, float))
            or not 0 <= seconds < math.inf
        ):
            raise ValueError(
                f'{ann_file}: "{key}" of "{video}" is {json.dumps(seconds)}; '
                'it must be a number of seconds, 0 or more.'
            )
    annotation = Annotation(**fields)
    start, end = annotation.start or 0, annotation.end
    if end is not None and end <= start:
        raise ValueError(
            f'{ann_file}: the window of "{video}" ends at {end} s but starts at {start} s.'
        )
    return annotation
