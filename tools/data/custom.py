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
import posixpath
import re
from contextlib import suppress
from pathlib import Path

from common import (
    Split,
    add_to_errors,
    check_unique,
    find_videos,
    only_one,
    read_csv,
    some,
    stem,
    write_splits,
)

from projects.vop.datasets.annotations import check_window
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import VIDEO_SUFFIXES, write_file

MARK = '# Written by tools/data/custom.py, which overwrites it.\n'
CONFIG = (
    MARK
    + """\
_base_ = '_video_text.py'

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


def locate(names: dict[str, int], folder: Path) -> dict[str, str]:
    """Paths of videos in ``folder``; ``names`` has the line of each."""
    there, found, missing = find_videos(folder), {}, []
    for name, line in names.items():
        path = posixpath.normpath(name)
        parent = posixpath.dirname(path)
        paths = [p for p in there.get(stem(path), ()) if parent in ('', posixpath.dirname(p))]
        if path in paths:
            found[name] = path
        elif paths:
            found[name] = only_one(paths, f'{name} (line {line})', folder)
        else:
            missing.append(f'{name} (line {line})')
    if missing:
        text = f'{len(missing):,} of {len(names):,} videos are not in {folder}: {some(missing)}.'
        raise UserError(f'{text} Videos are {", ".join(VIDEO_SUFFIXES)}.')
    return found


def read_window(row: dict[str, str], place: str) -> dict[str, float]:
    """The columns ``start`` and ``end``, where they are not empty."""
    window = {key: row[key] for key in ('start', 'end') if row.get(key)}
    for key, text in window.items():
        with suppress(ValueError):
            window[key] = float(text)
    check_window(window, place)
    return window


def read_captions(path: Path, folder: Path) -> tuple[Split, dict[str, str]]:
    """What a csv file says of each video, and the split that it gives it."""
    rows = read_csv(path, 'video', 'caption')
    found = locate({row['video']: line for line, row in reversed(rows)}, folder)
    check_unique(path, ((n, f'"{row["caption"]}" of {found[row["video"]]}') for n, row in rows))
    videos, first = {}, {}
    for line, row in rows:
        video, place = found[row['video']], f'{path}, line {line}'
        split, window = row.get('split'), read_window(row, place)
        if split not in (None, 'train', 'test'):
            raise UserError(f'{place}: split is {split!r}; it must be train or test.')
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
    if not re.fullmatch('[A-Za-z][A-Za-z0-9_]*', name):
        text = 'it must begin with a letter and hold letters, digits and _ alone'
        raise UserError(f'NAME is {name!r}; {text}.')
    if not (folder / '_base_/datasets/_video_text.py').is_file():
        text = 'Run this in the folder of the project, or set --config-dir'
        raise UserError(f'{folder} has no _base_/datasets/_video_text.py. {text}.')
    path = folder / f'_base_/datasets/{name}.py'
    if path.is_file() and path.read_text(encoding='utf-8').startswith(MARK):
        return path
    for other in (path, folder / name, folder / f'vop_{name}.py', root):
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
    add('--config-dir', type=Path, default='configs', help='the configs (default: %(default)s)')
    args = parser.parse_args()
    root = Path('data', args.name)
    with add_to_errors('Nothing was written.'):
        config = check_name(args.name, args.config_dir, root)
        splits = make_splits(args)
    # The config comes first: it tells another run that the rest is ours.
    videos = args.videos.resolve().as_posix()
    write_file(config, CONFIG.format(root=root.as_posix(), videos=videos))
    write_splits(splits, root)
    print(f'{config} is its config. Train on it:\npython tools/train.py configs/vop_{args.name}.py')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
