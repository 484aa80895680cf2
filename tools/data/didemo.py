"""Make the annotation files of DiDeMo.

Reads, from one folder, its owners' files:

  train_data.json    sentences of the training videos
  val_data.json      sentences of the validation videos
  test_data.json     sentences of the test videos

and writes train.json, val.json and test.json for vop.VideoTextDataset. As in
the field, all sentences of a video make one paragraph, and only its first
30 s are used: no more was shown to those who wrote the sentences. Everything
is checked before anything is written.
"""

from functools import partial
from pathlib import Path

from common import Split, group, run

from projects.vop.errors import exit_on_user_error
from projects.vop.fileio import read_json

PUBLISHER = 'Its owners (github.com/LisaAnne/LocalizingMoments) publish the files.'
COUNTS = (
    'The field counts 8,395 training, 1,065 validation and 1,004 test '
    'videos, each with one paragraph.'
)


def read_split(path: Path) -> Split:
    """A paragraph and a window for each video."""
    sentences = group(read_json(path), 'video', 'description', str(path))
    return {v: dict(captions=[' '.join(texts)], end=30.0) for v, texts in sentences.items()}


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    return {name: read_split(source / f'{name}_data.json') for name in ('train', 'val', 'test')}


main = partial(run, convert, __doc__, 'data/didemo', PUBLISHER, COUNTS)

if __name__ == '__main__':
    with exit_on_user_error():
        main()
