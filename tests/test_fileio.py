"""Writing, locks on folders, and names of files."""

from pathlib import Path

import portalocker
import pytest

from projects.vop import fileio
from projects.vop.errors import UserError


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, logged_warnings):
    def refuse(file, flags):
        raise portalocker.LockException('No locks available')

    monkeypatch.setattr(fileio, '_lock', refuse)
    with fileio.file_lock(tmp_path / 'new/.lock'):
        assert str(tmp_path / 'new') in logged_warnings[0]


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file/.lock'), fileio.file_lock(tmp_path / 'file/.lock'):
        pass


def test_what_macos_hides_is_left_out(tmp_path):
    (tmp_path / 'a').mkdir()
    for name in ('._a.mp4', '.a.mp4', 'a.mp4', 'a/._b.mp4', 'a/b.mp4'):
        (tmp_path / name).touch()
    assert [name for name, _ in fileio.walk_files(tmp_path)] == ['a/b.mp4', 'a.mp4']
    with pytest.raises(UserError, match='no folder') as error:
        list(fileio.walk_files(tmp_path / ('x' * 10**5)))
    assert len(str(error.value)) < 500


def test_a_device_is_written_to_and_not_replaced():
    device = Path('/dev/full')
    if not device.is_char_device():
        pytest.skip('no such device here')
    with pytest.raises(UserError, match=r'/dev/full cannot be written: No space .*MB are free'):
        fileio.write_file(device, 'text')
    assert device.is_char_device() and not Path('/dev/full.part').exists()


def test_the_longest_names_can_be_written(tmp_path):
    names = ['é' * 127 + end for end in 'ab']  # of 255 bytes
    with pytest.raises(UserError), fileio.atomic_write(tmp_path / names[0]) as part:
        assert part.parent == tmp_path and part.suffix == '.part'
        fileio.write_file(tmp_path / names[1], 'text')
        raise OSError
    assert [path.name for path in tmp_path.iterdir()] == names[1:]
