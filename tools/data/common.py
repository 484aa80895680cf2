"""What the converters share: reading, checking and writing.

A split is a dict from the path of a video to what vop.VideoTextDataset reads
of it: its captions, or a dict of captions and a window of time.
"""

import argparse
import csv
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

Split = dict[str, list[str] | dict]

SUFFIXES = (
    '.mp4',
    '.avi',
    '.mkv',
    '.webm',
    '.mov',
    '.m4v',
    '.flv',
    '.mpg',
    '.mpeg',
    '.wmv',
    '.3gp',
)
KINDS = {str: 'text', list: 'list', dict: 'object'}


class BadFile(Exception):
    """An input is not what it should be; the message says where."""


def some(names: Iterable[str]) -> str:
    """The first names, for a message."""
    names = list(names)
    return ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')


# Reading


def read_text(path: Path) -> str:
    """The text of a file, whether or not it begins with a UTF-8 mark."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise BadFile(f'{path} is not UTF-8 text: {error}.') from error


def read_json(path: Path, kind: type | None = None):
    """What a JSON file holds; if asked for, of a ``kind`` and not empty."""

    def unique(pairs: list) -> dict:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BadFile(f'{path}: "{twice}" stands there twice.')
        return dict(pairs)

    try:
        data = json.loads(read_text(path), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise BadFile(
            f'{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}).'
        ) from error
    if kind and not (isinstance(data, kind) and data):
        raise BadFile(f'{path} holds no {KINDS[kind]} of videos.')
    return data


def get(record, key: str, kind: type, place: str):
    """``record[key]``, checked."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or not value:
        raise BadFile(f'{place} has no {KINDS[kind]} "{key}".')
    return value


def caption(text, place: str) -> str:
    """A caption, checked and stripped."""
    if not isinstance(text, str) or not text.strip():
        raise BadFile(f'{place} is empty or no text.')
    return text.strip()


def captions(texts: list, place: str) -> list[str]:
    """A list of captions, checked and stripped."""
    return [
        caption(text, f'{place}: caption {number}') for number, text in enumerate(texts, start=1)
    ]


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a file without a header; none is empty."""
    lines = read_text(path).split('\n')
    if not lines[-1]:  # behind the last line's end
        lines.pop()
    if not lines:
        raise BadFile(f'{path} names no video.')
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise BadFile(f'{path}, line {number}: an empty line.')
    return list(enumerate(lines, start=1))


def read_list(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a file that names a video in each, none twice."""
    lines = [(number, line.strip()) for number, line in read_lines(path)]
    refuse_twice(path, lines)
    return lines


def read_csv(path: Path, *columns: str) -> list[tuple[int, dict[str, str]]]:
    """Rows of a csv file with a header, and the lines where they end.

    The values in ``columns`` are there and not empty; all are stripped.
    """
    text = read_text(path)
    reader = csv.DictReader(io.StringIO(text, newline=''), strict=True)
    rows = []
    try:
        header = reader.fieldnames or []
        missing = [column for column in columns if column not in header]
        if missing:
            raise BadFile(
                f'{path}, line 1: no column {", ".join(missing)}; '
                f'the header is {",".join(header)!r}.'
            )
        for row in reader:
            place = f'{path}, line {reader.line_num}'
            if None in row.values() or None in row:
                raise BadFile(f'{place}: {len(header)} columns expected, as in the header.')
            row = {column: value.strip() for column, value in row.items()}
            if not all(row[column] for column in columns):
                raise BadFile(f'{place}: an empty value.')
            rows.append((reader.line_num, row))
    except csv.Error as error:
        # Of the row that begins there; its quotation mark may stay open.
        raise BadFile(f'{path}, line {reader.line_num + 1}: not valid csv ({error}).') from error
    if not rows:
        raise BadFile(f'{path} names no video.')
    return rows


def refuse_twice(path: Path, lines: Iterable[tuple[int, str]]) -> None:
    """Refuse a file that says the same in two lines."""
    first = {}
    for number, key in lines:
        if key in first:
            raise BadFile(
                f'{path}, line {number}: {key} stands already in '
                f'line {first[key]}. Remove one of them.'
            )
        first[key] = number


def select(
    path: Path, lines: list[tuple[int, str]], source: Path, found: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Of the captions found in ``source``, those of videos in ``path``."""
    for number, video in lines:
        if video not in found:
            raise BadFile(f'{path}, line {number}: {video} has no caption in {source}.')
    return {video: found[video] for _, video in lines}


# Videos on disk


def stem(path: str) -> str:
    """The name of a video, without folder and extension.

    Names of clips may hold points, so only what is a video's is cut.
    """
    name, suffix = os.path.splitext(os.path.basename(path))
    return name if suffix.lower() in SUFFIXES else name + suffix


def videos_in(folder: Path) -> dict[str, list[str]]:
    """Paths of the videos in a folder and below it, by :func:`stem`."""
    if not folder.is_dir():
        raise BadFile(f'There is no folder {folder}.')
    paths = defaultdict(list)
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                path = Path(parent, name).relative_to(folder).as_posix()
                paths[stem(name)].append(path)
    return paths


def match(video: str, there: dict[str, list[str]]) -> list[str]:
    """Paths that a video can be at.

    The script of DiDeMo's owners saves ``x.avi`` as ``x.avi.mp4``.
    """
    return there.get(os.path.basename(video)) or there.get(stem(video), [])


def only_one(paths: list[str], video: str, folder: Path) -> str:
    """The one path that matches a video."""
    if len(paths) > 1:
        first, second, *_ = sorted(paths)
        raise BadFile(
            f'Both {first} and {second} in {folder} could be {video}. Keep one of them there.'
        )
    return paths[0]


def locate(splits: dict[str, Split], folder: Path, skip_missing: bool) -> dict[str, Split]:
    """Splits with the paths that the videos have in ``folder``."""
    there, found = videos_in(folder), {}
    for name, split in splits.items():
        missing = [video for video in split if not match(video, there)]
        count = f'{len(missing):,} of {len(split):,} videos are not in'
        if missing and not skip_missing:
            raise BadFile(
                f'{name}: {count} {folder}: {some(missing)}. To go '
                'on without them, add --skip-missing.'
            )
        if len(missing) == len(split):
            raise BadFile(f'{name}: {count} {folder}.')
        if missing:
            print(
                f'{name}: {count} {folder} and are left out.'
                + (
                    ' Figures on an incomplete test split cannot be compared with those of others.'
                    if name.startswith('test')
                    else ''
                )
            )
        found[name] = {
            only_one(match(video, there), video, folder): value
            for video, value in split.items()
            if match(video, there)
        }
    return found


# Writing


def check_splits(splits: dict[str, Split]) -> None:
    """Refuse videos that are twice in a split or in two kinds of splits."""
    stems = {}
    for name, split in splits.items():
        stems[name] = {stem(video) for video in split}
        if len(stems[name]) < len(split):
            raise BadFile(f'{name}: two of its videos differ in folder or extension alone.')
    for one, other in combinations(splits, 2):
        kinds = [re.match('[a-z]+', name)[0] for name in (one, other)]
        shared = stems[one] & stems[other]
        if shared and kinds[0] != kinds[1]:  # train_9k and train_7k overlap
            raise BadFile(
                f'{len(shared)} {kinds[1]} videos are in {one} too: {some(sorted(shared))}.'
            )


def write(path: Path, text: str) -> None:
    """Write a file; one of that name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, path)


def write_splits(splits: dict[str, Split], out: Path) -> None:
    """Write annotation files, and print what they count."""
    for name, split in splits.items():
        write(out / name, json.dumps(split))
        total = sum(
            len(value['captions'] if isinstance(value, dict) else value) for value in split.values()
        )
        print(
            f'{out / name}: {len(split):,} videos, {total:,} captions '
            f'({total / len(split):.1f} a video)'
        )


def run(
    convert: Callable[[Path], dict[str, Split]],
    doc: str,
    files: list[str],
    owner: str,
    counts: str,
    out: str,
    argv: list[str] | None = None,
) -> None:
    """The command line of a converter.

    Args:
        convert: Makes the splits from the files in a folder.
        doc (str): What the converter says of itself.
        files (list[str]): Names of the files that it cannot do without.
        owner (str): Says who publishes them.
        counts (str): What the field counts.
        out (str): The folder that the configs read.
        argv (list[str], optional): The command line, if not the process's.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='folder of these files')
    parser.add_argument(
        '--out', type=Path, default=Path(out), help='folder to write to (default: %(default)s)'
    )
    parser.add_argument(
        '--videos',
        type=Path,
        help='folder of the videos; check that each is there, and use its path there',
    )
    parser.add_argument(
        '--skip-missing', action='store_true', help='leave out videos that are not in --videos'
    )
    args = parser.parse_args(argv)
    if args.skip_missing and args.videos is None:
        parser.error('--skip-missing needs --videos')
    try:
        for name in files:
            if not (args.source / name).is_file():
                raise BadFile(f'There is no {args.source / name}. {owner}')
        splits = convert(args.source)
        check_splits(splits)
        if args.videos is not None:
            splits = locate(splits, args.videos, args.skip_missing)
    except BadFile as error:
        raise SystemExit(f'{error}\nNothing was written.') from error
    write_splits(splits, args.out)
    print(counts)
    expected = args.out / 'videos'
    if args.videos and expected.resolve() != args.videos.resolve():
        print(
            f'The config looks for the videos in {expected}: make that a '
            f'link to {args.videos.resolve()}.'
        )
