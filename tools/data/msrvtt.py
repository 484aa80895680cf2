"""Make the annotation files of MSR-VTT.

Reads, from one folder, the files that the field shares:

  MSRVTT_data.json            captions of all videos
  MSRVTT_train.9k.csv         videos of the 9k training split
  MSRVTT_train.7k.csv         videos of the 7k training split (optional)
  MSRVTT_JSFUSION_test.csv    videos and captions of the 1k-A test split

and writes train_9k.json, train_7k.json and test_1k.json for
vop.VideoTextDataset. Everything is checked before anything is written.
"""
import argparse
import csv
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

Captions = Dict[str, List[str]]


class BadFile(Exception):
    """An input file is not what it should be; the message says where."""


def read_sentences(path: Path) -> Captions:
    """Captions of each video in ``MSRVTT_data.json``."""
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except UnicodeDecodeError as error:
        raise BadFile(f'{path} is not UTF-8 text: {error}.') from error
    except json.JSONDecodeError as error:
        raise BadFile(f'{path}, line {error.lineno}, column {error.colno}: '
                      f'not valid JSON ({error.msg}).') from error
    sentences = data.get('sentences') if isinstance(data, dict) else None
    if not isinstance(sentences, list):
        raise BadFile(f'{path} has no list "sentences".')
    captions = defaultdict(list)
    for number, sentence in enumerate(sentences):
        try:
            video, caption = sentence['video_id'], sentence['caption']
        except (KeyError, TypeError):
            raise BadFile(f'{path}: sentence {number} is {sentence}; it must '
                          'have "video_id" and "caption".') from None
        if not isinstance(caption, str) or not caption.strip():
            raise BadFile(f'{path}: sentence {number}, of {video}, is empty.')
        captions[video].append(caption.strip())
    return captions


def read_rows(path: Path, *columns: str) -> Iterator[Tuple[int, list]]:
    """Line numbers and the named columns of a csv file, checked."""
    with path.open(encoding='utf-8', newline='') as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        missing = [column for column in columns if column not in header]
        if missing:
            raise BadFile(f"{path}, line 1: no column {', '.join(missing)}; "
                          f"the header is {','.join(header)!r}.")
        first_line = {}
        for row in reader:
            line = reader.line_num
            values = [row[column] for column in columns]
            if None in row.values() or None in row:
                raise BadFile(f'{path}, line {line}: {len(header)} columns '
                              'expected, as in the header.')
            if not all(value.strip() for value in values):
                raise BadFile(f'{path}, line {line}: an empty value.')
            video = values[0]
            if video in first_line:
                raise BadFile(f'{path}, line {line}: {video} stands already '
                              f'in line {first_line[video]}.')
            first_line[video] = line
            yield line, [value.strip() for value in values]
        if not first_line:
            raise BadFile(f'{path} names no video.')


def read_split(path: Path, sentences: Captions, source: Path) -> Captions:
    """All captions of the videos that a training csv names."""
    captions = {}
    for line, (video, ) in read_rows(path, 'video_id'):
        if video not in sentences:
            raise BadFile(f'{path}, line {line}: {video} has no caption in '
                          f'{source}.')
        captions[video] = sentences[video]
    return captions


def check_videos(captions: Captions, folder: Path) -> None:
    """Refuse a split with videos that are not in ``folder``."""
    there = set(os.listdir(folder))
    missing = [video for video in captions if f'{video}.mp4' not in there]
    if missing:
        raise BadFile(f'{len(missing)} of {len(captions)} videos are not in '
                      f"{folder}: {', '.join(missing[:5])}"
                      f"{', ...' if len(missing) > 5 else ''}.")


def convert(source: Path, out: Path, videos: Optional[Path]) -> None:
    """Convert all splits; see the module."""
    data, splits = source / 'MSRVTT_data.json', {}
    for path in (data, source / 'MSRVTT_train.9k.csv',
                 source / 'MSRVTT_JSFUSION_test.csv'):
        if not path.is_file():
            raise BadFile(f'There is no {path}.')
    sentences = read_sentences(data)
    for name in ('9k', '7k'):
        path = source / f'MSRVTT_train.{name}.csv'
        if path.is_file():
            splits[f'train_{name}.json'] = read_split(path, sentences, data)
        else:
            print(f'train_{name}.json is left out: there is no {path}.')
    path = source / 'MSRVTT_JSFUSION_test.csv'
    test = {
        video: [caption]
        for _, (video, caption) in read_rows(path, 'video_id', 'sentence')
    }
    splits['test_1k.json'] = test
    for name, captions in splits.items():
        if captions is not test and test.keys() & captions.keys():
            shared = sorted(test.keys() & captions.keys())
            raise BadFile(f'{len(shared)} test videos are in {name} too: '
                          f"{', '.join(shared[:5])}, ...")
        if videos is not None:
            check_videos(captions, videos)

    out.mkdir(parents=True, exist_ok=True)
    for name, captions in splits.items():
        text = json.dumps({f'{video}.mp4': c for video, c in captions.items()})
        part = out / f'{name}.part'
        part.write_text(text, encoding='utf-8')
        os.replace(part, out / name)
        total = sum(map(len, captions.values()))
        print(f'{out / name}: {len(captions):,} videos, {total:,} captions '
              f'({total / len(captions):.1f} a video)')
    print('The field counts 9,000 videos and 180,000 captions (9k), 7,010 and '
          '140,200 (7k), 1,000 and 1,000 (1k-A).')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='folder of these files')
    parser.add_argument(
        '--out', type=Path, default=Path('data/msrvtt'),
        help='folder to write to (default: %(default)s)')
    parser.add_argument(
        '--videos', type=Path,
        help='folder of the videos; check that each is there')
    args = parser.parse_args()
    try:
        convert(args.source, args.out, args.videos)
    except BadFile as error:
        raise SystemExit(f'{error}\nNothing was written.') from error


if __name__ == '__main__':
    main()
