"""Make the annotation files of MSR-VTT.

Reads, from one folder, the files that the field shares:

  MSRVTT_data.json            captions of all videos
  MSRVTT_train.9k.csv         videos of the 9k training split
  MSRVTT_train.7k.csv         videos of the 7k training split (optional)
  MSRVTT_JSFUSION_test.csv    videos and captions of the 1k-A test split

and writes train_9k.json, train_7k.json and test_1k.json for
vop.VideoTextDataset. Everything is checked before anything is written.
"""

from functools import partial
from pathlib import Path

from common import Split, check_unique, get, group, read_csv, run, select

from projects.vop.errors import exit_on_user_error
from projects.vop.fileio import read_json

PUBLISHER = 'CLIP4Clip (github.com/ArrowLuo/CLIP4Clip) says where the field shares the files.'
COUNTS = (
    'The field counts 9,000 videos and 180,000 captions (9k), 7,010 and '
    '140,200 (7k), 1,000 and 1,000 (1k-A).'
)


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    data, test = source / 'MSRVTT_data.json', source / 'MSRVTT_JSFUSION_test.csv'
    sentences = get(read_json(data), 'sentences', list, str(data))
    found, splits = group(sentences, 'video_id', 'caption', f'{data}: "sentences"'), {}
    for name in ('9k', '7k'):
        path = source / f'MSRVTT_train.{name}.csv'
        if name == '7k' and not path.is_file():
            print(f'train_7k.json is left out: there is no {path}.')
            continue
        videos = [(line, row['video_id']) for line, row in read_csv(path, 'video_id')]
        splits[f'train_{name}'] = select(path, videos, data, found, '.mp4')
    rows = read_csv(test, 'video_id', 'sentence')
    check_unique(test, ((line, row['video_id']) for line, row in rows))
    splits['test_1k'] = {f'{row["video_id"]}.mp4': [row['sentence']] for _, row in rows}
    return splits


main = partial(run, convert, __doc__, 'data/msrvtt', PUBLISHER, COUNTS)

if __name__ == '__main__':
    with exit_on_user_error():
        main()
