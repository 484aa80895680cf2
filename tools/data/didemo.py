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

from collections import defaultdict
from pathlib import Path

from common import Split, caption, get, read_json, run

OWNER = "The data set's repository (github.com/LisaAnne/LocalizingMoments) publishes it."
COUNTS = (
    'The field counts 8,395 training, 1,065 validation and 1,004 test '
    'videos, each with one paragraph.'
)
SECONDS = 30.0


def read_split(path: Path) -> Split:
    """A paragraph and a window for each video."""
    sentences = defaultdict(list)
    for number, moment in enumerate(read_json(path, list)):
        place = f'{path}: entry {number}'
        video = get(moment, 'video', str, place)
        sentences[video].append(
            caption(moment.get('description'), f'{place}: "description" of {video}')
        )
    return {
        video: dict(captions=[' '.join(texts)], end=SECONDS) for video, texts in sentences.items()
    }


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    return {
        f'{name}.json': read_split(source / f'{name}_data.json')
        for name in ('train', 'val', 'test')
    }


def main(argv: list[str] | None = None) -> None:
    files = ['train_data.json', 'val_data.json', 'test_data.json']
    run(convert, __doc__, files, OWNER, COUNTS, 'data/didemo', argv)


if __name__ == '__main__':
    main()
