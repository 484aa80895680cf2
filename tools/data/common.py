"""What the converters share: reading, checking and writing.

A split is a dict from the path of a video to what vop.VideoTextDataset reads
of it: its captions, or a dict of captions and a window of time.
"""

import argparse
import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from projects.vop.datasets.annotations import check_caption, check_name
from projects.vop.errors import UserError, shown
from projects.vop.fileio import is_video, read_text, same_name, walk_files, write_file

Split = dict[str, list[str] | dict]
Lines = list[tuple[int, Any]]  # what a file says, with the numbers of its lines
STRIPPED = ' \t\r\n'  # from the ends of a name, unlike other space, which may be damage
KINDS = {str: 'text', list: 'list', dict: 'object'}


def some(names: Iterable[str]) -> str:
    """The first names, for a message."""
    names = list(names)
    return ', '.join(shown(name, 100) for name in names[:5]) + (', ...' if len(names) > 5 else '')


@contextmanager
def add_to_errors(text: str, cause: type[Exception] | None = None) -> Iterator[None]:
    """Add a sentence to every message for the user, or to those with a cause of a type."""
    try:
        yield
    except UserError as error:
        if cause is None or isinstance(error.__cause__, cause):
            raise UserError(f'{error} {text}') from error
        raise


def check(value: Any, kind: type, place: str) -> Any:
    """A value, if it is of a kind and not empty."""
    if not isinstance(value, kind) or not value:
        raise UserError(f'{place} is no {KINDS[kind]}, or it is empty.')
    return value


def get(record: Any, key: str, kind: type, place: str) -> Any:
    """``record[key]``, checked."""
    return check(check(record, dict, place).get(key), kind, f'{place}: "{key}"')


def check_captions(texts: Any, place: str) -> list[str]:
    """A list of captions, checked and stripped."""
    check(texts, list, place)
    return [check_caption(text, place, number) for number, text in enumerate(texts, start=1)]


def group(records: Any, video: str, text: str, place: str) -> dict[str, list[str]]:
    """Captions of each video; each record holds one, and the keys say where."""
    found = defaultdict(list)
    for number, record in enumerate(check(records, list, place)):
        entry = f'{place}: entry {number}'
        name = check_name(get(record, video, str, entry), f'{entry}: "{video}"')
        caption = check_caption(record.get(text), f'{entry}: "{text}" of {name}')
        if len(name.split()) > 1:  # which no data set's names do
            raise UserError(
                f'{entry}: "{video}" is {shown(name, 100)!r}, which is no name of a video. Are '
                f'"{video}" and "{text}" exchanged?'
            )
        found[name].append(caption)
    return dict(found)


def read_lines(path: Path) -> Lines:
    """Lines of a file without a header; none is empty."""
    lines = list(enumerate(read_text(path).removesuffix('\n').split('\n'), start=1))
    if empty := [number for number, line in lines if not line.strip()]:
        raise UserError(f'{path}, line {empty[0]} is empty.')
    return lines


def read_csv(path: Path, video: str, *captions: str) -> Lines:
    """Rows of a csv file with a header, as dicts, and the lines where they end.

    The columns of the name of a video and of captions are there, checked and not empty; all are
    stripped.
    """
    text = io.StringIO(read_text(path), newline='')
    reader = csv.reader(text, strict=True, skipinitialspace=True)  # before a quotation mark, too
    rows, columns, line = [], (video, *captions), 0
    try:
        header = [column.strip() for column in next(reader, [])]
        if missing := ', '.join(column for column in columns if column not in header):
            there = shown(', '.join(header), 100)
            raise UserError(f'{path}, line 1: no column {missing}, but {there}.')
        if twice := [column for column in header if header.count(column) > 1]:
            raise UserError(f'{path}, line 1: the column {shown(twice[0], 100)} is listed twice.')
        line, empty = reader.line_num, None
        for values in reader:
            line, row = reader.line_num, dict(zip(header, values))
            place = f'{path}, line {line}'
            if not values:
                empty = empty or place
                continue
            if empty:  # but at the end
                raise UserError(f'{empty} is empty.')
            if len(values) != len(header):
                raise UserError(f'{place}: {len(header)} columns expected, as in the header.')
            if sorted(value.strip(STRIPPED) for value in values) == sorted(header):
                raise UserError(f'{place} is a header again. Were files joined? Remove it.')
            for column in columns:
                if not row[column].strip():
                    raise UserError(f'{place}: an empty value in the column "{column}".')
            check_name(row[video].strip(STRIPPED), f'{place}, column "{video}"')
            for column in captions:
                check_caption(row[column], f'{place}, column "{column}"')
            rows.append((line, {key: value.strip() for key, value in row.items()}))
    except csv.Error as error:
        # Of the row that begins there; its quotation mark may stay open.
        raise UserError(f'{path}, line {line + 1}: not valid csv ({error}).') from error
    if not rows:
        raise UserError(f'{path} names no video.')
    return rows


def check_unique(path: Path, lines: Iterable[tuple[int, str]]) -> None:
    """Refuse a file that says the same in two lines."""
    first = {}
    for number, key in lines:
        if first.setdefault(key, number) != number:
            raise UserError(
                f'{path}, line {number}: {shown(key, 200)} is in line {first[key]} already.'
            )


def select(
    path: Path, names: Lines, source: Path, found: dict[str, list[str]], suffix: str
) -> Split:
    """A split of the names in ``path``, with the captions found in ``source``."""
    names = [
        (number, check_name(name.strip(STRIPPED), f'{path}, line {number}'))
        for number, name in names
    ]
    check_unique(path, names)
    for number, name in names:
        if name not in found:
            raise UserError(f'{path}, line {number}: {name} has no caption in {source}.')
    return {f'{name}{suffix}': found[name] for _, name in names}


def stem(path: str) -> str:
    """The name of a video, without folder and extension; names of clips may hold points."""
    name = os.path.basename(path)
    return os.path.splitext(name)[0] if is_video(name) else name


def find_videos(folder: Path) -> dict[str, list[str]]:
    """Paths of the videos in a folder and below it, by :func:`key`."""
    paths = defaultdict(list)
    for path, _ in walk_files(folder):
        if is_video(path):
            paths[key(path)].append(path)
    return paths


def key(path: str) -> str:
    """What a video is looked for by: its :func:`stem`, however it is spelled."""
    return same_name(stem(path)).strip()


def only_one(paths: list[str], video: str, folder: Path) -> str:
    """The one path that matches a video."""
    if len(paths) > 1:
        both = ' and '.join(sorted(paths)[:2])
        raise UserError(f'Both {both} in {folder} could be {video}. Keep one of them there.')
    return paths[0]


def locate(splits: dict[str, Split], folder: Path, skip_missing: bool) -> dict[str, Split]:
    """Splits with the paths that the videos have in ``folder``."""
    there, located = find_videos(folder), {}
    for name, split in splits.items():
        # DiDeMo's own script saves x.avi as x.avi.mp4.
        paths = {v: there.get(os.path.basename(v)) or there.get(key(v)) for v in split}
        missing = [video for video in split if not paths[video]]
        message = f'{name}: {len(missing):,} of {len(split):,} videos are not in {folder}'
        if len(missing) == len(split) or (missing and not skip_missing):
            raise UserError(f'{message}: {some(missing)}. --skip-missing leaves out a part.')
        if missing:
            print(f'{message} and are left out.')
        if missing and name.startswith('test'):
            print('Figures on a part of a test split cannot be compared with those of others.')
        located[name] = {only_one(paths[v], v, folder): split[v] for v in split if paths[v]}
    return located


def check_splits(splits: dict[str, Split]) -> None:
    """Refuse videos that are twice in a split or in two kinds of splits."""
    stems = {name: {stem(video) for video in split} for name, split in splits.items()}
    for name, split in splits.items():
        if len(stems[name]) < len(split):
            raise UserError(f'{name}: two of its videos differ in folder or extension alone.')
    for one, other in combinations(splits, 2):
        shared = sorted(stems[one] & stems[other])
        # train_9k and train_7k overlap.
        if shared and one.partition('_')[0] != other.partition('_')[0]:
            raise UserError(f'{len(shared)} videos of {other} are in {one} too: {some(shared)}.')


def write_splits(splits: dict[str, Split], out: Path) -> None:
    """Write annotation files, and print what they count."""
    for name, split in splits.items():
        path = out / f'{name}.json'
        write_file(path, json.dumps(split))
        total = sum(len(v['captions'] if isinstance(v, dict) else v) for v in split.values())
        mean = f'{total / len(split):.1f} per video'
        print(f'{path}: {len(split):,} videos, {total:,} captions ({mean})')


def run(
    convert: Callable[[Path], dict[str, Split]], doc: str, out: str, publisher: str, counts: str
) -> None:
    """The command line of a converter: ``convert`` makes the splits from the files in a folder.

    ``out`` is where the configs look, ``publisher`` who has the files, ``counts`` what the field
    counts.
    """
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=layout)
    add = parser.add_argument
    add('source', type=Path, help='folder of these files')
    add('--out', type=Path, default=Path(out), help='folder to write to (default: %(default)s)')
    add('--videos', type=Path, help='folder of the videos: each must be there; its path is used')
    add('--skip-missing', action='store_true', help='leave out videos that are not in --videos')
    args = parser.parse_args()
    if args.skip_missing and args.videos is None:
        parser.error('--skip-missing needs --videos')
    with add_to_errors('Nothing was written.'):
        with add_to_errors(publisher, FileNotFoundError):
            splits = convert(args.source)
        check_splits(splits)
        if args.videos is not None:
            splits = locate(splits, args.videos, args.skip_missing)
    write_splits(splits, args.out)
    print(counts)
    expected, videos = args.out / 'videos', args.videos and args.videos.resolve()
    if videos and expected.resolve() != videos:
        print(f'The config looks for the videos in {expected}: make that a link to {videos}.')
