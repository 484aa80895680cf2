"""Annotation files."""

import json

import pytest

from projects.vop.datasets import Annotation, read_annotations
from projects.vop.errors import UserError


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
    ],
)
def test_malformed_annotations_name_the_place(tmp_path, text, place):
    path = tmp_path / 'ann.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_annotations(path)
    assert str(path) in str(error.value) and place in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400


def test_missing_annotations(tmp_path):
    with pytest.raises(UserError, match='no annotation file .*x.json'):
        read_annotations(str(tmp_path / 'x.json'))


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
