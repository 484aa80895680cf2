"""Items of a data set as arrays: small, and shared by all workers."""

import copy
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import numpy as np

from .annotations import Annotation


class Texts(Sequence):
    """Texts as one run of bytes, and where each ends, as Arrow holds them.

    A forked worker shares it; each Python object of a list it would copy, as soon as it counts a
    reference to it.

    Args:
        texts (Iterable[str]): The texts.

    Example:
        >>> Texts(['a dog', 'a cat'])[1]
        'a cat'
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # Names of files need not be text.
        encoded = [text.encode(errors='surrogatepass') for text in texts]
        self.data = b''.join(encoded)
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.uint64)
        self.ends = self.ends.astype(np.min_scalar_type(len(self.data)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        i = index(i)
        i += len(self) if i < 0 else 0
        start, end = self.ends[i - 1] if i else 0, self.ends[i]
        return self.data[start:end].decode(errors='surrogatepass')


class Items(Sequence):
    """The items of annotations, each made when it is asked for.

    Args:
        annotations (dict[str, Annotation]): Of each of V videos.
        files (Sequence[str]): V paths.
        test_mode (bool): Whether an item is a video with all its captions, and not a pair.

    Example:
        >>> Items({'a.mp4': Annotation(['a dog'])}, ['videos/a.mp4'], test_mode=False)[0]
        {'filename': 'videos/a.mp4', 'video_id': 'a.mp4', 'video_number': 0, 'text': 'a dog'}
    """

    def __init__(
        self, annotations: dict[str, Annotation], files: Sequence[str], test_mode: bool
    ) -> None:
        self.files, self.names, self.test_mode = files, Texts(annotations), test_mode
        found = annotations.values()
        self.captions = Texts(text for annotation in found for text in annotation.captions)
        ends = np.cumsum([len(annotation.captions) for annotation in found])
        self.ends = ends.astype(np.min_scalar_type(len(self.captions)))  # of each video's captions
        # [V x 2] seconds, NaN where there are none.
        windows = np.array([annotation[1:] for annotation in found], float)
        self.windows = None if np.isnan(windows).all() else windows
        # What a subset holds; a range takes no memory.
        self.rows = range(len(found) if test_mode else len(self.captions))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            part = copy.copy(self)
            part.rows = self.rows[i]
            return part
        row = self.rows[i]
        if self.test_mode:
            number = row
        else:  # searched for in its own type, or all are converted
            number = int(self.ends.searchsorted(self.ends.dtype.type(row), 'right'))
        item = dict(filename=self.files[number], video_id=self.names[number], video_number=number)
        if self.windows is not None:
            for key, seconds in zip(('start', 'end'), self.windows[number].tolist()):
                if seconds == seconds:  # no NaN
                    item[key] = int(seconds) if seconds.is_integer() else seconds
        if not self.test_mode:
            return dict(item, text=self.captions[row])
        first, stop = self.ends[number - 1] if number else 0, self.ends[number]
        return dict(item, text=[self.captions[i] for i in range(first, stop)])
