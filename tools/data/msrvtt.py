"""Make the annotation files of MSR-VTT.

Reads, from one folder, the files that the field shares:

  MSRVTT_data.json            captions of all videos
  MSRVTT_train.9k.csv         videos of the 9k training split
  MSRVTT_train.7k.csv         videos of the 7k training split (optional)
  MSRVTT_JSFUSION_test.csv    videos and captions of the 1k-A test split

and writes train_9k.json, train_7k.json and test_1k.json for
vop.VideoTextDataset. Everything is checked before anything is written.
"""

import re
from functools import partial
from pathlib import Path

from common import (
    Lines,
    Split,
    check_splits,
    check_unique,
    get,
    group,
    read_csv,
    run,
    select,
    some,
)

from projects.vop.errors import UserError, exit_on_user_error, shown
from projects.vop.fileio import read_json

PUBLISHER = 'CLIP4Clip (github.com/ArrowLuo/CLIP4Clip) says where the field shares the files.'
COUNTS = (
    'The field counts 9,000 videos and 180,000 captions (9k), 7,010 and '
    '140,200 (7k), 1,000 and 1,000 (1k-A).'
)

VIDEO = re.compile(r'video\d+')


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    data, test = source / 'MSRVTT_data.json', source / 'MSRVTT_JSFUSION_test.csv'
    sentences = get(read_json(data), 'sentences', list, str(data))
    found, splits = group(sentences, 'video_id', 'caption', f'{data}: "sentences"'), {}
    check_equal(data, found)
    for name in ('9k', '7k'):
        path = source / f'MSRVTT_train.{name}.csv'
        if name == '7k' and not path.is_file():
            print(f'train_7k.json is left out: there is no {path}.')
            continue
        videos = [(line, row['video_id']) for line, row in read_csv(path, 'video_id')]
        split = splits[f'train_{name}'] = select(path, videos, data, found, '.mp4')
        first = (f'video{i}' for i in range(len(split)))
        if name == '7k' and (lost := [v for v in first if f'{v}.mp4' not in split]):
            raise UserError(f'{path} names the first videos, but lacks {some(lost)}.')
    rows = read_csv(test, 'video_id', 'sentence')
    check_unique(test, ((line, row['video_id']) for line, row in rows))
    check_test(test, rows)
    splits['test_1k'] = {f'{row["video_id"]}.mp4': [row['sentence']] for _, row in rows}
    check_splits(splits)
    listed = splits['train_9k'].keys() | splits['test_1k'].keys()
    if lost := [v for v in found if VIDEO.fullmatch(v) and f'{v}.mp4' not in listed]:
        raise UserError(
            f'{len(lost)} videos of {data} are neither in MSRVTT_train.9k.csv nor in {test.name}: '
            f'{some(lost)}. Have the files lost lines? To train on a part, see '
            'tools/data/custom.py.'
        )
    return splits


def check_equal(path: Path, found: dict[str, list[str]]) -> None:
    """Refuse captions of which some are lost: all videos have as many, namely 20."""
    number = max(map(len, found.values()))
    if lost := [video for video, captions in found.items() if len(captions) < number]:
        raise UserError(
            f'{path}: {len(lost)} videos have fewer captions than the {number} of the others: '
            f'{some(lost)}. Is the file complete?'
        )


def check_test(path: Path, rows: Lines) -> None:
    """Refuse exchanged columns and lost lines of the test split.

    Its columns ``key`` and ``vid_key`` count its lines, and repeat the number of the video.
    """
    for number, (line, row) in enumerate(rows):
        place, video = f'{path}, line {line}', row['video_id']
        if not VIDEO.fullmatch(video):
            raise UserError(
                f'{place}, column "video_id": {shown(video, 100)!r} is no video of MSR-VTT, such '
                'as video7020. Are two columns exchanged?'
            )
        for column, kind, wanted in (('key', 'ret', f'{number}'), ('vid_key', 'msr', video[5:])):
            value = row.get(column, '')
            if re.fullmatch(rf'{kind}\d+', value) and value != kind + wanted:
                raise UserError(
                    f'{place}, column "{column}": {kind}{wanted} is expected, not '
                    f'{shown(value, 100)}. Are lines lost or exchanged?'
                )


main = partial(run, convert, __doc__, 'data/msrvtt', PUBLISHER, COUNTS)

if __name__ == '__main__':
    with exit_on_user_error():
        main()
