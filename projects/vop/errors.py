"""The one exception for wrong input, and how a tool ends with it."""

import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a line of text cannot hold, or does not show: control characters, soft hyphens, separators
# of lines, changes of the direction of writing, byte order marks, parts of characters, what stands
# for lost ones, and tags but for those of flags, such as Scotland's. Khmer, Thai, Persian, Hindi
# and emoji need U+200B to U+200D.
UNSEEN = re.compile(
    '(?:[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200e\u200f\u2028-\u202e\u2060-\u2064'
    '\u2066-\u2069\ufeff\ufff9-\ufffb\ufffd-\uffff\ud800-\udfff]'
    '|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+)'
)


def shown(text: str, limit: int | None = None) -> str:
    r"""A text from outside as it can be printed: on one line, whatever it is made of.

    Args:
        text (str): Such as the name of a file, whose bytes need not be text.
        limit (int, optional): Cut it after so many characters.

    Example:
        >>> shown('a\nb.mp4')
        'a\\nb.mp4'
    """
    cut = text if limit is None or len(text) <= limit else f'{text[:limit]}...'
    return UNSEEN.sub(_escape, cut)


def _escape(match: re.Match) -> str:
    if '\udc80' <= match[0] <= '\udcff':  # a byte of a file name
        return os.fsencode(match[0]).decode('utf-8', 'backslashreplace')
    return match[0].encode('unicode_escape').decode()


class UserError(ValueError):
    """What a user gave is wrong: a file, a line of it, a key or an argument.

    The message names it and says what to do. A tool prints it in one line
    (:func:`exit_on_user_error`); any other exception is a bug and keeps its
    traceback. ``exit_code`` is the status that the tool then exits with.

    Example:
        >>> raise UserError('a.json, line 3: not valid JSON.')
        Traceback (most recent call last):
        ...
        projects.vop.errors.UserError: a.json, line 3: not valid JSON.
    """

    exit_code = 2  # argparse's, too


class VideoReadError(UserError):
    """A video cannot be read; the message names it.

    Example:
        >>> try:
        ...     item = dataset[0]
        ... except VideoReadError as error:
        ...     print(error)
    """


class FileWriteError(UserError):
    """A file cannot be written; the message names it.

    Example:
        >>> try:
        ...     write_file('train.json', text)
        ... except FileWriteError as error:
        ...     print(error)
        train.json cannot be written: No space left on device (3.1 MB are free without it).
    """


class NotFiniteError(UserError):
    """A loss, weights or embeddings are not finite, such as in training that diverged."""

    exit_code = 3  # by which a process that starts many runs tells it from other errors


class ProcessFailed(Exception):
    """The process of a call ended, or took too long; the message says how.

    Attributes:
        exitcode (int | None): Of the process, negative for a signal; None if it took too long.

    Example:
        >>> try:
        ...     data = read(video)  # an Isolated
        ... except ProcessFailed as error:
        ...     print(error)
        it took longer than 60 s
    """

    def __init__(self, reason: str, exitcode: int | None = None) -> None:
        super().__init__(reason)
        self.exitcode = exitcode


def reason_or_raise(error: Exception, path: str | Path) -> str:
    """Say why a video cannot be read, or raise the error if the video is not at fault.

    Args:
        error (Exception): What reading it raised; a damaged file can raise nearly anything.
        path (str | Path): The video.

    Returns:
        str: The reason, on one line.

    Raises:
        Exception: ``error``, if a config or a bug is at fault. Its traceback names the video (from
            Python 3.11 on).

    Example:
        >>> reason_or_raise(RuntimeError('no frame can be decoded'), 'a.mp4')
        'RuntimeError: no frame can be decoded'
    """
    if isinstance(error, (ProcessFailed, VideoReadError)):
        return str(error).rstrip('.')
    if isinstance(error, (UserError, AttributeError, KeyError, NameError, TypeError)):
        if hasattr(error, 'add_note'):
            error.add_note(f'This was raised while {shown(str(path))} was read.')
        raise error
    return shown(f'{type(error).__name__}: {error}'.strip().rstrip('.'), 300)


def warn(message: str) -> None:
    """Log a warning.

    Args:
        message (str): What is wrong, and what follows from it.

    Example:
        >>> warn('There is no checkpoint in work_dirs/vop: training starts from the beginning.')
    """
    from mmengine.logging import print_log

    print_log(message, 'current', logging.WARNING)


def log_to_stderr() -> None:
    """Let MMEngine log to stderr, so that a tool prints its answer alone.

    Example:
        >>> log_to_stderr()
        >>> print(json.dumps(answer))
    """
    from mmengine.logging import MMLogger

    for handler in MMLogger.get_current_instance().handlers:
        if getattr(handler, 'stream', None) is sys.stdout:
            handler.setStream(sys.stderr)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a :class:`UserError` in one line, and exit with its ``exit_code``.

    Every tool runs its ``main`` in it. Where the terminal lacks a character, such as an ASCII
    one, what is printed has an escape in its place.

    Example:
        >>> with exit_on_user_error():
        ...     main()
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    try:
        yield
    except UserError as error:
        # A worker of a data loader puts its traceback in front of the message.
        name = f'{type(error).__module__}.{type(error).__qualname__}: '
        message = str(error).rpartition(name)[2].strip()
        message = '\n'.join(map(shown, message.split('\n')))
        print(f'{Path(sys.argv[0]).name}: error: {message}', file=sys.stderr)
        raise SystemExit(error.exit_code) from error
