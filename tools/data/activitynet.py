"""Make the annotation files of ActivityNet Captions.

Reads, from one folder, its owners' files:

  train.json                      sentences of the training videos
  val_1.json                      sentences of the videos of val1
  train_ids.json, val_ids.json    names of these videos (optional)

and writes train.json and, from val1, test.json for vop.VideoTextDataset. As
in the field, the sentences of a video make one paragraph. Everything is
checked before anything is written.
"""

from pathlib import Path

from common import BadFile, Split, captions, get, read_json, run, some

OWNER = (
    "Stanford's page of ActivityNet Captions "
    '(cs.stanford.edu/people/ranjaykrishna/densevid) publishes it.'
)
COUNTS = 'The field counts 10,009 training and 4,917 test videos (val1), each with one paragraph.'


def read_split(path: Path, ids: Path) -> Split:
    """A paragraph for each video."""
    split = {}
    for video, record in read_json(path, dict).items():
        place = f'{path}: {video}'
        sentences = captions(get(record, 'sentences', list, place), place)
        # Only counted: the owners' files hold times that run backwards.
        times = get(record, 'timestamps', list, place)
        if len(times) != len(sentences):
            raise BadFile(f'{place} has {len(sentences)} sentences but {len(times)} timestamps.')
        split[f'{video}.mp4'] = [' '.join(sentences)]
    if ids.is_file():
        listed = {f'{video}.mp4' for video in read_json(ids, list)}
        unlisted = [video for video in split if video not in listed]
        if unlisted:
            raise BadFile(
                f'{ids} does not name {len(unlisted)} videos of '
                f'{path}: {some(unlisted)}. The files do not belong '
                'together.'
            )
        # The owners' lists name some videos that nobody described.
        if len(listed) > len(split):
            print(
                f'{len(listed) - len(split)} of the {len(listed):,} videos '
                f'in {ids} have no sentence in {path}.'
            )
    return split


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    return {
        'train.json': read_split(source / 'train.json', source / 'train_ids.json'),
        'test.json': read_split(source / 'val_1.json', source / 'val_ids.json'),
    }


def main(argv: list[str] | None = None) -> None:
    run(convert, __doc__, ['train.json', 'val_1.json'], OWNER, COUNTS, 'data/activitynet', argv)


if __name__ == '__main__':
    main()
