"""Annotation files: read and checked."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UNSEEN, UserError, shown
from ..fileio import read_json

FORMAT = (
    'expected is {"video0.mp4": ["a caption", ...], ...}, or with a window in seconds '
    '{"video0.mp4": {"captions": ["a caption", ...], "start": 0, "end": 30}, ...}'
)

# Right-to-left languages have marks of their own; a caption may have several lines, and the name
# of a file bytes that are no text.
NO_CAPTION = re.compile(rf'(?![\t\n\r\u061c\u200e\u200f]){UNSEEN.pattern}')
NO_NAME = re.compile(rf'(?![\u061c\u200e\u200f\udc80-\udcff]){UNSEEN.pattern}')
LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes, and those between two slashes, of file systems
MOST_SECONDS = 1e12  # whose number of frames is still exact


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
    if not os.path.isfile(ann_file):
        raise UserError(
            f'There is no annotation file {shown(str(ann_file), 300)}. Make it with a converter'
            ' of tools/data, or correct ann_file and data_root.'
        )
    videos = read_json(ann_file)
    if not isinstance(videos, dict) or not videos:
        raise UserError(f'{ann_file} holds {_cut(videos)}; {FORMAT}.')
    return {
        check_name(name, str(ann_file)): _check(videos[name], name, ann_file) for name in videos
    }


def _check(value: Any, video: str, ann_file: str | Path) -> Annotation:
    place = f'{ann_file}: "{shown(video, 100)}"'
    fields = value if isinstance(value, dict) else dict(captions=value)
    for key in fields.keys() - set(Annotation._fields):
        raise UserError(f'{place} has the unknown key "{shown(key, 100)}"; {FORMAT}.')
    captions = fields.get('captions')
    if not isinstance(captions, list) or not captions:
        raise UserError(f'{place} has no list of captions but {_cut(value)}; {FORMAT}.')
    for number, text in enumerate(captions, start=1):
        check_caption(text, place, number)
    check_window({key: fields[key] for key in ('start', 'end') if key in fields}, place)
    return Annotation(**fields)


def _cut(value: Any) -> str:
    """The beginning of a value, which may be of megabytes, or nested too deeply to be written."""
    text = ''
    for part in json.JSONEncoder().iterencode(value):
        text += part[:101]
        if len(text) > 100:
            return f'{text[:100]}...'
    return text


# For the converters, too.


def check_caption(text: Any, place: str, number: int | None = None) -> str:
    """Check that a caption is a text with words, and return it stripped.

    ``number`` counts the captions of a place. Characters of control, changes of the direction of
    writing and the like are damage, but a caption may have several lines.
    """
    stripped = text.strip() if isinstance(text, str) else ''
    # Of what is not seen, U+FFFD alone is printable.
    if stripped and (text.isprintable() and '\ufffd' not in text or not NO_CAPTION.search(text)):
        return stripped
    if number is not None:
        place = f'{place}: caption {number}'
    if not stripped:
        raise UserError(f'{place} is {_cut(text)}; it must be a text with words.')
    raise UserError(_unseen(place, text, NO_CAPTION))


def check_name(name: Any, place: str) -> str:
    """Check that this can be the path of a video, and return it."""
    if not isinstance(name, str) or not name.strip():
        raise UserError(f'{place}: {_cut(name)} is no name of a video.')
    if NO_NAME.search(name):
        raise UserError(_unseen(f'{place}: the name of a video', name, NO_NAME))
    encoded = os.fsencode(name)
    if len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b'/'))) > LONGEST_NAME:
        raise UserError(f'{place}: {_cut(name)} is too long for the name of a file.')
    return name


def _unseen(place: str, text: str, unseen: re.Pattern) -> str:
    at = unseen.search(text)
    assert at is not None
    around = text[max(0, at.start() - 30) : at.end() + 30]
    return f'{place} holds the character {shown(at[0])}, which cannot be seen: "{shown(around)}".'


def check_window(window: dict[str, Any], place: str) -> None:
    """Check ``start`` and ``end``, in seconds, where ``window`` has them."""
    for key, seconds in window.items():
        # A bool is an int, too.
        if type(seconds) not in (int, float) or not 0 <= seconds < MOST_SECONDS:
            raise UserError(
                f'{place}: "{key}" is {_cut(seconds)}; it must be a number of seconds, 0 or more.'
            )
    start, end = window.get('start', 0), window.get('end', math.inf)
    if end <= start:
        raise UserError(f'{place}: the window ends at {end} s but starts at {start} s.')
