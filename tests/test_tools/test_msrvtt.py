"""The MSR-VTT converter."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def convert(source, out, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/data/msrvtt.py', source, '--out', out, *arguments],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def source(tmp_path):
    """A small MSR-VTT in its owners' formats."""
    folder = tmp_path / 'source'
    folder.mkdir()
    videos = [f'video{i}' for i in range(6)]
    (folder / 'MSRVTT_data.json').write_text(
        json.dumps(
            {
                'videos': [{'video_id': v, 'split': 'train'} for v in videos],
                'sentences': [
                    {'caption': f'{v} says {i}', 'video_id': v, 'sen_id': i}
                    for v in videos
                    for i in range(3)
                ],
            }
        )
    )
    (folder / 'MSRVTT_train.9k.csv').write_text('video_id\nvideo0\nvideo1\nvideo2\nvideo3\n')
    (folder / 'MSRVTT_train.7k.csv').write_text('video_id\nvideo0\nvideo1\n')
    (folder / 'MSRVTT_JSFUSION_test.csv').write_text(
        'key,vid_key,video_id,sentence\n'
        'ret0,msr4,video4,"a man, with a comma, talks"\n'
        'ret1,msr5,video5,a dog\n'
    )
    return folder


def test_all_splits_are_written(source, tmp_path):
    code, output = convert(source, tmp_path / 'out')
    assert code == 0
    train = json.loads((tmp_path / 'out/train_9k.json').read_text())
    assert list(train) == [f'video{i}.mp4' for i in range(4)]
    assert train['video2.mp4'] == [f'video2 says {i}' for i in range(3)]
    assert len(json.loads((tmp_path / 'out/train_7k.json').read_text())) == 2
    assert json.loads((tmp_path / 'out/test_1k.json').read_text()) == {
        'video4.mp4': ['a man, with a comma, talks'],
        'video5.mp4': ['a dog'],
    }
    assert '4 videos, 12 captions (3.0 a video)' in output
    assert '2 videos, 2 captions (1.0 a video)' in output


def test_the_7k_split_is_optional(source, tmp_path):
    (source / 'MSRVTT_train.7k.csv').unlink()
    code, output = convert(source, tmp_path / 'out')
    assert code == 0 and 'train_7k.json is left out' in output


def test_videos_on_disk_are_checked(source, tmp_path):
    videos = tmp_path / 'videos'
    videos.mkdir()
    for i in (0, 1, 2, 4, 5):
        (videos / f'video{i}.mp4').touch()
    code, output = convert(source, tmp_path / 'out', '--videos', videos)
    assert code == 1 and '1 of 4 videos are not in' in output
    assert 'video3' in output
    (videos / 'video3.mp4').touch()
    assert convert(source, tmp_path / 'out', '--videos', videos)[0] == 0


TRAIN, TEST = 'MSRVTT_train.9k.csv', 'MSRVTT_JSFUSION_test.csv'


@pytest.mark.parametrize(
    'name, text, message',
    [
        (TRAIN, None, 'There is no'),
        (TRAIN, '', 'line 1: no column video_id'),
        (TRAIN, 'video_id\n', 'names no video'),
        (TRAIN, 'id\nvideo0\n', "no column video_id; the header is 'id'"),
        (TRAIN, 'video_id\nvideo0\nvideo1\nvideo0\n', 'line 4: video0 stands already in line 2'),
        (TRAIN, 'video_id\nvideo0\nvideo9\n', 'line 3: video9 has no caption'),
        (TRAIN, 'video_id\nvideo0,x\n', 'line 2: 1 columns expected'),
        (TRAIN, 'video_id\nvideo4\n', '1 test videos are in train_9k.json too'),
        (TEST, 'key,vid_key,video_id,sentence\nret0,msr4,video4\n', 'line 2: 4 columns expected'),
        (TEST, 'key,vid_key,video_id,sentence\nret0,msr4,video4, \n', 'line 2: an empty value'),
        (TEST, 'key,vid_key,video_id\nret0,msr4,video4\n', 'no column sentence'),
        ('MSRVTT_data.json', None, 'There is no'),
        ('MSRVTT_data.json', '{"sentences": [}', 'line 1, column 16'),
        ('MSRVTT_data.json', '[]', 'has no list "sentences"'),
        ('MSRVTT_data.json', '{"sentences": [{"caption": "a"}]}', 'sentence 0'),
        ('MSRVTT_data.json', '{"sentences": [{"caption": " ", "video_id": "video0"}]}', 'is empty'),
    ],
)
def test_bad_files_are_refused_and_nothing_is_written(source, tmp_path, name, text, message):
    if text is None:
        (source / name).unlink()
    else:
        (source / name).write_text(text)
    code, output = convert(source, tmp_path / 'out')
    assert code == 1 and message in output
    assert name in output or 'train_9k.json' in output
    assert 'Nothing was written' in output and 'Traceback' not in output
    assert not (tmp_path / 'out').exists()


def test_the_real_splits_have_the_counts_of_the_field(shared_data, tmp_path):
    """With made-up captions for the training videos, which are not here."""
    source = tmp_path / 'source'
    shutil.copytree(shared_data / 'annotations' / 'msrvtt', source)
    with (source / TRAIN).open() as file:
        videos = [row['video_id'] for row in csv.DictReader(file)]
    with (source / 'MSRVTT_train.7k.csv').open() as file:
        videos = sorted({*videos, *(row['video_id'] for row in csv.DictReader(file))})
    (source / 'MSRVTT_data.json').write_text(
        json.dumps(
            {
                'sentences': [
                    {'caption': f'caption {i}', 'video_id': video}
                    for video in videos
                    for i in range(20)
                ]
            }
        )
    )
    code, output = convert(source, tmp_path / 'out')
    assert code == 0, output
    assert '9,000 videos, 180,000 captions (20.0 a video)' in output
    assert '7,010 videos, 140,200 captions (20.0 a video)' in output
    assert '1,000 videos, 1,000 captions (1.0 a video)' in output
