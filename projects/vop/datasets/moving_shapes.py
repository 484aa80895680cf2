"""MovingShapes: a data set in which the order of frames matters.

Real mp4 clips, drawn from a seed, of one coloured shape that moves from a
side of the picture to another; the caption says what moves from where to
where. Every clip comes with its reverse, which has exactly the same frames
and another caption. A model that averages independent frames embeds both
alike, so it gets 50 % in text-to-video R@1 at best, whatever it learns (some
percent more or less, as rounding breaks the ties); one that sees order can
pass that.
"""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np

from ..fileio import write_file

COLORS = dict(red=(220, 40, 40), green=(40, 180, 60), blue=(50, 80, 230), yellow=(230, 210, 50))
SHAPES = ('square', 'cross')
# Centres in units of the picture's size.
PLACES = dict(left=(0.2, 0.5), right=(0.8, 0.5), top=(0.5, 0.2), bottom=(0.5, 0.8))
STILL_PLACES = dict(PLACES, middle=(0.5, 0.5))
# From where to where, in the order of the labels of recognition.
DIRECTIONS = tuple(itertools.permutations(PLACES, 2))

SIZE = 64  # pixels
# UniformSample takes the middles of equal segments. With 8 frames of 17, the
# frames it takes of a clip and of its reverse are the same.
NUM_FRAMES = 17


class Scene(NamedTuple):
    """What moves from where to where.

    Example:
        >>> Scene('red', 'cross', 'left', 'top').caption
        'a red cross moves from the left to the top'
    """

    color: str
    shape: str
    start: str
    end: str

    @property
    def caption(self) -> str:
        """What its clip shows."""
        return f'a {self.color} {self.shape} moves from the {self.start} to the {self.end}'

    @property
    def reverse(self) -> 'Scene':
        """The same scene, moving in reverse."""
        return self._replace(start=self.end, end=self.start)


def draw(
    color: str,
    shape: str,
    center: tuple[float, float],
    radius: float,
    background: int,
    size: int = SIZE,
) -> np.ndarray:
    """Draw one shape.

    Args:
        color (str): A key of ``COLORS``.
        shape (str): One of ``SHAPES``.
        center (tuple[float, float]): x and y, in units of the picture's size.
        radius (float): Half the shape's extent, in the same units.
        background (int): Grey value of the background.
        size (int): Height and width of the picture. Defaults to 64.

    Returns:
        np.ndarray: RGB, uint8, of shape [size x size x 3].
    """
    scale = 4  # drawn larger and shrunk, so that edges are smooth
    picture = np.full((size * scale, size * scale, 3), background, np.uint8)
    x, y = (round(c * size * scale) for c in center)
    r = round(radius * size * scale)
    fill: dict[str, Any] = dict(color=COLORS[color], thickness=cv2.FILLED)
    # Square and cross are bars of different width.
    w = r if shape == 'square' else r // 3
    cv2.rectangle(picture, (x - r, y - w), (x + r, y + w), **fill)
    cv2.rectangle(picture, (x - w, y - r), (x + w, y + r), **fill)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


def _jitter(rng: np.random.Generator, place: str) -> np.ndarray:
    return np.array(STILL_PLACES[place]) + rng.uniform(-0.06, 0.06, 2)


def _look(rng: np.random.Generator) -> dict:
    return dict(radius=rng.uniform(0.15, 0.2), background=int(rng.integers(0, 70)))


def draw_clip(
    scene: Scene, rng: np.random.Generator, num_frames: int = NUM_FRAMES, size: int = SIZE
) -> np.ndarray:
    """Draw a clip of a scene, at places and sizes drawn from ``rng``.

    Returns:
        np.ndarray: RGB, uint8, of shape [num_frames x size x size x 3].
    """
    start, end = _jitter(rng, scene.start), _jitter(rng, scene.end)
    look = _look(rng)
    centers = [(1 - t) * start + t * end for t in np.linspace(0, 1, num_frames)]
    return np.stack(
        [draw(scene.color, scene.shape, center, size=size, **look) for center in centers]
    )


def still_captions() -> list[tuple[tuple[str, str, str], str]]:
    """All (colour, shape, place) of still pictures, with their captions."""
    stills = itertools.product(COLORS, SHAPES, STILL_PLACES)
    return [
        (
            (color, shape, place),
            f'a {color} {shape} {"in" if place == "middle" else "on"} the {place}',
        )
        for color, shape, place in stills
    ]


def draw_still(color: str, shape: str, place: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a still picture, of shape [SIZE x SIZE x 3]."""
    return draw(color, shape, tuple(_jitter(rng, place)), **_look(rng))


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Write frames as H.264.

    Every frame is a key frame of constant quality: it is coded without
    regard to its neighbours, so a clip and its reverse decode to the same
    pixels.
    """
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            'libx264', rate=8, options=dict(g='1', qp='16', preset='fast')
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        for frame in frames:
            frame = av.VideoFrame.from_ndarray(frame, format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def scenes() -> list[Scene]:
    """All scenes, one of each two that are reverses."""
    looks = itertools.product(COLORS, SHAPES, itertools.combinations(PLACES, 2))
    return [Scene(color, shape, *places) for color, shape, places in looks]


def both_directions(scene: Scene) -> tuple[Scene, Scene]:
    """A scene and its reverse."""
    return scene, scene.reverse


def clip_name(split: str, scene: Scene) -> str:
    """Name of the clip of a scene in ``'train'`` or ``'test'``."""
    return f'{split}_{"_".join(scene)}.mp4'


def write_moving_shapes(root: str | Path, seed: int = 0) -> None:
    """Write one training and one test clip of each scene and its reverse.

    They differ in exact places and sizes. With one training clip per caption,
    no batch holds two clips of the same caption, which the contrastive loss
    would push apart.

    Writes ``videos/*.mp4``; ``train.json`` and ``test.json`` in MMAction2's
    ``VideoTextDataset`` format; and for recognition of the 12 directions
    ``train_directions.txt`` and ``test_directions.txt`` in its
    ``VideoDataset`` format, with the classes in ``directions.txt``. What is
    already there, with the same settings, is left alone.

    Args:
        root (str | Path): Folder to write to.
        seed (int): Seed of all that is random. Defaults to 0.
    """
    root = Path(root)
    settings = dict(seed=seed, version=1)
    done = root / 'settings.json'
    if not (done.is_file() and json.loads(done.read_text()) == settings):
        _write_clips(root, seed)
        write_file(done, json.dumps(settings))
    lists = {
        f'{split}_directions.txt': [
            f'{clip_name(split, scene)} {DIRECTIONS.index((scene.start, scene.end))}'
            for first in scenes()
            for scene in both_directions(first)
        ]
        for split in ('train', 'test')
    }
    lists['directions.txt'] = [f'from the {start} to the {end}' for start, end in DIRECTIONS]
    for name, lines in lists.items():
        if not (root / name).is_file():
            write_file(root / name, '\n'.join(lines) + '\n')


def _write_clips(root: Path, seed: int) -> None:
    (root / 'videos').mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split in ('train', 'test'):
        captions = {}
        for first in scenes():
            frames = draw_clip(first, rng)
            for scene, clip in zip(both_directions(first), (frames, frames[::-1])):
                name = clip_name(split, scene)
                write_clip(root / 'videos' / name, clip)
                captions[name] = [scene.caption]
        write_file(root / f'{split}.json', json.dumps(captions, indent=1))
