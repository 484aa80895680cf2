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

from pathlib import Path

from common import BadFile, Split, captions, get, read_json, read_list, run, select

TRAIN, VALIDATION = 'vatex_training_v1.0.json', 'vatex_validation_v1.0.json'
OWNER = "The data set's page (eric-xw.github.io/vatex-website) publishes it."
COUNTS = (
    'The field counts 25,991 training, 1,500 validation and 1,500 test '
    'videos with 10 captions each.'
)


def read_captions(path: Path) -> dict[str, list[str]]:
    """English captions of each video."""
    found = {}
    for number, record in enumerate(read_json(path, list)):
        place = f'{path}: entry {number}'
        video = get(record, 'videoID', str, place)
        if video in found:
            raise BadFile(f'{place}: {video} stands there twice.')
        texts = get(record, 'enCap', list, place)
        found[video] = captions(texts, f'{place}, {video}')
    return found


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    splits = dict(train=read_captions(source / TRAIN))
    validation = read_captions(source / VALIDATION)
    lists = {name: source / f'{name}_list.txt' for name in ('val', 'test')}
    there = [path for path in lists.values() if path.is_file()]
    if len(there) == 1:
        raise BadFile(
            f'There is {there[0]}, but not the list of the other '
            'half, val_list.txt or test_list.txt.'
        )
    for name, path in lists.items() if there else ():
        splits[name] = select(path, read_list(path), source / VALIDATION, validation)
    if there:
        unused = validation.keys() - splits['val'].keys() - (splits['test'].keys())
        print(
            f'{len(unused):,} of the {len(validation):,} videos of '
            f'{VALIDATION} are in neither list.'
        )
    else:
        splits['test'] = validation
        print(
            f'All of {VALIDATION} is test.json, as there are no '
            'val_list.txt and test_list.txt. The field tests on half of it: '
            'the lists are those of HGR (github.com/cshizhe/hgr_v2t).'
        )
    return {
        f'{name}.json': {f'{video}.mp4': texts for video, texts in split.items()}
        for name, split in splits.items()
    }


def main(argv: list[str] | None = None) -> None:
    run(convert, __doc__, [TRAIN, VALIDATION], OWNER, COUNTS, 'data/vatex', argv)


if __name__ == '__main__':
    main()
