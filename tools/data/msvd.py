"""Make the annotation files of MSVD.

Reads, from one folder, the files that the field shares:

  captions_msvd.json    captions of all clips
  train_list.txt        clips of the training split
  val_list.txt          clips of the validation split
  test_list.txt         clips of the test split

and writes train.json, val.json and test.json for vop.VideoTextDataset.
Everything is checked before anything is written.
"""

from functools import partial
from pathlib import Path

from common import Split, check, check_captions, read_lines, run, select

from projects.vop.datasets.annotations import check_name
from projects.vop.errors import exit_on_user_error
from projects.vop.fileio import read_json

PUBLISHER = 'X-Pool (github.com/layer6ai-labs/xpool) holds the files, in data/MSVD.'
COUNTS = (
    'The field counts 1,200 videos and 48,774 captions (training), 100 '
    'and 4,290 (validation), 670 and 27,763 (test).'
)


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    data, splits = source / 'captions_msvd.json', {}
    found = {
        clip: check_captions(texts, f'{data}: {check_name(clip, str(data))}')
        for clip, texts in check(read_json(data), dict, str(data)).items()
    }
    for name in ('train', 'val', 'test'):
        path = source / f'{name}_list.txt'
        splits[name] = select(path, read_lines(path), data, found, '.avi')
    return splits


main = partial(run, convert, __doc__, 'data/msvd', PUBLISHER, COUNTS)

if __name__ == '__main__':
    with exit_on_user_error():
        main()
