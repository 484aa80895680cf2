"""The converter of a user's own data set."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from projects.vop.datasets import Annotation, read_annotations
from projects.vop.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]
LINES = [(f'clip{i}', f'caption {j} of {i}') for i in range(20) for j in range(2)]


def joined(*lines):
    return '\n'.join(lines) + '\n'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder, to run in, with 20 videos beside it."""
    project = tmp_path / 'project'
    shutil.copytree(ROOT / 'configs', project / 'configs')
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(ROOT / 'tools/data'))
    folder = tmp_path / 'videos'
    for i in range(20):
        path = folder / ('deep' if i % 2 else '') / f'clip{i}.mp4'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return project


@pytest.fixture
def convert(project, capsys):
    """Runs the converter; gives whether it went well, and what it said."""

    def run(lines, *arguments, name='cooking', header='video,caption'):
        if not isinstance(lines, (str, bytes)):
            lines = joined(header, *map(','.join, lines))
        if isinstance(lines, str):
            lines = lines.encode()
        Path('captions.csv').write_bytes(lines)
        argv = ['../videos', 'captions.csv', name, *map(str, arguments)]
        try:
            importlib.import_module('custom').main(argv)
        except SystemExit as error:
            return False, capsys.readouterr().out + str(error)
        return True, capsys.readouterr().out

    return run


def read_splits(name='cooking'):
    return [read_annotations(f'data/{name}/{split}.json') for split in ('train', 'test')]


def path_of(i):
    return f'{"deep/" if i % 2 else ""}clip{i}.mp4'


def test_a_part_of_the_videos_is_drawn(convert):
    done, output = convert(LINES)
    assert done, output
    train, test = read_splits()
    assert len(train) == 18 and len(test) == 2 and not train.keys() & test
    assert {**train, **test} == {
        path_of(i): Annotation([f'caption {j} of {i}' for j in range(2)]) for i in range(20)
    }
    assert 'train.json: 18 videos, 36 captions (2.0 a video)' in output
    assert output.endswith('python tools/train.py configs/vop_cooking.py\n')


def test_the_draw_depends_on_the_seed_alone(convert):
    drawn = []
    for lines, seed in ((LINES, 0), (LINES[::-1], 0), (LINES, 1)):
        assert convert(lines, '--seed', seed, '--test-fraction', 0.25)[0]
        drawn.append(set(read_splits()[1]))
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1] != drawn[2]


def test_at_least_one_video_is_tested_on(convert):
    assert convert(LINES[:4])[0]
    assert [len(split) for split in read_splits()] == [1, 1]


def test_the_column_split(convert):
    lines = [(video, text, 'test' if i < 6 else 'train') for i, (video, text) in enumerate(LINES)]
    assert convert(lines, header='video,caption,split')[0]
    assert set(read_splits()[1]) == {path_of(i) for i in range(3)}


def test_a_file_of_the_test_captions(convert):
    Path('test.csv').write_text('caption,video\n"a, b",clip19\nc,clip18\n')
    assert convert(LINES[:30], '--test', 'test.csv')[0]
    train, test = read_splits()
    assert set(train) == {path_of(i) for i in range(15)}
    assert test == {path_of(19): Annotation(['a, b']), path_of(18): Annotation(['c'])}


def test_windows(convert):
    lines = [
        ('clip0', 'a', '', '2.5', 'test'),
        ('clip2', 'b', '1', '3', 'train'),
        ('clip2', 'c', '1.0', '3', 'train'),
        ('clip4', 'd', '', '', 'train'),
        ('clip6', 'e', '7', '', 'train'),
    ]
    done, output = convert(lines, header='video,caption,start,end,split')
    assert done, output
    assert read_splits() == [
        {
            'clip2.mp4': Annotation(['b', 'c'], 1, 3),
            'clip4.mp4': Annotation(['d']),
            'clip6.mp4': Annotation(['e'], start=7),
        },
        {'clip0.mp4': Annotation(['a'], end=2.5)},
    ]


@pytest.mark.parametrize(
    'name', ['clip1', 'deep/clip1', 'deep/clip1.mp4', './deep/clip1.mp4', 'clip1.avi']
)
def test_names_of_videos(convert, name):
    assert convert([(name, 'a'), ('clip0', 'b'), ('clip2', 'c')])[0]
    train, test = read_splits()
    assert set(train) | set(test) == {path_of(i) for i in range(3)}


def test_names_with_points(convert):
    for name in ('talk.1', 'talk.2'):
        Path(f'../videos/{name}.mp4').touch()
    assert convert([('talk.1', 'a'), ('talk.2', 'b')])[0]
    train, test = read_splits()
    assert set(train) | set(test) == {'talk.1.mp4', 'talk.2.mp4'}


def test_a_path_chooses_among_files_of_a_name(convert):
    Path('../videos/clip1.avi').touch()
    Path('../videos/deep/clip1.avi').touch()
    for name in ('clip1.avi', 'deep/clip1.mp4', 'deep/clip1.avi'):
        assert convert([(name, 'a'), ('clip0', 'b')])[0]
        assert any(name in split for split in read_splits())
    done, output = convert([('clip0', 'b'), ('deep/clip1', 'a')])
    assert not done and 'Both deep/clip1.avi and deep/clip1.mp4' in output
    assert 'deep/clip1 (line 3)' in output


def test_a_table_of_a_spreadsheet(convert):
    """With a mark at its start, and carriage returns."""
    text = 'video,caption\r\nclip0,Mädchen\r\nclip2,"two\r\nlines"\r\n'
    done, output = convert(text.encode('utf-8-sig'))
    assert done, output
    train, test = read_splits()
    assert {**train, **test}['clip0.mp4'].captions == ['Mädchen']


def test_its_config(convert, write_video, project):
    for i in range(20):
        write_video(Path('../videos', path_of(i)), 3)
    lines = [(*line, '1') for line in LINES]
    done, output = convert(lines, header='video,caption,end')
    assert done
    path = project / 'configs/_base_/datasets/cooking.py'
    config = Config.fromfile(path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.data_prefix.video == str(project.parent / 'videos')
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset[0]['inputs']['imgs']) == 12
    assert len(dataset) == 2
    common = Config.fromfile(path.with_name('didemo.py'))
    for key in ('data_prefix', 'data_root', 'ann_file'):
        for loader in (config, common):
            for split in ('train', 'val', 'test'):
                loader[f'{split}_dataloader'].dataset.pop(key)
            loader.pop(key, None)
    assert config.to_dict() == common.to_dict()


def test_it_can_be_run_again(convert):
    assert convert(LINES)[0]
    Path('configs/vop_cooking.py').touch()  # a user's own
    assert convert(LINES[:20])[0]
    assert sum(map(len, read_splits())) == 10


@pytest.mark.parametrize(
    'name',
    [
        'msrvtt',
        'msrvtt_9k',
        'didemo',
        'moving_shapes',
        'mine',
        'made',
        '1a',
        'a-b',
        'a/b',
        '../a',
        '',
        '_a',
        'ä',
        'a.py',
        'a\n',
    ],
)
def test_names_that_are_taken_or_no_names(convert, name):
    Path('configs/_base_/datasets/mine.py').write_text('x = 1\n')
    Path('data/made').mkdir(parents=True)
    before = sorted(Path().rglob('*'))
    done, output = convert(LINES, name=name)
    assert not done and 'Nothing was written' in output
    assert 'Choose another name' in output or 'NAME is' in output
    assert sorted(Path().rglob('*')) == sorted([*before, Path('captions.csv')])


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'line 1: no column video, caption'),
        ('video;caption\nclip0;a\n', 'line 1: no column video, caption'),
        ('video,text\nclip0,a\n', "no column caption; the header is 'video,text'"),
        ('video,caption\n', 'names no video'),
        (b'video,caption\nclip0,M\xe4dchen\n', 'is not UTF-8 text'),
        ('video,caption\nclip0,a,b\n', 'line 2: 2 columns expected'),
        ('video,caption\nclip0\n', 'line 2: 2 columns expected'),
        ('video,caption\nclip0,a\nclip2, \n', 'line 3: an empty value'),
        ('video,caption\n,a\n', 'line 2: an empty value'),
        ('video,caption\nclip0,b\nclip2,"a\nclip4,b\n', 'line 3: not valid csv'),
        (
            'video,caption\nclip0,a\nclip2,b\nclip0.mp4,a\n',
            'line 4: "a" of clip0.mp4 stands already in line 2',
        ),
        (
            'video,caption\nclip0,a\nclip77,b\nclip77,c\nno/clip2,c\n',
            '2 of 3 videos are not in ../videos: no/clip2 (line 5), clip77 (line 3)',
        ),
        ('video,caption\nclip0,a\nclip0,b\n', 'leaves no video for train.json'),
        ('video,caption,split\nclip0,a,train\n', 'leaves no video for test.json'),
        ('video,caption,split\nclip0,a,val\n', "line 2: split is 'val'"),
        ('video,caption,split\nclip0,a,train\nclip2,a,\n', "line 3: split is ''"),
        (
            'video,caption,split\nclip0,a,train\nclip0,b,test\n',
            'line 3: clip0.mp4 has another split or window than in line 2',
        ),
        (
            'video,caption,end\nclip0,a,1\nclip0,b,2\n',
            'line 3: clip0.mp4 has another split or window than in line 2',
        ),
        ('video,caption,end\nclip0,a,x\n', "line 2: end is 'x'"),
        ('video,caption,end\nclip0,a,nan\n', "line 2: end is 'nan'"),
        ('video,caption,end\nclip0,a,inf\n', "line 2: end is 'inf'"),
        ('video,caption,end\nclip0,a,0\n', 'line 2: the window ends at 0.0 s but'),
        ('video,caption,start\nclip0,a,-1\n', "line 2: start is '-1'"),
        ('video,caption,start,end\nclip0,a,3,3\n', 'ends at 3.0 s but starts'),
    ],
)
def test_bad_captions_are_refused_and_nothing_is_written(convert, text, message):
    done, output = convert(text)
    assert not done and message in output and 'Nothing was written' in output
    assert 'captions.csv' in output or 'line' in output
    assert not Path('data').exists()
    assert not Path('configs/_base_/datasets/cooking.py').exists()


SPLIT = joined('video,caption,split', 'clip0,a,train', 'clip2,b,test')


@pytest.mark.parametrize(
    'text, test, arguments, message',
    [
        (SPLIT, None, ['--test-fraction', 0.5], 'Give one of'),
        (SPLIT, 'video,caption\nclip4,a\n', [], 'Give one of'),
        ('video,caption\nclip0,a\n', SPLIT.replace('clip0', 'clip4'), [], 'Give one of'),
        (
            'video,caption\nclip0,a\n',
            'video,caption\nclip4,a\n',
            ['--test-fraction', 0.5],
            'Give one of',
        ),
        (
            'video,caption\nclip0,a\n',
            'video,caption\nclip2,a\nclip0.mp4,b\n',
            [],
            '1 videos of test.csv are in captions.csv too: clip0.mp4',
        ),
        ('video,caption\nclip0,a\n', 'video,caption\nclip2\n', [], 'test.csv, line 2: 2 columns'),
        ('video,caption\nclip0,a\n', None, ['--test', 'no.csv'], 'There is no no.csv'),
        *(
            ('video,caption\nclip0,a\n', None, ['--test-fraction', fraction], '--test-fraction is')
            for fraction in (0, 1, -0.5, 'nan')
        ),
        (
            'video,caption\nclip0,a\n',
            None,
            ['--config-dir', 'data'],
            'data has no _base_/datasets/_video_text.py',
        ),
    ],
)
def test_bad_divisions_are_refused(convert, text, test, arguments, message):
    if test:
        Path('test.csv').write_text(test)
        arguments = [*arguments, '--test', 'test.csv']
    done, output = convert(text, *arguments)
    assert not done and message in output and 'Nothing was written' in output
    assert not Path('data').exists()


def test_it_runs_as_a_script(project):
    Path('captions.csv').write_text(joined('video,caption', *map(','.join, LINES)))
    done = subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/data/custom.py',
            '../videos',
            'captions.csv',
            'cooking',
            '--config-dir',
            'configs',
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Path('data/cooking/test.json').read_text())
    missing = subprocess.run(
        [sys.executable, ROOT / 'tools/data/custom.py', '../no', 'captions.csv', 'baking'],
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 1
    assert 'There is no folder ../no' in missing.stderr
