"""Files that a test is to leave."""

import os
import os.path as osp


def check_writable(path: str) -> None:
    """Say that a file cannot be written before there is work to lose.

    Its folder is made if need be.

    Args:
        path (str): Path of the file.

    Raises:
        ValueError: If it cannot be written.
    """
    folder = osp.dirname(path) or '.'
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f'There can be no folder {folder}: {error.strerror}.') from error
    if osp.isdir(path) or not os.access(folder, os.W_OK):
        raise ValueError(f'No file {path} can be written.')
