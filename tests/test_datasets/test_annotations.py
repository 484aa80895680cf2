"""Annotation files."""

import json
import random

import pytest

from projects.vop.datasets import Annotation, read_annotations
from projects.vop.datasets.annotations import check_caption
from projects.vop.errors import UNSEEN, UserError, shown
from projects.vop.fileio import read_json


@pytest.mark.parametrize(
    'text, place',
    [
        ('', 'line 1, column 1'),
        ('{"a.mp4": ["x"],\n "b.mp4": ["y"', 'line 2, column 15'),
        (b'{"a.mp4": ["M\xe4dchen"]}', 'is not UTF-8 text'),
        ('["a.mp4"]', 'holds ["a.mp4"]; expected is {"video0.mp4": ["a caption"'),
        ('{}', 'holds {}'),
        ('{"a.mp4": ["x"], "b.mp4": []}', '"b.mp4" has no list of captions'),
        ('{"a.mp4": ["x"], "b.mp4": "y"}', '"b.mp4" has no list of captions'),
        ('{"a.mp4": ["x"], "b.mp4": null}', '"b.mp4" has no list of captions'),
        ('{"a.mp4": ["x", "y", " "]}', '"a.mp4": caption 3 is " "'),
        ('{"a.mp4": ["x", 7]}', '"a.mp4": caption 2 is 7'),
        ('{"a.mp4": ["x"], "b.mp4": ["y"], "a.mp4": ["z"]}', '"a.mp4" is listed twice'),
        ('{"a.mp4": {"captions": ["x"], "captions": ["y"]}}', '"captions" is listed twice'),
        ('{"a.mp4": {"start": 1}}', '"a.mp4" has no list of captions'),
        ('{"a.mp4": {"captions": "x"}}', '"a.mp4" has no list of captions'),
        ('{"a.mp4": {"captions": ["x", ""]}}', '"a.mp4": caption 2'),
        ('{"a.mp4": {"captions": ["x"], "stop": 3}}', '"a.mp4" has the unknown key "stop"'),
        ('{"a.mp4": {"captions": ["x"], "start": -0.1}}', '"a.mp4": "start" is -0.1'),
        ('{"a.mp4": {"captions": ["x"], "start": null}}', '"start" is null'),
        ('{"a.mp4": {"captions": ["x"], "start": "1"}}', '"start" is "1"'),
        ('{"a.mp4": {"captions": ["x"], "end": true}}', '"end" is true'),
        ('{"a.mp4": {"captions": ["x"], "end": NaN}}', '"end" is NaN'),
        ('{"a.mp4": {"captions": ["x"], "end": 1e999}}', '"end" is Infinity'),
        ('{"a.mp4": {"captions": ["x"], "end": 0}}', 'ends at 0 s but starts at 0 s'),
        ('{"a.mp4": {"captions": ["x"], "start": 2, "end": 2}}', '"a.mp4": the window ends at 2'),
        (json.dumps(['x' * 10**5]), f'["{"x" * 98}...'),
        # What cannot be seen, in captions and in names.
        ('{"a.mp4": ["x", "a \\u0000"]}', '"a.mp4": caption 2 holds the character \\x00'),
        ('{"a.mp4": ["a\\u2028b"]}', 'caption 1 holds the character \\u2028'),
        ('{"a.mp4": ["\u202ea"]}', 'caption 1 holds the character \\u202e'),
        ('{"a.mp4": ["a\\ud800"]}', 'caption 1 holds the character \\ud800'),
        ('{"a.mp4": ["a\ufeff"]}', 'caption 1 holds the character \\ufeff'),
        ('{"a.mp4": ["a\x85"]}', 'caption 1 holds the character \\x85'),
        ('{"a\\n.mp4": ["x"]}', 'the name of a video holds the character \\n'),
        ('{"a\u2066.mp4": ["x"]}', 'the name of a video holds the character \\u2066'),
        ('{"a\\u0000.mp4": ["x"]}', 'the name of a video holds the character \\x00'),
        ('{"a\\ud800.mp4": ["x"]}', 'the name of a video holds the character \\ud800'),
        ('{"a\u2060.mp4": ["x"]}', 'the name of a video holds the character \\u2060'),
        ('{"a.mp4": ["caf\ufffd"]}', 'caption 1 holds the character \\ufffd'),
        ('{" ": ["x"]}', '" " is no name of a video'),
        # What Python's reader fails on, or would repeat at length.
        (b'{"a.mp4":\n [0, "\0"]}', 'line 2, column 7'),
        ('{"a.mp4": ["x"]}'.encode('utf-16'), 'UTF-16'),
        ('{"a.mp4": ["x"]}'.encode('utf-16-le'), 'NUL is in line 1, column 2'),
        ('[' * 10**6, 'is nested too deeply: [[['),
        ('{"a.mp4": ' + '[' * 900 + ']' * 900 + '}', 'caption 1 is [[['),
        (f'{{"a.mp4": {{"captions": ["x"],\n "end": {"9" * 5000}}}}}', 'line 2, column 9: '),
        ('{"a.mp4": {"captions": ["x"], "end": 1e13}}', '"end" is 10000000000000.0'),
        (json.dumps({'x' * 10**5: ['x']}), 'too long for the name of a file'),
        (json.dumps({'x/' * 10**5: ['x']}), 'too long for the name of a file'),
        (json.dumps({'a.mp4': {'x' * 10**5: 1}}), 'unknown key "xxx'),
        (f'{{"{"x" * 10**5}": 1, "{"x" * 10**5}": 1}}', '" is listed twice'),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_malformed_annotations_name_the_place(tmp_path, text, place):
    path = tmp_path / 'ann.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_annotations(path)
    assert str(path) in str(error.value) and place in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400


@pytest.mark.parametrize(
    'text',
    [*'\xad\u180e\u2060\u2064\ufff9\ufffb\ufffd\U000e0001\U000e0041\U000e007f']
    + ['\U000e0067\U000e0062', '\U0001f600\U000e0061'],
)
def test_no_caption_holds_what_is_not_seen(text):
    with pytest.raises(UserError, match='which cannot be seen') as error:
        check_caption(f'a {text} b', 'x.json')
    escape = text.lstrip('\U0001f600').encode('unicode_escape').decode()
    assert f'the character {escape},' in str(error.value)
    assert str(error.value).isascii() or '\U0001f600' in text


def test_captions_hold_what_writing_and_emoji_need():
    scotland = '\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f'
    family = '\U0001f468\u200d\U0001f469'
    for text in (f'{scotland} plays', f'a {family}', 'می\u200cروم', 'क्\u200dष', 'แมว\u200bนอน'):
        assert check_caption(text, 'x.json') == shown(text) == text


@pytest.mark.parametrize('name', ['x.json', 'x' * 300, 'x' * 10**5, 'x\0'])
def test_missing_annotations(tmp_path, name):
    with pytest.raises(UserError, match='no annotation file .*x') as error:
        read_annotations(str(tmp_path / name))
    assert len(str(error.value)) < 500
    with pytest.raises(UserError, match='cannot be read') as error:
        read_json(tmp_path / name)
    assert len(str(error.value)) < 500


def flip(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def repeat(data, rng):
    """One line twice, or a few bytes."""
    start, end = sorted(rng.sample(range(len(data)), 2))
    lines = data.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    lines.insert(line, lines[line])
    return rng.choice([b''.join(lines), data[:end] + data[start:]])


def leave_out(data, rng):
    start, end = sorted(rng.sample(range(len(data)), 2))
    return data[:start] + data[end:]


def test_damaged_annotations_are_read_rightly_or_named(tmp_path):
    """With each byte as likely to be damaged; what is read is what Python's json reads."""
    path, rng = tmp_path / 'ann.json', random.Random(0)
    videos = {f'{n}.mp4': [f'caption {i} of a café' for i in range(3)] for n in range(5)}
    videos['w.mp4'] = dict(captions=['x'], start=1.5, end=20)
    good = json.dumps(videos, indent=1, ensure_ascii=False).encode()
    refused = 0
    for number in range(200):
        path.write_bytes([flip, cut, repeat, leave_out][number % 4](good, rng))
        try:
            read = read_annotations(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path)) and len(str(error)) < len(str(path)) + 400
            continue
        for video, value in json.loads(path.read_text('utf-8')).items():
            value = value if isinstance(value, dict) else dict(captions=value)
            assert read.pop(video) == Annotation(**value)
            assert not any(map(UNSEEN.search, value['captions']))
        assert not read
    assert 100 < refused < 200


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_good_annotations(tmp_path, encoding):
    path = tmp_path / 'ann.json'
    path.write_text(
        '{"a": {"captions": ["ein Mädchen", " y "], "start": 0, "end": 1.5}, "c": ["猫"],'
        '"b.avi": {"captions": ["x"], "start": 2}, "d": {"captions": ["x"], "end": 3}}',
        encoding=encoding,
    )
    assert read_annotations(str(path)) == {
        'a': Annotation(['ein Mädchen', ' y '], 0, 1.5),
        'b.avi': Annotation(['x'], start=2),
        'c': Annotation(['猫']),
        'd': Annotation(['x'], end=3),
    }
