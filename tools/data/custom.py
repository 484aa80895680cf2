"""Make the annotation files and the config of a data set of your own.

Reads a csv file with a header, in UTF-8, and with the columns

  video         a video in VIDEO_DIR: its path there, or its name without
                folder and extension
  caption       a caption of it; several lines of a video are several captions
  start, end    what is used of the video, in seconds (optional)
  split         train or test (optional)

and writes data/NAME/train.json, data/NAME/test.json and the config
configs/_base_/datasets/NAME.py. The test videos are those of --test, or of
the column split, or a part drawn from the seed; a video is never in both.
Everything is checked before anything is written.
"""

import argparse
import hashlib
import os
import posixpath
import re
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from common import (
    Lines,
    Split,
    add_to_errors,
    check_unique,
    find_videos,
    key,
    only_one,
    read_csv,
    some,
    write_splits,
)

from projects.vop.datasets.annotations import check_window
from projects.vop.errors import UserError, exit_on_user_error, shown
from projects.vop.fileio import ROOT, VIDEO_SUFFIXES, same_name, write_file

BASE = Path('_base_/datasets/_video_text.py')
MARK = '# Written by tools/data/custom.py, which overwrites it.\n'
CONFIG = (
    MARK
    + """\
_base_ = {base!r}

data_root = {root!r}
data_prefix = dict(video={videos!r})

train_dataloader = dict(
    dataset=dict(
        ann_file='train.json', data_root=data_root, data_prefix=data_prefix))
val_dataloader = dict(
    dataset=dict(
        ann_file='test.json', data_root=data_root, data_prefix=data_prefix))
test_dataloader = val_dataloader
"""
)


def in_folder(name: str, folder: Path) -> str:
    """A path that a line names, relative to ``folder`` and spelled as paths are compared."""
    path = posixpath.normpath(name.replace('\\', '/'))
    if os.path.isabs(path):
        parent, file = os.path.split(path)
        resolved = os.path.join(os.path.realpath(parent), file)  # through whatever links
        for whole, root in ((path, os.path.abspath(folder)), (resolved, os.path.realpath(folder))):
            if whole.startswith(os.path.join(root, '')):
                return same_name(Path(os.path.relpath(whole, root)).as_posix())
    return same_name(path)


def locate(path: Path, rows: Lines, folder: Path) -> dict[str, str]:
    """Paths in ``folder`` of the videos that the rows of ``path`` name."""
    there, found, missing = find_videos(folder), {}, []
    first = {row['video']: (line, row) for line, row in reversed(rows)}
    for name, (line, row) in first.items():
        wanted = in_folder(name, folder)
        parent = posixpath.dirname(wanted)
        files = [
            file
            for file in there.get(key(name)) or there.get(key(wanted), ())
            if file == name or parent in ('', same_name(posixpath.dirname(file)))
        ]
        same = [file for file in files if file == name] or [
            file for file in files if same_name(file) == wanted
        ]
        if files:
            found[name] = only_one(same or files, f'{shown(name, 100)} (line {line})', folder)
        elif key(in_folder(row['caption'], folder)) in there:
            raise UserError(
                f'{path}, line {line}: the columns "video" and "caption" seem exchanged: '
                f'{shown(row["caption"], 100)!r} is a video, {shown(name, 100)!r} is none.'
            )
        else:
            missing.append(f'{shown(name, 100)} (line {line})')
    if missing:
        text = f'{len(missing):,} of {len(first):,} videos of {path} are not in {folder}: '
        text += f'{some(missing)}.'
        raise UserError(f'{text} Videos are {", ".join(VIDEO_SUFFIXES)}.')
    check_lines(path, rows, there)
    if unnamed := sorted({file for files in there.values() for file in files} - {*found.values()}):
        print(f'{len(unnamed):,} videos of {folder} are not in {path}: {some(unnamed)}.')
    return found


def check_lines(path: Path, rows: Lines, there: Container[str]) -> None:
    """Refuse captions that took up the next lines, as a quotation mark is missing."""
    for line, row in rows:
        for text in row['caption'].splitlines()[1:]:
            if ',' in text and key(text.partition(',')[0].strip('" ')) in there:
                raise UserError(
                    f'{path}, line {line}, column "caption": {shown(text, 100)!r} is in it, which '
                    'looks like a line of its own. Is a quotation mark missing before it?'
                )


def read_window(row: dict[str, str], place: str) -> dict[str, float]:
    """The columns ``start`` and ``end``, where they are not empty."""
    window = {column: row[column] for column in ('start', 'end') if row.get(column)}
    for column, text in window.items():
        with suppress(ValueError):
            window[column] = float(text)
    check_window(window, place)
    return window


def read_captions(path: Path, folder: Path) -> tuple[Split, dict[str, str]]:
    """What a csv file says of each video, and the split that it gives it."""
    rows = read_csv(path, 'video', 'caption')
    found = locate(path, rows, folder)
    check_unique(path, ((n, f'"{row["caption"]}" of {found[row["video"]]}') for n, row in rows))
    videos, first = {}, {}
    for line, row in rows:
        video, place = found[row['video']], f'{path}, line {line}'
        split, window = row.get('split'), read_window(row, place)
        if split not in (None, 'train', 'test'):
            text = f'split is {shown(split, 100)!r}; it must be train or test'
            raise UserError(f'{place}: {text}.')
        before, *others = first.setdefault(video, (line, split, window))
        if others != [split, window]:
            raise UserError(f'{place}: {video} has another split or window than in line {before}.')
        videos.setdefault(video, dict(captions=[], **window))['captions'].append(row['caption'])
    return videos, {video: split for video, (_, split, _) in first.items()}


def draw(videos: Split, fraction: float, seed: int) -> set[str]:
    """Draw videos to test on, by a hash, so that those added later hardly move others."""
    if not 0 < fraction < 1:
        raise UserError(f'--test-fraction is {fraction}; it must be between 0 and 1.')
    drawn = sorted(videos, key=lambda v: hashlib.sha256(f'{seed} {v}'.encode()).hexdigest())
    return set(drawn[: max(1, round(fraction * len(videos)))])


def make_splits(args: argparse.Namespace) -> dict[str, Split]:
    """Read the csv files, and divide their videos."""
    videos, split_of = read_captions(args.captions, args.videos)
    test, test_split_of = read_captions(args.test, args.videos) if args.test else ({}, {})
    if shared := [video for video in videos if video in test]:
        text = f'{len(shared)} videos of {args.test} are in {args.captions} too'
        raise UserError(f'{text}: {some(shared)}.')
    has_column = any((*split_of.values(), *test_split_of.values()))
    if has_column + bool(test) + (args.test_fraction is not None) > 1:
        raise UserError('Give one of --test, --test-fraction and the column split, not several.')
    videos.update(test)
    if has_column:
        test = {video for video in videos if split_of[video] == 'test'}
    elif not test:
        fraction = 0.1 if args.test_fraction is None else args.test_fraction
        test = draw(videos, fraction, args.seed)
    splits = dict(train={}, test={})
    for video, value in videos.items():
        split = splits['test' if video in test else 'train']
        split[video] = value if len(value) > 1 else value['captions']
    if empty := [name for name, split in splits.items() if not split]:
        raise UserError(f'{args.captions} leaves no video for {empty[0]}.json.')
    return splits


def check_name(name: str, folder: Path, root: Path) -> Path:
    """Where the config of this name goes, if the name is free."""
    if not re.fullmatch('[A-Za-z][A-Za-z0-9_]{0,99}', name):
        text = 'it must begin with a letter and hold letters, digits and _ alone, 100 at most'
        raise UserError(f'NAME is {name[:100]!r}; {text}.')
    path = folder / f'_base_/datasets/{name}.py'
    if path.is_file() and path.read_text(encoding='utf-8').startswith(MARK):
        return path
    taken = [f'_base_/datasets/{name}.py', name, f'vop_{name}.py']
    for other in [root, *(base / each for base in (folder, ROOT / 'configs') for each in taken)]:
        if other.exists():
            raise UserError(f'{name} is the name of another data set: there is {other}.')
    return path


def main() -> None:
    """Make the annotation files and the config."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add('videos', type=Path, metavar='VIDEO_DIR')
    add('captions', type=Path, metavar='CAPTIONS.csv')
    add('name', metavar='NAME')
    add('--test', type=Path, metavar='TEST.csv', help='captions of the videos to test on')
    add('--test-fraction', type=float, help='the part of the videos to test on (default: 0.1)')
    add('--seed', type=int, default=0, help='draws the videos to test on (default: %(default)s)')
    add('--config-dir', type=Path, help='the configs (default: configs)')
    args = parser.parse_args()
    root = Path('data', args.name)
    folder = args.config_dir or Path('configs')
    with add_to_errors('Nothing was written.'):
        if args.config_dir and not (folder / BASE).is_file():
            raise UserError(f'{folder} has no {BASE}. Set --config-dir to a folder of configs.')
        config = check_name(args.name, folder, root)
        splits = make_splits(args)
    # The config comes first: it tells another run that the rest is ours.
    videos = args.videos.resolve().as_posix()
    base = BASE.name if (folder / BASE).is_file() else str(ROOT / 'configs' / BASE)
    write_file(config, CONFIG.format(base=base, root=root.as_posix(), videos=videos))
    write_splits(splits, root)
    print(f'{config} is its config. Train on it:\npython tools/train.py configs/vop_{args.name}.py')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
