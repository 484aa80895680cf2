"""Make the annotation files of VATEX, with its English captions.

Reads, from one folder, its owners' files, and the lists of the field:

  vatex_training_v1.0.json      captions of the training videos
  vatex_validation_v1.0.json    captions of the validation videos
  val_list.txt, test_list.txt   which of the latter validate and which test
                                in the field (optional)

and writes train.json, val.json and test.json for vop.VideoTextDataset. Without
the lists all validation videos are the test split. Everything is checked
before anything is written.
"""

from functools import partial
from pathlib import Path

from common import Split, check, check_captions, get, read_lines, run, select

from projects.vop.datasets.annotations import check_name
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import read_json

PUBLISHER = 'Its owners (eric-xw.github.io/vatex-website) publish the files.'
COUNTS = (
    'The field counts 25,991 training, 1,500 validation and 1,500 test '
    'videos with 10 captions each.'
)


def read_captions(path: Path) -> dict[str, list[str]]:
    """English captions of each video."""
    found = {}
    for number, record in enumerate(check(read_json(path), list, str(path))):
        place = f'{path}: entry {number}'
        video = check_name(get(record, 'videoID', str, place), place)
        if video in found:
            raise UserError(f'{place}: {video} is listed twice. Remove one of them.')
        found[video] = check_captions(get(record, 'enCap', list, place), f'{place}, {video}')
    return found


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    training = read_captions(source / 'vatex_training_v1.0.json')
    path = source / 'vatex_validation_v1.0.json'
    validation = read_captions(path)
    splits = dict(train={f'{video}.mp4': texts for video, texts in training.items()})
    lists = {name: source / f'{name}_list.txt' for name in ('val', 'test')}
    if any(names.is_file() for names in lists.values()):
        for name, names in lists.items():
            splits[name] = select(names, read_lines(names), path, validation, '.mp4')
        unused = len(validation) - len(splits['val'].keys() | splits['test'].keys())
        print(f'{unused:,} of the {len(validation):,} videos of {path.name} are in neither list.')
    else:
        splits['test'] = {f'{video}.mp4': texts for video, texts in validation.items()}
        print(
            f'All of {path.name} is test.json, as there are no val_list.txt and test_list.txt. '
            'The field tests on half of it: the lists are those of HGR '
            '(github.com/cshizhe/hgr_v2t).'
        )
    return splits


main = partial(run, convert, __doc__, 'data/vatex', PUBLISHER, COUNTS)

if __name__ == '__main__':
    with exit_on_user_error():
        main()
