"""Make the annotation files of LSMDC (2016).

Reads, from one folder, its owners' files:

  LSMDC16_annos_training.csv                 training clips
  LSMDC16_annos_val.csv                      validation clips
  LSMDC16_challenge_1000_publictect.csv      the 1,000 test clips

and writes train.json, val.json and test.json for vop.VideoTextDataset. A clip
can have several sentences: each is a caption of it. The videos of three clips,
one of them a test clip, are reported as broken in the field; where yours are,
delete them and give --videos with --skip-missing. Everything is checked before
anything is written.
"""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path

from common import STRIPPED, Split, check_unique, read_lines, run

from projects.vop.datasets.annotations import check_caption, check_name
from projects.vop.errors import UserError, exit_on_user_error, shown

PUBLISHER = (
    'Its owners (sites.google.com/site/describingmovies) give the files to those who '
    'sign their agreement.'
)
COUNTS = (
    'The paper counts 109,673 training, 7,408 validation and 1,000 test '
    'clips; its owners count 101,079 for training.'
)
FILES = dict(
    train='LSMDC16_annos_training.csv',
    val='LSMDC16_annos_val.csv',
    test='LSMDC16_challenge_1000_publictect.csv',
)
BROKEN = (
    '0017_Pianist_00.23.28.872-00.23.34.843',
    '0017_Pianist_00.30.36.767-00.30.38.009',
    '3064_SPARKLE_2012_01.41.07.000-01.41.11.793',
)
TIME = r'\d\d\.\d\d\.\d\d\.\d\d\d'


def read_split(path: Path) -> Split:
    """Captions of each clip; its name says which movie it is of."""
    sentences, keys = defaultdict(list), []
    for number, line in read_lines(path):
        place = f'{path}, line {number}'
        # Not csv's rules: a quotation mark is part of a sentence.
        values = line.split('\t')
        if len(values) != 6:
            raise UserError(f'{place}: {len(values)} columns; six are expected, with tabs between.')
        clip = check_name(values[0].strip(STRIPPED), place)
        sentence = check_caption(values[5], f'{place}: the sentence (column 6)')
        movie = re.fullmatch(f'(.+)_{TIME}-{TIME}', clip)
        if not movie:
            raise UserError(
                f'{place}: {shown(clip, 100)!r} is no clip; '
                'MOVIE_hh.mm.ss.mmm-hh.mm.ss.mmm is expected.'
            )
        keys.append((number, f'"{sentence}" of {clip}'))
        if clip in BROKEN:
            print(
                f'{place}: the video of {clip} is reported as broken. Where '
                'yours is, delete it and give --videos with --skip-missing.'
            )
        sentences[f'{movie[1]}/{clip}.avi'].append(sentence)
    check_unique(path, keys)
    return dict(sentences)


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    return {name: read_split(source / file) for name, file in FILES.items()}


main = partial(run, convert, __doc__, 'data/lsmdc', PUBLISHER, COUNTS)

if __name__ == '__main__':
    with exit_on_user_error():
        main()
