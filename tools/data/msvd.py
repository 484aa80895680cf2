"""Make the annotation files of MSVD.

Reads, from one folder, the files that the field shares:

  captions_msvd.json    captions of all clips
  train_list.txt        clips of the training split
  val_list.txt          clips of the validation split
  test_list.txt         clips of the test split

and writes train.json, val.json and test.json for vop.VideoTextDataset.
Everything is checked before anything is written.
"""

from pathlib import Path

from common import BadFile, Split, captions, read_json, read_list, run, select

DATA = 'captions_msvd.json'
OWNER = 'The repository of X-Pool (github.com/layer6ai-labs/xpool) holds it, in data/MSVD.'
COUNTS = (
    'The field counts 1,200 videos and 48,774 captions (training), 100 '
    'and 4,290 (validation), 670 and 27,763 (test).'
)


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    data, found, splits = source / DATA, {}, {}
    for clip, texts in read_json(data, dict).items():
        if not isinstance(texts, list) or not texts:
            raise BadFile(f'{data}: {clip} has no list of captions.')
        found[clip] = captions(texts, f'{data}: {clip}')
    for name in ('train', 'val', 'test'):
        path = source / f'{name}_list.txt'
        split = select(path, read_list(path), data, found)
        splits[f'{name}.json'] = {f'{c}.avi': t for c, t in split.items()}
    return splits


def main(argv: list[str] | None = None) -> None:
    run(
        convert,
        __doc__,
        [DATA, 'train_list.txt', 'val_list.txt', 'test_list.txt'],
        OWNER,
        COUNTS,
        'data/msvd',
        argv,
    )


if __name__ == '__main__':
    main()
