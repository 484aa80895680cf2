"""What a tool prints."""

import io
import sys

import pytest

from projects.vop.errors import UserError, exit_on_user_error, reason_or_raise, shown

NAME = 'a\n\r\x1b[2K\u2028\u202e\udce9.mp4'


def test_names_are_shown_on_one_line():
    assert shown(NAME) == r'a\n\r\x1b[2K\u2028\u202e\xe9.mp4'
    assert shown('\ud800') == r'\ud800'
    for text in ('猫 é e\u0301.mp4', 'family \U0001f468\u200d\U0001f469', 'a\xa0b'):
        assert shown(text) == text
    assert shown('x' * 10**6, 10) == 'x' * 10 + '...'


def test_a_bug_names_the_video_that_was_read():
    bug = KeyError('rotation')
    with pytest.raises(KeyError) as error:
        reason_or_raise(bug, 'a\nb.mp4')
    assert error.value is bug
    if sys.version_info >= (3, 11):
        assert r'a\nb.mp4' in bug.__notes__[0]
    long = RuntimeError('no frame\nof ' + 1000 * 'x')
    assert reason_or_raise(long, 'a.mp4').startswith(r'RuntimeError: no frame\nof x')
    assert len(reason_or_raise(long, 'a.mp4')) < 310


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_any_terminal_can_print_anything(monkeypatch, encoding):
    streams = []
    for name in ('stdout', 'stderr'):
        streams.append(io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        monkeypatch.setattr(sys, name, streams[-1])
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        print(f'猫 {NAME}')
        raise UserError(f'猫: {NAME} is wrong.')
    assert stop.value.code == 2
    out, err = (stream.buffer.getvalue() for stream in streams if stream.flush() is None)
    assert ('猫'.encode() in out) == (encoding == 'utf-8') and b'.mp4' in out
    # A message of ours may have several lines, but no other control characters.
    first, second, *more = err.decode(encoding).splitlines()
    assert second.startswith(r'\r\x1b[2K\u2028') and not more
