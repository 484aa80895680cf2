"""The converters of the field's data sets."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from projects.vop.datasets import Annotation, read_annotations

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools/data'
NAMES = ['didemo', 'activitynet', 'lsmdc', 'msvd', 'vatex']
BROKEN = '0017_Pianist_00.23.28.872-00.23.34.843'


def clip(movie, second):
    return f'{movie}_00.00.{second:02}.000-00.00.{second + 1:02}.500'


def lsmdc_line(clip, sentence):
    times = '00.00.01.000\t00.00.02.500\t00.00.01.000\t00.00.02.500'
    return f'{clip}\t{times}\t{sentence}\n'


def moments(*videos):
    return json.dumps(
        [
            dict(video=video, description=f' {video} does {i}. ', times=[[0, 1]])
            for i in range(2)
            for video in videos
        ]
    )


def described(*videos):
    return json.dumps(
        {
            video: dict(
                duration=9.0,
                timestamps=[[0, 3], [5, 4]],
                sentences=[f'{video} begins.', '\n It ends. '],
            )
            for video in videos
        }
    )


def records(*videos):
    return json.dumps(
        [dict(videoID=v, enCap=[f'{v} {i}' for i in range(3)], chCap=['猫']) for v in videos]
    )


# A small copy of each data set, as its owners format it.
SOURCES = dict(
    didemo={
        'train_data.json': moments('1@N0_a.avi', '2@N0_b.mov'),
        'val_data.json': moments('3@N0_c.avi'),
        'test_data.json': moments('4@N0_d.MPG', '5@N0_e'),
    },
    activitynet={
        'train.json': described('v_a', 'v_b'),
        'val_1.json': described('v_c'),
        'train_ids.json': json.dumps(['v_a', 'v_b', 'v_x']),
        'val_ids.json': json.dumps(['v_c']),
    },
    lsmdc={
        'LSMDC16_annos_training.csv': lsmdc_line(clip('1_Up', 1), 'SOMEONE says "hi".')
        + lsmdc_line(BROKEN, 'SOMEONE plays.')
        + lsmdc_line(clip('1_Up', 3), 'A "quote, open.')
        + lsmdc_line(clip('1_Up', 1), ' He waves.'),
        'LSMDC16_annos_val.csv': lsmdc_line(clip('2_It_is', 1), 'It is.'),
        'LSMDC16_challenge_1000_publictect.csv': lsmdc_line(clip('3_Go', 1), 'Go.')
        + lsmdc_line(clip('3_Go', 3), 'Go.'),
    },
    msvd={
        'captions_msvd.json': json.dumps({f'-{i}_1_9': [f'{i} a', f'{i} b '] for i in range(5)}),
        'train_list.txt': '-0_1_9\n-1_1_9\n',
        'val_list.txt': '-2_1_9\n',
        'test_list.txt': '-3_1_9\r\n-4_1_9',
    },
    vatex={
        'vatex_training_v1.0.json': records('a_0_9', 'b_0_9'),
        'vatex_validation_v1.0.json': records('c_0_9', 'd_0_9', 'e_0_9'),
        'val_list.txt': 'c_0_9\n',
        'test_list.txt': 'd_0_9\n',
    },
)

# What is made of it: videos and their captions.
PARAGRAPH = '{0} does 0. {0} does 1.'
WANTED = dict(
    didemo=dict(
        train={v: [PARAGRAPH.format(v)] for v in ('1@N0_a.avi', '2@N0_b.mov')},
        val={'3@N0_c.avi': [PARAGRAPH.format('3@N0_c.avi')]},
        test={v: [PARAGRAPH.format(v)] for v in ('4@N0_d.MPG', '5@N0_e')},
    ),
    activitynet=dict(
        train={'v_a.mp4': ['v_a begins. It ends.'], 'v_b.mp4': ['v_b begins. It ends.']},
        test={'v_c.mp4': ['v_c begins. It ends.']},
    ),
    lsmdc=dict(
        train={
            f'0017_Pianist/{BROKEN}.avi': ['SOMEONE plays.'],
            f'1_Up/{clip("1_Up", 1)}.avi': ['SOMEONE says "hi".', 'He waves.'],
            f'1_Up/{clip("1_Up", 3)}.avi': ['A "quote, open.'],
        },
        val={f'2_It_is/{clip("2_It_is", 1)}.avi': ['It is.']},
        test={f'3_Go/{clip("3_Go", 1)}.avi': ['Go.'], f'3_Go/{clip("3_Go", 3)}.avi': ['Go.']},
    ),
    msvd=dict(
        train={f'-{i}_1_9.avi': [f'{i} a', f'{i} b'] for i in (0, 1)},
        val={'-2_1_9.avi': ['2 a', '2 b']},
        test={f'-{i}_1_9.avi': [f'{i} a', f'{i} b'] for i in (3, 4)},
    ),
    vatex=dict(
        train={f'{v}_0_9.mp4': [f'{v}_0_9 {i}' for i in range(3)] for v in 'ab'},
        val={'c_0_9.mp4': [f'c_0_9 {i}' for i in range(3)]},
        test={'d_0_9.mp4': [f'd_0_9 {i}' for i in range(3)]},
    ),
)


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs a converter; gives whether it went well, and what it said."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def run(name, source, *arguments):
        argv = [source, '--out', tmp_path / 'out', *arguments]
        try:
            importlib.import_module(name).main(list(map(str, argv)))
        except SystemExit as error:
            return False, capsys.readouterr().out + str(error)
        return True, capsys.readouterr().out

    return run


@pytest.fixture
def source(tmp_path):
    """Writes the small copy of a data set."""

    def make(name):
        folder = tmp_path / 'source'
        folder.mkdir()
        for file, text in SOURCES[name].items():
            (folder / file).write_text(text, encoding='utf-8', newline='')
        return folder

    return make


def read_out(tmp_path):
    return {path.stem: read_annotations(path) for path in (tmp_path / 'out').iterdir()}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize('name', NAMES)
def test_all_splits_are_written(convert, source, tmp_path, name):
    done, output = convert(name, source(name))
    assert done, output
    assert read_out(tmp_path) == {
        split: {
            video: Annotation(texts, end=30.0 if name == 'didemo' else None)
            for video, texts in videos.items()
        }
        for split, videos in WANTED[name].items()
    }
    for split, videos in WANTED[name].items():
        count = sum(map(len, videos.values()))
        assert (
            f'{split}.json: {len(videos)} videos, {count} captions '
            f'({count / len(videos):.1f} a video)'
        ) in output
    assert 'The field counts' in output or 'The paper counts' in output


@pytest.mark.parametrize('name', ['msrvtt', *NAMES])
def test_its_config_reads_what_it_writes(name):
    config = Config.fromfile(
        ROOT / 'configs/_base_/datasets' / ('msrvtt_9k.py' if name == 'msrvtt' else f'{name}.py')
    )
    test, train = ('test_1k', 'train_9k') if name == 'msrvtt' else ('test', 'train')
    for loader, split in (
        (config.train_dataloader, train),
        (config.val_dataloader, test),
        (config.test_dataloader, test),
    ):
        assert loader.dataset.data_root == f'data/{name}'
        assert loader.dataset.ann_file == f'{split}.json'
        assert loader.dataset.data_prefix == dict(video='videos')
        assert [step.type for step in loader.dataset.pipeline[:3]] == [
            'DecordInit',
            'vop.TimeWindow',
            'UniformSample',
        ]
    config.merge_from_dict({'val_dataloader.dataset.ann_file': 'val.json'})
    assert config.test_dataloader.dataset.ann_file == f'{test}.json'


def test_what_is_special_is_said(convert, source, tmp_path):
    folder = source('activitynet')
    assert '1 of the 3 videos in' in convert('activitynet', folder)[1]
    shutil.rmtree(folder)
    assert (f'training.csv, line 2: the video of {BROKEN} is reported as broken') in convert(
        'lsmdc', source('lsmdc')
    )[1]
    shutil.rmtree(folder)
    folder = source('vatex')
    assert '1 of the 3 videos of vatex_validation' in convert('vatex', folder)[1]


def test_vatex_without_lists_tests_on_all_validation_videos(convert, source, tmp_path):
    folder = source('vatex')
    (folder / 'val_list.txt').unlink()
    done, output = convert('vatex', folder)
    assert not done and 'not the list of the other half' in output
    (folder / 'test_list.txt').unlink()
    done, output = convert('vatex', folder)
    assert done and 'All of vatex_validation_v1.0.json is test.json' in output
    splits = read_out(tmp_path)
    assert set(splits) == {'train', 'test'} and len(splits['test']) == 3


def test_activitynet_without_lists(convert, source):
    folder = source('activitynet')
    (folder / 'train_ids.json').unlink()
    (folder / 'val_ids.json').unlink()
    assert convert('activitynet', folder)[0]


# Refused input

FIRST = dict(
    didemo='train_data.json',
    activitynet='train.json',
    lsmdc='LSMDC16_annos_training.csv',
    msvd='captions_msvd.json',
    vatex='vatex_training_v1.0.json',
)
JSONS = [(name, file) for name in NAMES for file in SOURCES[name] if file.endswith('.json')]
LISTS = [
    ('msvd', 'train_list.txt'),
    ('msvd', 'test_list.txt'),
    ('vatex', 'val_list.txt'),
    ('vatex', 'test_list.txt'),
]
TEST = 'LSMDC16_challenge_1000_publictect.csv'
UP = lsmdc_line(clip('1_Up', 1), 'x')
BAD = [
    *(
        (
            name,
            file,
            None,
            'publish'
            if name not in ('lsmdc', 'msvd')
            else 'agreement'
            if name == 'lsmdc'
            else 'github.com',
        )
        for name in NAMES
        for file in SOURCES[name]
        if 'ids' not in file and not (name == 'vatex' and 'list' in file)
    ),
    *(
        (name, file, b'["M\xe4dchen"]', 'is not UTF-8 text')
        for name in NAMES
        for file in SOURCES[name]
    ),
    *((*place, '{\n"a": }', 'line 2, column 6') for place in JSONS),
    *((*place, '7', 'of videos') for place in JSONS),
    *(
        (name, file, '[]' if name in ('didemo', 'vatex') else '{}', 'of videos')
        for name, file in JSONS
    ),
    *((*place, '{"a": 1, "a": 2}', '"a" stands there twice') for place in JSONS),
    *((*place, '', 'names no video') for place in LISTS),
    *((*place, '-0_1_9\n\n', 'line 2: an empty line') for place in LISTS),
    *((*place, 'q_0_9\n', 'line 1: q_0_9 has no caption in') for place in LISTS),
    *((*place, 'a\nb\n a\n', 'line 3: a stands already in line 1') for place in LISTS),
    ('msvd', 'test_list.txt', '-3_1_9\n-0_1_9\n', '1 test videos are in train.json too: -0_1_9'),
    ('msvd', 'val_list.txt', '-3_1_9\n', '1 test videos are in val.json too'),
    ('msvd', FIRST['msvd'], '{"-0_1_9": []}', '-0_1_9 has no list of capt'),
    ('msvd', FIRST['msvd'], '{"-0_1_9": "x"}', '-0_1_9 has no list of capt'),
    ('msvd', FIRST['msvd'], '{"-0_1_9": ["x", " "]}', '-0_1_9: caption 2 is'),
    ('msvd', FIRST['msvd'], '{"-0_1_9": [7]}', '-0_1_9: caption 1 is empty'),
    ('didemo', 'val_data.json', '["x"]', 'entry 0 has no text "video"'),
    ('didemo', 'val_data.json', '[{"video": 3}]', 'entry 0 has no text "vid'),
    ('didemo', 'val_data.json', '[{"video": "a.avi"}]', 'entry 0: "description" of a.avi is empty'),
    (
        'didemo',
        'val_data.json',
        '[{"video": "a.avi", "description": "x"}, {"video": "a.avi", "description": " "}]',
        'entry 1: "description" of a.avi is empty',
    ),
    (
        'didemo',
        'val_data.json',
        moments('a.avi', 'a.mp4'),
        'val.json: two of its videos differ in folder or extension',
    ),
    (
        'didemo',
        'val_data.json',
        moments('1@N0_a.mp4'),
        '1 val videos are in train.json too: 1@N0_a',
    ),
    ('didemo', 'test_data.json', moments('1@N0_a.avi'), '1 test videos are in train.json too'),
    ('activitynet', 'val_1.json', '{"v_c": []}', 'v_c has no list "sentence'),
    ('activitynet', 'val_1.json', '{"v_c": {"sentences": []}}', 'v_c has no list "sentences"'),
    ('activitynet', 'val_1.json', '{"v_c": {"sentences": ["x", ""]}}', 'v_c: caption 2 is empty'),
    ('activitynet', 'val_1.json', '{"v_c": {"sentences": ["x"]}}', 'v_c has no list "timestamps"'),
    (
        'activitynet',
        'val_1.json',
        '{"v_c": {"sentences": ["x"], "timestamps": [[0, 1], [1, 2]]}}',
        'v_c has 1 sentences but 2 timestamps',
    ),
    (
        'activitynet',
        'val_1.json',
        described('v_a', 'v_c'),
        'val_ids.json does not name 1 videos of',
    ),
    ('activitynet', 'train_ids.json', '["v_a"]', 'does not name 1 videos of'),
    ('lsmdc', TEST, '', 'names no video'),
    ('lsmdc', TEST, 'a\tb\n', 'line 1: 2 columns, where six'),
    ('lsmdc', TEST, UP.replace('x', 'x\ty'), 'line 1: 7 columns, where six'),
    ('lsmdc', TEST, UP.replace('x', ' '), 'line 1: the sentence is empty'),
    ('lsmdc', TEST, lsmdc_line('1_Up', 'x'), "line 1: '1_Up' is no name of"),
    ('lsmdc', TEST, f'{UP}\n{UP}', 'line 2: an empty line'),
    ('lsmdc', TEST, UP, '1 test videos are in train.json too'),
    *(
        (
            'lsmdc',
            file,
            UP + lsmdc_line(clip('1_Up', 3), 'x') + UP,
            'line 3: "x" of 1_Up_00.00.01.000-00.00.02.500 stands already in line 1. Remove',
        )
        for file in SOURCES['lsmdc']
    ),
    ('vatex', FIRST['vatex'], '[{"enCap": ["x"]}]', 'entry 0 has no text "v'),
    ('vatex', FIRST['vatex'], '[{"videoID": "a"}]', 'entry 0 has no list "en'),
    (
        'vatex',
        FIRST['vatex'],
        '[{"videoID": "a", "enCap": ["x", 7]}]',
        'entry 0, a: caption 2 is empty',
    ),
    ('vatex', FIRST['vatex'], records('a', 'b', 'a'), 'entry 2: a stands'),
    ('vatex', FIRST['vatex'], records('d_0_9'), '1 test videos are in train'),
    ('vatex', 'val_list.txt', 'd_0_9\n', '1 test videos are in val.json too'),
]


@pytest.mark.parametrize('name, file, text, message', BAD)
def test_bad_files_are_refused_and_nothing_is_written(
    convert, source, tmp_path, name, file, text, message
):
    path = source(name) / file
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    done, output = convert(name, path.parent)
    assert not done and 'Nothing was written' in output
    assert message in output
    assert file in output or '.json too' in output or 'two of its' in output
    assert not (tmp_path / 'out').exists()


# Videos on disk


def test_names_on_disk_are_used(convert, source, tmp_path):
    videos = touch(
        tmp_path / 'videos',
        '1@N0_a.mp4',
        '3@N0_c.avi',
        '4@N0_d.webm',
        '5@N0_e.mp4',
        '9@N0_a.mp4',
        'else/1@N0_a.txt',
        'else/1@N0_a',
    )
    touch(tmp_path / 'disk', 'er/2@N0_b.MKV')
    (videos / 'deep').symlink_to(tmp_path / 'disk')
    done, output = convert('didemo', source('didemo'), '--videos', videos)
    assert done, output
    splits = read_out(tmp_path)
    assert list(splits['train']) == ['1@N0_a.mp4', 'deep/er/2@N0_b.MKV']
    assert list(splits['test']) == ['4@N0_d.webm', '5@N0_e.mp4']
    assert splits['train']['1@N0_a.mp4'] == Annotation([PARAGRAPH.format('1@N0_a.avi')], end=30)
    assert f'make that a link to {videos}' in output


def test_names_with_points_are_found(convert, source, tmp_path):
    """Also where all clips lie in one folder, which is a link."""
    clips = [Path(v).stem for s in WANTED['lsmdc'].values() for v in s]
    touch(tmp_path / 'disk', *(f'{clip}.mp4' for clip in clips))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/videos').symlink_to(tmp_path / 'disk')
    done, output = convert('lsmdc', source('lsmdc'), '--videos', tmp_path / 'out/videos')
    assert done and 'make that a link' not in output
    (tmp_path / 'out/videos').unlink()
    assert sorted(v for s in read_out(tmp_path).values() for v in s) == sorted(
        f'{clip}.mp4' for clip in clips
    )


ALL = [Path(video) for split in WANTED['msvd'].values() for video in split]


def test_missing_videos_are_counted_and_named(convert, source, tmp_path):
    folder = source('msvd')
    videos = touch(tmp_path / 'videos', *ALL)
    (videos / '-3_1_9.avi').unlink()
    done, output = convert('msvd', folder, '--videos', videos)
    assert not done and 'Nothing was written' in output
    assert 'test.json: 1 of 2 videos are not in' in output
    assert '-3_1_9.avi' in output and '--skip-missing' in output
    assert not (tmp_path / 'out').exists()


def test_missing_videos_can_be_left_out(convert, source, tmp_path):
    folder = source('msvd')
    videos = touch(tmp_path / 'videos', *ALL)
    (videos / '-1_1_9.avi').unlink()
    arguments = ('msvd', folder, '--videos', videos, '--skip-missing')
    done, output = convert(*arguments)
    assert done and 'train.json: 1 of 2 videos are not in' in output
    assert 'cannot be compared' not in output
    (videos / '-3_1_9.avi').unlink()
    done, output = convert(*arguments)
    assert done and 'test.json: 1 of 2 videos are not in' in output
    assert 'cannot be compared' in output
    assert {name: list(videos) for name, videos in read_out(tmp_path).items()} == dict(
        train=['-0_1_9.avi'], val=['-2_1_9.avi'], test=['-4_1_9.avi']
    )
    (videos / '-2_1_9.avi').unlink()
    done, output = convert(*arguments)
    assert not done and 'val.json: 1 of 1 videos are not in' in output


def test_two_files_that_could_be_a_video_are_refused(convert, source, tmp_path):
    videos = touch(tmp_path / 'videos', *ALL, 'more/-3_1_9.mp4')
    done, output = convert('msvd', source('msvd'), '--videos', videos)
    assert not done and 'Nothing was written' in output
    assert 'Both -3_1_9.avi and more/-3_1_9.mp4' in output
    assert not (tmp_path / 'out').exists()


def test_wrong_command_lines(convert, source, tmp_path, capsys):
    folder = source('msvd')
    done, output = convert('msvd', folder, '--videos', tmp_path / 'no')
    assert not done and f'There is no folder {tmp_path / "no"}' in output
    assert not convert('msvd', folder, '--skip-missing')[0]
    assert not (tmp_path / 'out').exists()


# The real files


@pytest.mark.parametrize(
    'name, lines',
    [
        (
            'activitynet',
            [
                'train.json: 10,009 videos, 10,009 captions',
                'test.json: 4,917 videos, 4,917 captions',
                '15 of the 10,024 videos',
                '9 of the 4,926 videos',
            ],
        ),
        (
            'msvd',
            [
                'train.json: 1,200 videos, 48,774 captions',
                'val.json: 100 videos, 4,290 captions',
                'test.json: 670 videos, 27,763 captions',
            ],
        ),
    ],
)
def test_the_real_files_have_the_counts_of_the_field(convert, shared_data, tmp_path, name, lines):
    done, output = convert(name, shared_data / 'annotations' / name)
    assert done and all(line in output for line in lines)
    splits = read_out(tmp_path)  # checks them
    if name == 'activitynet':
        [paragraph] = splits['train']['v_QOlSCBRmfWY.mp4'].captions
        assert paragraph.startswith(
            'A young woman is seen standing in a room and leads into her dancing. The girl '
        )


def test_didemo_as_its_script_downloads_it(convert, source, tmp_path):
    """``x.avi`` is saved as ``x.avi.mp4``."""
    folder, videos = source('didemo'), tmp_path / 'videos'
    videos.mkdir()
    names = [video for split in WANTED['didemo'].values() for video in split]
    for name in names:
        (videos / f'{name}.mp4').touch()
    done, output = convert('didemo', folder, '--videos', videos)
    assert done, output
    written = [v for split in read_out(tmp_path).values() for v in split]
    assert sorted(written) == sorted(f'{name}.mp4' for name in names)


def test_the_real_test_clips_of_lsmdc(convert, source, shared_data, tmp_path):
    folder = source('lsmdc')
    shutil.copy(shared_data / 'annotations/lsmdc' / TEST, folder)
    done, output = convert('lsmdc', folder)
    assert done and 'test.json: 1,000 videos, 1,000 captions' in output
    assert (
        'line 721: the video of 3064_SPARKLE_2012_01.41.07.000-01.41.11.793 is reported as broken'
    ) in output
    name = '3064_SPARKLE_2012/3064_SPARKLE_2012_01.10.49.683-01.10.52.477.avi'
    assert read_out(tmp_path)['test'][name].captions == [
        'throws one last punch in the direction of the club.'
    ]


@pytest.mark.parametrize('name', NAMES)
def test_it_runs_as_a_script_and_says_what_it_reads(name):
    done = subprocess.run(
        [sys.executable, TOOLS / f'{name}.py', '--help'], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert all(file in done.stdout for file in SOURCES[name])
    assert f'data/{name}' in done.stdout


def test_converters_start_fast():
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            f'import {", ".join(NAMES)}, custom, msrvtt, '
            "sys; sys.exit(bool({'torch', 'numpy', 'projects'} & {*sys.modules}))",
        ],
        cwd=TOOLS,
        env={},
    )
    assert done.returncode == 0
