"""Make the annotation files of ActivityNet Captions.

Reads, from one folder, its owners' files:

  train.json                      sentences of the training videos
  val_1.json                      sentences of the videos of val1
  train_ids.json, val_ids.json    names of these videos (optional)

and writes train.json and, from val1, test.json for vop.VideoTextDataset. As
in the field, the sentences of a video make one paragraph. Everything is
checked before anything is written.
"""

from functools import partial
from pathlib import Path

from common import Split, check, check_captions, get, run, some

from projects.vop.datasets.annotations import check_name
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import read_json

PUBLISHER = 'Stanford (cs.stanford.edu/people/ranjaykrishna/densevid) publishes the files.'
COUNTS = 'The field counts 10,009 training and 4,917 test videos (val1), each with one paragraph.'


def read_split(path: Path, ids: Path) -> Split:
    """A paragraph for each video."""
    split = {}
    for video, record in check(read_json(path), dict, str(path)).items():
        place = f'{path}: {check_name(video, str(path))}'
        sentences = check_captions(get(record, 'sentences', list, place), place)
        # Only counted: the owners' files hold times that run backwards.
        times = get(record, 'timestamps', list, place)
        if len(times) != len(sentences):
            raise UserError(f'{place} has {len(sentences)} sentences but {len(times)} timestamps.')
        split[f'{video}.mp4'] = [' '.join(sentences)]
    if ids.is_file():
        listed = {f'{video}.mp4' for video in check(read_json(ids), list, str(ids))}
        unlisted = [video for video in split if video not in listed]
        if unlisted:
            raise UserError(
                f'{ids} does not name {len(unlisted)} videos of {path}: {some(unlisted)}. '
                'The files do not belong together.'
            )
        # The owners' lists name some videos that nobody described.
        extra = len(listed) - len(split)
        if extra:
            print(f'{extra} of the {len(listed):,} videos in {ids} have no sentence in {path}.')
    return split


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    return dict(
        train=read_split(source / 'train.json', source / 'train_ids.json'),
        test=read_split(source / 'val_1.json', source / 'val_ids.json'),
    )


main = partial(run, convert, __doc__, 'data/activitynet', PUBLISHER, COUNTS)

if __name__ == '__main__':
    with exit_on_user_error():
        main()
