"""The converters of the field's data sets."""

import json
import random
import shutil
from pathlib import Path

import pytest
from helpers import (
    BROKEN,
    ROOT,
    SENTENCES,
    SOURCES,
    UP1,
    UP3,
    WANTED,
    didemo_moments,
    lsmdc_line,
    run_forked,
    vatex_records,
)
from mmengine.config import Config

from projects.vop.datasets import Annotation, read_annotations
from projects.vop.errors import UserError


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'out'


@pytest.fixture
def convert(run_tool, out, monkeypatch, capsys):
    """Runs a converter; gives what it said."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/data'))

    def convert(name, source, *arguments):
        run_tool(f'tools/data/{name}.py', source, '--out', out, *arguments)
        return capsys.readouterr().out

    return convert


@pytest.fixture
def refuse(convert, out):
    """Runs a converter that must refuse its input; gives the message."""

    def refuse(*arguments):
        before = sorted(out.glob('*'))
        with pytest.raises(UserError) as error:
            convert(*arguments)
        assert 'Nothing was written' in str(error.value)
        assert sorted(out.glob('*')) == before
        return str(error.value)

    return refuse


@pytest.fixture
def source(tmp_path):
    """Writes the small copy of a data set."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in SOURCES[name].items():
            (folder / file).write_text(text, encoding='utf-8', newline='')
        return folder

    return make


def read_out(out):
    return {path.stem: read_annotations(path) for path in out.iterdir()}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


SPECIAL = dict(
    activitynet='1 of the 3 videos in',
    lsmdc=f'training.csv, line 2: the video of {BROKEN} is reported as broken',
    vatex='1 of the 3 videos of vatex_validation',
)


@pytest.mark.parametrize('name', SOURCES)
def test_all_splits_are_written(convert, source, out, capsys, name):
    output = convert(name, source(name))
    end = 30.0 if name == 'didemo' else None
    assert read_out(out) == {
        split: {video: Annotation(texts, end=end) for video, texts in videos.items()}
        for split, videos in WANTED[name].items()
    }
    for split, videos in WANTED[name].items():
        count = sum(map(len, videos.values()))
        assert f'{split}.json: {len(videos)} videos, {count} captions' in output
    assert f'({count / len(videos):.1f} per video)' in output
    assert 'counts' in output and SPECIAL.get(name, '') in output
    with pytest.raises(SystemExit):
        convert(name, '--help')
    output = capsys.readouterr().out
    assert all(file in output for file in SOURCES[name]) and f'data/{name}' in output


@pytest.mark.parametrize('name', SOURCES)
def test_its_config_reads_what_it_writes(name):
    file, train, test = name, 'train', 'test'
    if name == 'msrvtt':
        file, train, test = 'msrvtt_9k', 'train_9k', 'test_1k'
    config = Config.fromfile(ROOT / f'configs/_base_/datasets/{file}.py')
    for split, ann_file in dict(train=train, val=test, test=test).items():
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.data_root == f'data/{name}'
        assert dataset.ann_file == f'{ann_file}.json'
        assert dataset.data_prefix == dict(video='videos')
        steps = [step.type for step in dataset.pipeline[:3]]
        assert steps == ['DecordInit', 'vop.TimeWindow', 'UniformSample']
    config.merge_from_dict({'val_dataloader.dataset.ann_file': 'val.json'})
    assert config.test_dataloader.dataset.ann_file == f'{test}.json'


@pytest.mark.parametrize(
    'name, files, splits',
    [
        ('msrvtt', ['MSRVTT_train.7k.csv'], dict(train_9k=4, test_1k=2)),
        ('activitynet', ['train_ids.json', 'val_ids.json'], dict(train=2, test=1)),
        ('vatex', ['val_list.txt', 'test_list.txt'], dict(train=2, test=3)),
    ],
)
def test_files_that_are_optional(convert, source, out, name, files, splits):
    folder = source(name)
    for file in files:
        (folder / file).unlink()
    output = convert(name, folder)
    assert {split: len(videos) for split, videos in read_out(out).items()} == splits
    if name != 'activitynet':
        assert files[0] in output


OPTIONAL = ('MSRVTT_train.7k.csv', 'train_ids.json', 'val_ids.json')
DAMAGE = {
    '.json': [b'{\n"a": }', b'7', b'[]', b'{"a": 1, "a": 2}', b'["M\xe4dchen"]', None],
    '.txt': [b'', b'-0_1_9\n\n', b'a\nb\n a\n', b'M\xe4dchen', None],
    '.csv': [b'', b'a\tb\n', b'a,b\n', b'M\xe4dchen', None],
}


@pytest.mark.parametrize('name, file', [(name, file) for name in SOURCES for file in SOURCES[name]])
def test_damaged_files_are_named(refuse, source, name, file):
    path = source(name) / file
    for damage in DAMAGE[path.suffix]:
        if damage is not None:
            path.write_bytes(damage)
        elif file in OPTIONAL:
            continue
        else:
            path.unlink()
        assert file in refuse(name, path.parent)


HEADER = 'key,vid_key,video_id,sentence\n'
TRAIN_9K, TEST_1K, SAID = 'MSRVTT_train.9k.csv', 'MSRVTT_JSFUSION_test.csv', 'MSRVTT_data.json'
TEST = 'LSMDC16_challenge_1000_publictect.csv'
MSVD, VATEX = 'captions_msvd.json', 'vatex_training_v1.0.json'
TIMES = '{"v_c": {"sentences": ["x"], "timestamps": [1, 2]}}'
UP = lsmdc_line(UP1, 'x')
TWICE = 'line 3: "x" of 1_Up_00.00.01.000-00.00.02.500 is in line 1'


@pytest.mark.parametrize(
    'name, file, text, message',
    [
        ('msrvtt', TRAIN_9K, 'id\nvideo0\n', 'line 1: no column video_id, but id'),
        ('msrvtt', TRAIN_9K, 'video_id\n', 'names no video'),
        ('msrvtt', TRAIN_9K, 'video_id\nvideo0\nvideo1\nvideo0\n', 'line 4: video0 is in line 2'),
        ('msrvtt', TRAIN_9K, 'video_id\nvideo0\nvideo9\n', 'line 3: video9'),
        ('msrvtt', TEST_1K, f'{HEADER}ret0,msr4,video4\n', 'line 2: 4 columns'),
        ('msrvtt', TEST_1K, f'{HEADER}ret0,msr4,video4, \n', 'line 2: an empty value'),
        ('msrvtt', TEST_1K, f'{HEADER}a,b,video4,x\nc,d,video4,y\n', 'line 3: video4'),
        ('msrvtt', SAID, '{"sentences": [{"caption": "a"}]}', 'entry 0: "video_id"'),
        ('msrvtt', SAID, '{"sentences": [{"video_id": "v", "caption": " "}]}', '"caption" of v'),
        ('msrvtt', TRAIN_9K, 'video_id\nvideo0\nvideo_id\nvideo1\n', 'line 3 is a header again'),
        ('msrvtt', TRAIN_9K, 'video_id,video_id\na,b\n', 'line 1: the column video_id is listed'),
        ('msrvtt', TRAIN_9K, 'video_id\nvideo0\n\nvideo1\n', 'line 3 is empty'),
        ('msrvtt', TRAIN_9K, 'video_id\nvideo0\nvideo1\nvideo3\n', '1 videos of'),
        ('msrvtt', TRAIN_9K, 'video_id\nvideo0\nvideo\u202e1\n', 'line 3, column "video_id": the'),
        ('msrvtt', 'MSRVTT_train.7k.csv', 'video_id\nvideo0\nvideo2\n', 'but lacks video1'),
        ('msrvtt', TEST_1K, f'{HEADER}ret0,msr4,video4,a\x00\n', 'line 2, column 19'),
        (
            'msrvtt',
            TEST_1K,
            f'{HEADER}ret0,msr4,video4,a\u2028b\n',
            'line 2, column "sentence" hol',
        ),
        ('msrvtt', TEST_1K, f'{HEADER}ret0,msr4,video4,\x1fa\n', 'line 2, column "sentence" holds'),
        ('msrvtt', TEST_1K, f'{HEADER}ret0,msr4,dog,video4\n', "'dog' is no video of MSR-VTT"),
        ('msrvtt', TEST_1K, f'{HEADER}ret0,msr5,video4,a\n', 'column "vid_key": msr4 is expected'),
        ('msrvtt', TEST_1K, f'{HEADER}ret1,msr5,video5,a\n', 'column "key": ret0 is expected'),
        ('msrvtt', TEST_1K, f'{HEADER}ret0,msr4,video4,a\n', '1 videos of'),
        ('msrvtt', SAID, json.dumps(dict(sentences=SENTENCES[1:])), '1 videos have fewer captions'),
        (
            *('msrvtt', SAID, '{"sentences": [{"video_id": "a dog", "caption": "video1"}]}'),
            'entry 0: "video_id" is \'a dog\', which is no name of a video. Are "video_id" and "c',
        ),
        ('didemo', 'val_data.json', '[{"video": "\\u2066a.avi"}]', 'entry 0: "video": the name of'),
        ('activitynet', 'val_1.json', '{"v_\\u0007": []}', 'holds the character \\x07'),
        ('activitynet', 'val_1.json', json.dumps({'v' * 10**5: []}), 'is too long'),
        ('lsmdc', TEST, UP.replace('x', 'x\u202e'), 'line 1: the sentence (column 6) holds'),
        ('lsmdc', TEST, '\ufeff\ufeff' + UP, 'line 1: the name of a video holds'),
        ('msvd', 'test_list.txt', '-3_1_9\n-4\x1f_1_9\n', 'line 2: the name of a video holds'),
        ('msvd', 'test_list.txt', f'{"x" * 10**6}\n', 'line 1: "xxx'),
        ('vatex', VATEX, vatex_records('a\x85'), 'entry 0: the name of a video holds'),
        ('msvd', 'test_list.txt', 'a\nb\n a\n', 'line 3: a is in line 1'),
        ('msvd', 'test_list.txt', 'q_0_9\n', 'line 1: q_0_9'),
        ('msvd', MSVD, '{"-0_1_9": []}', '-0_1_9'),
        ('msvd', MSVD, '{"-0_1_9": ["x", " "]}', '-0_1_9: caption 2'),
        ('msvd', MSVD, '{"-0_1_9": [7]}', '-0_1_9: caption 1 is 7'),
        ('didemo', 'val_data.json', '["x"]', 'entry 0'),
        ('didemo', 'val_data.json', '[{"video": "a.avi"}]', 'entry 0: "description" of a.avi'),
        ('activitynet', 'val_1.json', '{"v_c": []}', 'v_c is no object'),
        ('activitynet', 'val_1.json', '{"v_c": {"sentences": ["x", ""]}}', 'v_c: caption 2'),
        ('activitynet', 'val_1.json', '{"v_c": {"sentences": ["x"]}}', 'v_c: "timestamps"'),
        ('activitynet', 'val_1.json', TIMES, '1 sentences but 2 timestamps'),
        ('activitynet', 'val_ids.json', '["v_a"]', '1 videos of'),
        ('lsmdc', TEST, UP.replace('x', 'x\ty'), 'line 1: 7 columns'),
        ('lsmdc', TEST, UP.replace('x', ' '), 'line 1: the sentence'),
        ('lsmdc', TEST, lsmdc_line('1_Up', 'x'), "line 1: '1_Up'"),
        ('lsmdc', TEST, UP + lsmdc_line(UP3, 'x') + UP, TWICE),
        ('vatex', VATEX, '[{"enCap": ["x"]}]', 'entry 0: "videoID"'),
        ('vatex', VATEX, '[{"videoID": "a"}]', 'entry 0: "enCap"'),
        ('vatex', VATEX, '[{"videoID": "a", "enCap": ["x", 7]}]', 'entry 0, a: caption 2'),
        ('vatex', VATEX, vatex_records('a', 'b', 'a'), 'entry 2: a'),
        # Splits that overlap.
        ('msrvtt', TRAIN_9K, 'video_id\nvideo4\n', '1 videos of test_1k are in train_9k too: vid'),
        ('msvd', 'test_list.txt', '-3_1_9\n-0_1_9\n', '1 videos of test are in train too: -0_1_9'),
        ('didemo', 'val_data.json', didemo_moments('1@N0_a.mp4'), 'val are in train too: 1@N0_a'),
        ('didemo', 'val_data.json', didemo_moments('a.avi', 'a.mp4'), 'val: two of its videos'),
        ('lsmdc', TEST, UP, '1 videos of test are in train too'),
        ('vatex', VATEX, vatex_records('d_0_9'), '1 videos of test are in train too'),
        ('vatex', 'val_list.txt', 'd_0_9\n', '1 videos of test are in val too'),
    ],
)
def test_what_is_wrong_is_named(refuse, source, name, file, text, message):
    path = source(name) / file
    path.write_text(text, encoding='utf-8', newline='')
    said = refuse(name, path.parent)
    assert message in said and len(said) < 2 * len(str(path)) + 500
    assert file in said or ' too' in said or 'two of its' in said


def damage(text, rng):
    """Damages a line of a file, a few bytes of it, or its end."""
    lines = text.splitlines(keepends=True)
    line, place = rng.randrange(len(lines)), rng.randrange(len(text))
    kind = rng.choice(['flip', 'cut', 'lose', 'repeat', 'swap', 'header', 'unseen', 'order'])
    if kind == 'flip':
        return text[:place] + chr(ord(text[place]) ^ 1 << rng.randrange(7)) + text[place + 1 :]
    if kind == 'cut':
        return text[:place]
    if kind == 'unseen':
        return text[:place] + rng.choice('\0\x07\x85\u2028\u202e\u2066\ufeff') + text[place:]
    if kind == 'lose':
        del lines[line]
    elif kind == 'repeat':
        lines.insert(line, lines[line])
    elif kind == 'header':
        lines.insert(line, lines[0])
    elif kind == 'order':  # which changes nothing but for the test split's
        lines[1:] = rng.sample(lines[1:], len(lines) - 1)
    else:
        values = lines[line].rstrip('\n').split(',')
        values[0], values[-1] = values[-1], values[0]
        lines[line] = ','.join(values) + '\n'
    return ''.join(lines)


@pytest.mark.slow
def test_200_damaged_files_are_read_rightly_or_named(convert, source, out):
    """What is read differs from what was meant in one caption at most, and in what can be seen."""
    rng, folder, refused = random.Random(0), source('msrvtt'), 0
    good = dict(SOURCES['msrvtt'])
    good[SAID] = json.dumps(dict(sentences=SENTENCES), indent=1)
    for _ in range(200):
        shutil.rmtree(out, ignore_errors=True)
        file = rng.choice(list(good))
        for name, text in good.items():
            text = damage(text, rng) if name == file else text
            (folder / name).write_text(text, encoding='utf-8', newline='')
        try:
            convert('msrvtt', folder)
        except UserError as error:
            refused += 1
            assert str(folder) in str(error) or ' too' in str(error)
            assert not out.exists()
            continue
        read = {
            split: {v: a.captions for v, a in of.items()} for split, of in read_out(out).items()
        }
        for split, wanted in WANTED['msrvtt'].items():
            # Only the end of the list of the 7k split can be lost and nobody knows.
            assert list(read[split]) == list(wanted) or file != TEST_1K
            for video, captions in read[split].items():
                other = [text for text in captions if text not in wanted[video]]
                assert len(captions) == len(wanted[video]) and len(other) <= 1
                assert all(text.isprintable() for text in other)
    assert refused > 120


def test_names_on_disk_are_used(convert, source, out, tmp_path):
    names = ['1@N0_a.mp4', '3@N0_c.avi', '4@N0_d.webm', '5@N0_e.mp4', '9@N0_a.mp4']
    videos = touch(tmp_path / 'videos', *names, 'else/1@N0_a.txt', 'else/1@N0_a')
    touch(tmp_path / 'disk', 'er/2@N0_b.MKV')
    (videos / 'deep').symlink_to(tmp_path / 'disk')
    output = convert('didemo', source('didemo'), '--videos', videos)
    splits = read_out(out)
    assert list(splits['train']) == ['1@N0_a.mp4', 'deep/er/2@N0_b.MKV']
    assert list(splits['test']) == ['4@N0_d.webm', '5@N0_e.mp4']
    text = WANTED['didemo']['train']['1@N0_a.avi']
    assert splits['train']['1@N0_a.mp4'] == Annotation(text, end=30)
    assert f'make that a link to {videos}' in output


@pytest.mark.parametrize('name', ['lsmdc', 'didemo'])
def test_names_with_points_are_found(convert, source, out, tmp_path, name):
    """Also in one folder, which is a link; DiDeMo's script saves ``x.avi`` as ``x.avi.mp4``."""
    clips = [Path(v) for split in WANTED[name].values() for v in split]
    names = [f'{clip.stem if name == "lsmdc" else clip}.mp4' for clip in clips]
    touch(tmp_path / 'disk', *names)
    out.mkdir()
    (out / 'videos').symlink_to(tmp_path / 'disk')
    output = convert(name, source(name), '--videos', out / 'videos')
    assert 'make that a link' not in output
    (out / 'videos').unlink()
    assert sorted(v for split in read_out(out).values() for v in split) == sorted(names)


def test_missing_videos(convert, refuse, source, out, tmp_path):
    folder = source('msvd')
    videos = touch(tmp_path / 'videos', *(v for split in WANTED['msvd'].values() for v in split))
    (videos / '-1_1_9.avi').unlink()
    arguments = ('msvd', folder, '--videos', videos)
    message = refuse(*arguments)
    assert 'train: 1 of 2 videos are not in' in message
    assert '-1_1_9.avi' in message and '--skip-missing' in message
    output = convert(*arguments, '--skip-missing')
    assert 'train: 1 of 2 videos are not in' in output and 'cannot be compared' not in output
    (videos / '-3_1_9.avi').unlink()
    output = convert(*arguments, '--skip-missing')
    assert 'test: 1 of 2 videos are not in' in output and 'cannot be compared' in output
    assert {name: list(videos) for name, videos in read_out(out).items()} == dict(
        train=['-0_1_9.avi'], val=['-2_1_9.avi'], test=['-4_1_9.avi']
    )
    (videos / '-2_1_9.avi').unlink()
    assert 'val: 1 of 1 videos are not in' in refuse(*arguments, '--skip-missing')
    touch(videos, '-2_1_9.avi', '-3_1_9.avi', '-1_1_9.avi', 'more/-3_1_9.mp4')
    assert 'Both -3_1_9.avi and more/-3_1_9.mp4' in refuse(*arguments)
    assert str(tmp_path / 'no') in refuse('msvd', folder, '--videos', tmp_path / 'no')
    with pytest.raises(SystemExit):
        convert('msvd', folder, '--skip-missing')


REAL = dict(
    activitynet=[
        *('train.json: 10,009 videos, 10,009 captions', 'test.json: 4,917 videos, 4,917 captions'),
        *('15 of the 10,024 videos', '9 of the 4,926 videos'),
    ],
    msvd=[
        *('train.json: 1,200 videos, 48,774 captions', 'val.json: 100 videos, 4,290 captions'),
        'test.json: 670 videos, 27,763 captions',
    ],
)


@pytest.mark.slow
@pytest.mark.parametrize('name', REAL)
def test_the_real_annotations(convert, shared_data, out, name):
    output = convert(name, shared_data / 'annotations' / name)
    assert all(text in output for text in REAL[name])
    assert len(read_out(out)) == len([text for text in REAL[name] if '.json' in text])


def test_the_real_test_clips_of_lsmdc(convert, source, shared_data, out):
    folder = source('lsmdc')
    shutil.copy(shared_data / 'annotations/lsmdc' / TEST, folder)
    output = convert('lsmdc', folder)
    assert 'test.json: 1,000 videos, 1,000 captions' in output
    assert 'line 721: the video of 3064_SPARKLE_2012_01.41.07.000-01.41.11.793 is' in output
    name = '3064_SPARKLE_2012/3064_SPARKLE_2012_01.10.49.683-01.10.52.477.avi'
    texts = ['throws one last punch in the direction of the club.']
    assert read_out(out)['test'][name].captions == texts


def test_the_real_splits_of_msrvtt(convert, shared_data, tmp_path):
    """With made-up captions for the training videos, which are not here."""
    source = tmp_path / 'source'
    shutil.copytree(shared_data / 'annotations' / 'msrvtt', source)
    lists = [(source / f'MSRVTT_train.{name}.csv').read_text() for name in ('9k', '7k')]
    videos = sorted(set(''.join(lists).split()))
    sentences = [dict(caption=f'no. {i}', video_id=v) for v in videos for i in range(20)]
    (source / SAID).write_text(json.dumps(dict(sentences=sentences)))
    output = convert('msrvtt', source)
    assert '9,000 videos, 180,000 captions (20.0 per video)' in output
    assert '7,010 videos, 140,200 captions (20.0 per video)' in output
    assert '1,000 videos, 1,000 captions (1.0 per video)' in output


@pytest.mark.slow
def test_it_runs_as_a_script(source, tmp_path):
    (source('msvd') / 'captions_msvd.json').write_text('{')
    printed = run_forked('tools/data/msvd.py', tmp_path / 'msvd', exitcode=2)
    assert 'msvd.py: error: ' in printed and 'captions_msvd.json' in printed
    assert 'Traceback' not in printed
