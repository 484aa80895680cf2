"""Make the annotation files of MSR-VTT.

Reads, from one folder, the files that the field shares:

  MSRVTT_data.json            captions of all videos
  MSRVTT_train.9k.csv         videos of the 9k training split
  MSRVTT_train.7k.csv         videos of the 7k training split (optional)
  MSRVTT_JSFUSION_test.csv    videos and captions of the 1k-A test split

and writes train_9k.json, train_7k.json and test_1k.json for
vop.VideoTextDataset. Everything is checked before anything is written.
"""

from collections import defaultdict
from pathlib import Path

from common import Split, caption, get, read_csv, read_json, refuse_twice, run, select

DATA, TEST = 'MSRVTT_data.json', 'MSRVTT_JSFUSION_test.csv'
OWNER = (
    'The repository of CLIP4Clip (github.com/ArrowLuo/CLIP4Clip) says where the field shares it.'
)
COUNTS = (
    'The field counts 9,000 videos and 180,000 captions (9k), 7,010 and '
    '140,200 (7k), 1,000 and 1,000 (1k-A).'
)


def read_sentences(path: Path) -> dict[str, list[str]]:
    """Captions of each video in ``MSRVTT_data.json``."""
    captions = defaultdict(list)
    sentences = get(read_json(path), 'sentences', list, str(path))
    for number, sentence in enumerate(sentences):
        place = f'{path}: sentence {number}'
        video = get(sentence, 'video_id', str, place)
        captions[video].append(caption(sentence.get('caption'), f'{place}, of {video},'))
    return captions


def read_videos(path: Path) -> list[tuple[int, str]]:
    """Lines and videos of a csv file that names each video once."""
    lines = [(line, row['video_id']) for line, row in read_csv(path, 'video_id')]
    refuse_twice(path, lines)
    return lines


def convert(source: Path) -> dict[str, Split]:
    """Make all splits; see the module."""
    sentences, splits = read_sentences(source / DATA), {}
    for name in ('9k', '7k'):
        path = source / f'MSRVTT_train.{name}.csv'
        if path.is_file():
            splits[f'train_{name}.json'] = select(path, read_videos(path), source / DATA, sentences)
        else:
            print(f'train_{name}.json is left out: there is no {path}.')
    read_videos(source / TEST)
    splits['test_1k.json'] = {
        row['video_id']: [row['sentence']]
        for _, row in read_csv(source / TEST, 'video_id', 'sentence')
    }
    return {
        file: {f'{video}.mp4': texts for video, texts in split.items()}
        for file, split in splits.items()
    }


def main(argv: list[str] | None = None) -> None:
    run(convert, __doc__, [DATA, 'MSRVTT_train.9k.csv', TEST], OWNER, COUNTS, 'data/msrvtt', argv)


if __name__ == '__main__':
    main()
