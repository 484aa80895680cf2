"""The one exception for wrong input, and how a tool ends with it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


class NotFiniteError(UserError):
    """A loss, weights or embeddings are not finite, such as in training that diverged."""

    exit_code = 3  # by which a process that starts many runs tells it from other errors


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a :class:`UserError` in one line, and exit with its ``exit_code``.

    Every tool runs its ``main`` in it.

    Example:
        >>> with exit_on_user_error():
        ...     main()
    """
    try:
        yield
    except UserError as error:
        # A worker of a data loader puts its traceback in front of the message.
        name = f'{type(error).__module__}.{type(error).__qualname__}: '
        message = str(error).rpartition(name)[2].strip()
        # Names of files need not be text.
        message = os.fsencode(message).decode('utf-8', 'backslashreplace')
        print(f'{Path(sys.argv[0]).name}: error: {message}', file=sys.stderr)
        raise SystemExit(error.exit_code) from error
