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
import math
import posixpath
import re
from pathlib import Path

from common import (
    SUFFIXES,
    BadFile,
    Split,
    only_one,
    read_csv,
    refuse_twice,
    some,
    stem,
    videos_in,
    write,
    write_splits,
)

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


def find_videos(names: dict[str, int], folder: Path) -> dict[str, str]:
    """Paths of videos in ``folder``; ``names`` has the line of each."""
    there, found, missing = videos_in(folder), {}, []
    for name, line in names.items():
        path = posixpath.normpath(name)
        parent = posixpath.dirname(path)
        paths = [
            other for other in there.get(stem(path), ()) if parent in ('', posixpath.dirname(other))
        ]
        if path in paths:
            found[name] = path
        elif paths:
            found[name] = only_one(paths, f'{name} (line {line})', folder)
        else:
            missing.append(f'{name} (line {line})')
    if missing:
        raise BadFile(
            f'{len(missing):,} of {len(names):,} videos are not in '
            f'{folder}: {some(missing)}. Known are '
            f'{", ".join(SUFFIXES)}.'
        )
    return found


def read_window(row: dict[str, str], place: str) -> dict[str, float]:
    """The columns ``start`` and ``end``, where they are not empty."""
    window = {}
    for key in ('start', 'end'):
        if not row.get(key):
            continue
        try:
            window[key] = float(row[key])
        except ValueError:
            window[key] = math.nan
        if not 0 <= window[key] < math.inf:
            raise BadFile(
                f'{place}: {key} is {row[key]!r}; it must be a number of seconds, 0 or more.'
            )
    start = window.get('start', 0)
    if window.get('end', math.inf) <= start:
        raise BadFile(f'{place}: the window ends at {window["end"]} s but starts at {start} s.')
    return window


def read_captions(path: Path, folder: Path) -> tuple[Split, dict[str, str]]:
    """What a csv file says of each video, and the split that it gives it."""
    rows = read_csv(path, 'video', 'caption')
    names = {row['video']: number for number, row in reversed(rows)}
    found = find_videos(names, folder)
    refuse_twice(
        path, ((number, f'"{row["caption"]}" of {found[row["video"]]}') for number, row in rows)
    )
    videos, first = {}, {}
    for number, row in rows:
        video, place = found[row['video']], f'{path}, line {number}'
        split, window = row.get('split'), read_window(row, place)
        if split not in (None, 'train', 'test'):
            raise BadFile(f'{place}: split is {split!r}; it must be train or test.')
        line, *others = first.setdefault(video, (number, split, window))
        if others != [split, window]:
            raise BadFile(
                f'{place}: {video} has another split or window than '
                f'in line {line}. A video has one of each.'
            )
        value = videos.setdefault(video, dict(captions=[], **window))
        value['captions'].append(row['caption'])
    return videos, {video: split for video, (_, split, _) in first.items()}


def make_splits(args: argparse.Namespace) -> dict[str, Split]:
    """Read the csv files, and divide their videos."""
    videos, split_of = read_captions(args.captions, args.videos)
    test, test_split_of = read_captions(args.test, args.videos) if args.test else ({}, {})
    shared = [video for video in videos if video in test]
    if shared:
        raise BadFile(
            f'{len(shared)} videos of {args.test} are in {args.captions} too: {some(shared)}.'
        )
    has_column = any((*split_of.values(), *test_split_of.values()))
    if has_column + bool(test) + (args.test_fraction is not None) > 1:
        raise BadFile(
            'Give one of --test, --test-fraction and the column split: each says what to test on.'
        )
    if has_column:
        test = {video for video in videos if split_of[video] == 'test'}
    elif not args.test:
        fraction = 0.1 if args.test_fraction is None else args.test_fraction
        if not 0 < fraction < 1:
            raise BadFile(f'--test-fraction is {fraction}; it must be between 0 and 1.')
        count = max(1, round(fraction * len(videos)))

        # By a hash, so that videos that are added later hardly move others
        # from one split to the other.
        def draw(video: str) -> str:
            return hashlib.sha256(f'{args.seed} {video}'.encode()).hexdigest()

        test = set(sorted(videos, key=draw)[:count])
    if args.test:
        videos.update(test)

    splits = {'train.json': {}, 'test.json': {}}
    for video, value in videos.items():
        split = splits['test.json' if video in test else 'train.json']
        split[video] = value if len(value) > 1 else value['captions']
    for name, split in splits.items():
        if not split:
            raise BadFile(f'{args.captions} leaves no video for {name}.')
    return splits


def check_name(name: str, folder: Path, root: Path) -> Path:
    """Where the config of this name goes, if the name is free."""
    if not re.fullmatch('[A-Za-z][A-Za-z0-9_]*', name):
        raise BadFile(
            f'NAME is {name!r}; it must begin with a letter and hold letters, digits and _ alone.'
        )
    if not (folder / '_base_/datasets/_video_text.py').is_file():
        raise BadFile(
            f'{folder} has no _base_/datasets/_video_text.py. Run '
            'this in the folder of the project, or set '
            '--config-dir.'
        )
    path = folder / f'_base_/datasets/{name}.py'
    if path.is_file() and path.read_text(encoding='utf-8').startswith(MARK):
        return path
    for other in (path, folder / name, folder / f'vop_{name}.py', root):
        if other.exists():
            raise BadFile(
                f'{name} is the name of another data set: there is {other}. Choose another name.'
            )
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('videos', type=Path, metavar='VIDEO_DIR')
    parser.add_argument('captions', type=Path, metavar='CAPTIONS.csv')
    parser.add_argument('name', metavar='NAME')
    parser.add_argument(
        '--test', type=Path, metavar='TEST.csv', help='captions of the videos to test on'
    )
    parser.add_argument(
        '--test-fraction', type=float, help='the part of the videos to test on (default: 0.1)'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='draws the videos to test on (default: %(default)s)'
    )
    parser.add_argument(
        '--config-dir',
        type=Path,
        default=Path('configs'),
        help='folder of the configs (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    try:
        for path in filter(None, (args.captions, args.test)):
            if not path.is_file():
                raise BadFile(f'There is no {path}.')
        root = Path('data', args.name)
        config = check_name(args.name, args.config_dir, root)
        splits = make_splits(args)
    except BadFile as error:
        raise SystemExit(f'{error}\nNothing was written.') from error
    # The config comes first: it tells another run that the rest is ours.
    write(config, CONFIG.format(root=root.as_posix(), videos=args.videos.resolve().as_posix()))
    write_splits(splits, root)
    print(f'{config} is its config. Train on it:\npython tools/train.py configs/vop_{args.name}.py')


if __name__ == '__main__':
    main()
