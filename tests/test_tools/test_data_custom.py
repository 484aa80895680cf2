"""The converter of a user's own data set."""

import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from mmengine.config import Config

from projects.vop.datasets import Annotation, read_annotations
from projects.vop.errors import UserError
from projects.vop.registry import DATASETS

LINES = [(f'clip{i}', f'caption {j} of {i}') for i in range(20) for j in range(2)]


def path_of(i):
    return f'{"deep/" if i % 2 else ""}clip{i}.mp4'


@pytest.fixture
def convert(run_tool, tmp_path, monkeypatch, capsys):
    """Runs the converter in a project beside 20 videos; gives what it said."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'project/configs')
    monkeypatch.chdir(tmp_path / 'project')
    monkeypatch.syspath_prepend(str(ROOT / 'tools/data'))
    Path('../videos/deep').mkdir(parents=True)
    for i in range(20):
        Path('../videos', path_of(i)).touch()

    def run(lines, *arguments, name='cooking', header='video,caption'):
        if not isinstance(lines, (str, bytes)):
            lines = '\n'.join([header, *map(','.join, lines)]) + '\n'
        Path('captions.csv').write_bytes(lines if isinstance(lines, bytes) else lines.encode())
        run_tool('tools/data/custom.py', '../videos', 'captions.csv', name, *arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def refuse(convert):
    """Runs the converter, which must refuse its input; gives the message."""

    def run(lines, *arguments, **kwargs):
        Path('captions.csv').touch()
        before = sorted(Path().rglob('*'))
        with pytest.raises(UserError) as error:
            convert(lines, *arguments, **kwargs)
        assert 'Nothing was written' in str(error.value)
        assert sorted(Path().rglob('*')) == before
        return str(error.value)

    return run


def read_splits():
    return [read_annotations(f'data/cooking/{split}.json') for split in ('train', 'test')]


def test_a_part_of_the_videos_is_drawn_by_the_seed_alone(convert):
    output = convert(LINES)
    train, test = read_splits()
    assert len(train) == 18 and len(test) == 2 and not train.keys() & test
    assert {**train, **test} == {
        path_of(i): Annotation([f'caption {j} of {i}' for j in range(2)]) for i in range(20)
    }
    assert 'train.json: 18 videos, 36 captions (2.0 per video)' in output
    assert output.endswith('python tools/train.py configs/vop_cooking.py\n')
    Path('configs/vop_cooking.py').touch()  # a user's own; it can be run again
    convert(LINES[:4])
    assert [len(split) for split in read_splits()] == [1, 1]  # at least one to test on
    drawn = []
    for lines, seed in ((LINES, 0), (LINES[::-1], 0), (LINES, 1)):
        convert(lines, '--seed', seed, '--test-fraction', 0.25)
        drawn.append(set(read_splits()[1]))
    assert len(drawn[0]) == 5 and drawn[0] == drawn[1] != drawn[2]


def test_the_test_videos_can_be_given(convert):
    lines = [(video, text, 'test' if i < 6 else 'train') for i, (video, text) in enumerate(LINES)]
    convert(lines, header='video,caption,split')
    assert set(read_splits()[1]) == {path_of(i) for i in range(3)}
    Path('test.csv').write_text('caption,video\n"a, b",clip19\nc,clip18\n')
    convert(LINES[:30], '--test', 'test.csv')
    train, test = read_splits()
    assert set(train) == {path_of(i) for i in range(15)}
    assert test == {path_of(19): Annotation(['a, b']), path_of(18): Annotation(['c'])}


def test_windows_and_spreadsheets(convert):
    lines = [
        ('clip0', 'a', '', '2.5', 'test'),
        ('clip2', 'b', '1', '3', 'train'),
        ('clip2', 'c', '1.0', '3', 'train'),
        ('clip4', 'd', '', '', 'train'),
        ('clip6', 'e', '7', '', 'train'),
    ]
    convert(lines, header='video,caption,start,end,split')
    assert read_splits() == [
        {
            'clip2.mp4': Annotation(['b', 'c'], 1, 3),
            'clip4.mp4': Annotation(['d']),
            'clip6.mp4': Annotation(['e'], start=7),
        },
        {'clip0.mp4': Annotation(['a'], end=2.5)},
    ]
    # With a byte order mark, and carriage returns.
    convert('video,caption\r\nclip0,Mädchen\r\nclip2,"two\r\nlines"\r\n'.encode('utf-8-sig'))
    train, test = read_splits()
    assert {**train, **test}['clip0.mp4'].captions == ['Mädchen']


def test_names_of_videos(convert, refuse):
    for name in ('talk.1', 'talk.2'):
        Path(f'../videos/{name}.mp4').touch()
    for name in ('clip1', 'deep/clip1', './deep/clip1.mp4', 'clip1.avi'):
        convert([(name, 'a'), ('talk.1', 'b'), ('talk.2', 'c')])
        train, test = read_splits()
        assert {*train, *test} == {'deep/clip1.mp4', 'talk.1.mp4', 'talk.2.mp4'}
    for name in ('clip1.avi', 'deep/clip1.avi'):
        Path('../videos', name).touch()
    for name in ('clip1.avi', 'deep/clip1.mp4', 'deep/clip1.avi'):  # the path decides
        convert([(name, 'a'), ('clip0', 'b')])
        assert any(name in split for split in read_splits())
    message = refuse([('clip0', 'b'), ('deep/clip1', 'a')])
    assert 'deep/clip1.avi and deep/clip1.mp4' in message and 'deep/clip1 (line 3)' in message


@pytest.mark.parametrize(
    'on_disk, told',
    [
        ('Übung/é.mp4', 'U\u0308bung/e\u0301.mp4'),
        ('U\u0308bung/e\u0301.mp4', 'Übung/é.mp4'),
        ('e\u0301.mp4', 'é'),
        ('deep/er/a.mp4', 'deep\\er\\a.mp4'),
        ('deep/er/a.mp4', '.\\deep\\er\\a'),
        ('a\\b.mp4', 'a\\b.mp4'),
        ('deep/er/a.mp4', './deep//er/../er/a.mp4'),
        ('deep/er/a.mp4', '{folder}/deep/er/a.mp4'),
        ('deep/er/a.mp4', '{folder}/./deep//er/a'),
        ('a.mp4', ' a.mp4 '),
        ('a .mp4', 'a'),
        ('a.MP4', 'a.mp4'),
        ('a.mp4', 'a.MP4'),
        ('take:1.mp4', 'take:1.mp4'),
        ('-d.mp4', '-d.mp4'),
    ],
)
def test_names_however_they_are_spelled(convert, refuse, on_disk, told):
    path = Path('../videos', on_disk)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.with_name(f'._{path.name}').touch()  # macOS's, no video
    Path('../link').symlink_to(Path('../videos').resolve())
    for folder in (Path('../videos').resolve(), Path('../link').absolute()):
        convert([(told.format(folder=folder), 'a dog'), ('clip0', 'b')])
        train, test = read_splits()
        assert {*train, *test} == {on_disk, 'clip0.mp4'}
        if 'folder' not in told:
            break
    refused = refuse([('/else/clip1.mp4', 'a dog'), ('clip0', 'b')])
    assert '1 of 2 videos of captions.csv are not in' in refused


def test_videos_without_a_line_are_said(convert):
    assert '18 videos of ../videos are not in captions.csv: clip10.mp4, ' in convert(LINES[:4])
    assert 'are not in' not in convert(LINES)


def test_its_config(convert, write_video, tmp_path):
    for i in range(4):
        write_video(Path('../videos', path_of(i)), 3)
    convert([(*line, '1') for line in LINES[:8]], header='video,caption,end')
    path = Path('configs/_base_/datasets/cooking.py')
    config, didemo = Config.fromfile(path), Config.fromfile(path.with_name('didemo.py'))
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.data_prefix.video == str(tmp_path / 'videos')
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset[0]['inputs']['imgs']) == 12
    assert len(dataset) == 1
    for loader in (config, didemo):  # otherwise, they are the same
        for key in ('data_prefix', 'data_root', 'ann_file'):
            for split in ('train', 'val', 'test'):
                loader[f'{split}_dataloader'].dataset.pop(key)
            loader.pop(key, None)
    assert config.to_dict() == didemo.to_dict()


def test_names_that_are_taken_or_no_names(refuse):
    Path('configs/_base_/datasets/mine.py').write_text('x = 1\n')
    Path('data/made').mkdir(parents=True)
    for name in ('msrvtt', 'msrvtt_9k', 'didemo', 'moving_shapes', 'mine', 'made'):
        assert f'{name} is the name of another' in refuse(LINES, name=name)
    for name in ('1a', 'a-b', '../a', '', '_a', 'ä', 'a\n', 'a' * 300):
        assert f'NAME is {name[:100]!r}' in refuse(LINES, name=name)


def test_a_space_may_come_before_a_quotation_mark(convert):
    convert('video, "caption"\nclip0, "a ""big"" dog, barking "\nclip2,  b "c" \n')
    train, test = read_splits()
    assert {**train, **test} == {
        path_of(0): Annotation(['a "big" dog, barking']),
        path_of(2): Annotation(['b "c"']),
    }


@pytest.mark.parametrize(
    'text, at_fault',
    [
        ('video,caption\nclip0, "a" b\n', 'line 2: not valid csv'),
        ('video,caption\nclip0,a\n \nclip2,b\n', 'line 3: 2 columns expected'),
        ('', 'captions.csv, line 1: no column video, caption'),
        ('video,caption,caption\nclip0,a,b\n', 'line 1: the column caption is listed twice'),
        ('video,caption\nclip0,a\nvideo,caption\nclip2,b\n', 'line 3 is a header again'),
        ('video,caption\nclip0,a\n caption , video\nclip2,b\n', 'line 3 is a header again'),
        ('video,caption\nclip0,a\n\nclip2,b\n', 'line 3 is empty'),
        ('video,caption\na,clip0\nb,clip2\n', 'line 3: the columns "video" and "caption" seem'),
        ('video,caption\nclip2,a\nb,deep/clip1.mp4\n', 'line 3: the columns "video" and "caption'),
        ('video,caption\nclip0,a\nclip2,a\u2028b\n', 'line 3, column "caption" holds the ch'),
        ('video,caption\nclip0,a\n\u202eclip2,b\n', 'line 3, column "video": the name of a vid'),
        ('video,caption\nclip0,a\n\ufeffvideo,caption\n', 'line 3, column "video": the name of'),
        ('video,caption\nclip0,a\nclip2,b\0\n', 'line 3, column 8'),
        ('video,caption\n"clip\n0",a\n', 'line 3, column "video": the name of a video holds'),
        ('video,caption\nclip0,"a\nclip2,b\nclip4,c"\n', 'column "caption": \'clip2,b\' is in it'),
        (f'video,caption\n{"x" * 10**5},a\n', 'line 2, column "video": "xxx'),
        (f'video,caption\nclip0,{"x" * 10**6}\n', 'line 2: not valid csv'),
        (f'{"x" * 10**5}\n', 'line 1: no column video, caption, but xxx'),
        ('video,caption,end\nclip0,a,' + '9' * 5000, 'line 2: "end" is Infinity'),
        ('video,caption,split\nclip0,a,' + 'x' * 10**5, "line 2: split is 'xxx"),
        ('video,caption\r'.encode('utf-16'), 'UTF-16'),
        ('video,caption\n', 'captions.csv names no video'),
        (b'video,caption\nclip0,M\xe4dchen\n', 'captions.csv is not UTF-8 text'),
        ('video,caption\nclip0,a,b\n', 'line 2: 2 columns expected'),
        ('video,caption\nclip0,a\nclip2, \n', 'line 3: an empty value'),
        ('video,caption\nclip0,b\nclip2,"a\nclip4,b\n', 'line 3: not valid csv'),
        ('video,caption\nclip0,a\nclip2,b\nclip0.mp4,a\n', 'line 4: "a" of clip0.mp4 is in line 2'),
        ('video,caption\nclip0,a\nclip77,b\nclip77,c\nno/clip2,c\n', 'no/clip2 (line 5), clip77 ('),
        ('video,caption\nclip0,a\nclip0,b\n', 'no video for train.json'),
        ('video,caption,split\nclip0,a,train\n', 'no video for test.json'),
        ('video,caption,split\nclip0,a,train\nclip2,a,\n', "line 3: split is ''"),
        ('video,caption,split\nclip0,a,train\nclip0,b,test\n', 'line 3: clip0.mp4 has another'),
        ('video,caption,end\nclip0,a,1\nclip0,b,2\n', 'line 3: clip0.mp4 has another'),
        ('video,caption,end\nclip0,a,x\n', 'captions.csv, line 2: "end" is "x"'),
        ('video,caption,start\nclip0,a,-1\n', 'line 2: "start" is -1.0'),
    ],
)
def test_bad_captions_are_refused(refuse, text, at_fault):
    message = refuse(text)
    assert at_fault in message and len(message) < 600


ONE, OTHER = 'video,caption\nclip0,a\n', 'video,caption\nclip4,a\n'
SPLIT = 'video,caption,split\nclip0,a,train\nclip2,b,test\n'


@pytest.mark.parametrize(
    'text, test, arguments, message',
    [
        (SPLIT, '', ['--test-fraction', 0.5], 'Give one of'),
        (SPLIT, OTHER, ['--test', 'test.csv'], 'Give one of'),
        (ONE, SPLIT.replace('clip0', 'clip4'), ['--test', 'test.csv'], 'Give one of'),
        (ONE, f'{OTHER}clip0.mp4,b\n', ['--test', 'test.csv'], '1 videos of test.csv are in'),
        (ONE, 'video,caption\nclip2\n', ['--test', 'test.csv'], 'test.csv, line 2: 2 columns'),
        (ONE, '', ['--test', 'no.csv'], 'no.csv cannot be read'),
        (ONE, '', ['--test-fraction', 1], '--test-fraction is'),
        (ONE, '', ['--config-dir', 'data'], 'data has no _base_/datasets/_video_text.py'),
    ],
)
def test_bad_divisions_are_refused(refuse, text, test, arguments, message):
    Path('test.csv').write_text(test)
    assert message in refuse(text, *arguments)
