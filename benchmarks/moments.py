"""Time the indexing of moments: windows of a film, against a file for each window.

The film is synthetic. What is timed is what `tools/search.py index --window` does: reading, and
reading with a CLIP of random weights. Both sides are timed in turn, so that what else the machine
does meets both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from projects.vop.apis import VoPInferencer, Windows
from projects.vop.apis.reader import read_videos
from projects.vop.engine import open_config

RATE, HEIGHT, WIDTH = 25, 240, 320


def picture(second: float) -> np.ndarray:
    """A soft pattern that moves."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9 + second * a) + np.cos(y / 13 - second * b) for a, b in ((1, 2), (2, 3))]
    return np.stack([*(127 + 60 * wave for wave in waves), (x + 50 * second) % 255], -1).astype(
        'u1'
    )


def write_film(path: Path, start: float, end: float) -> None:
    """Encode the pictures from one second to another."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=RATE, options=dict(preset='veryfast'))
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, 'yuv420p'
        for number in range(round(start * RATE), round(end * RATE)):
            frame = av.VideoFrame.from_ndarray(picture(number / RATE), format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def timed(function: Callable[[], int]) -> tuple[int, float]:
    """What a function gives, and its seconds."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def main() -> None:
    """Print a table, one row for reading and one with embedding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=300, help='of the film')
    parser.add_argument('--window', type=float, default=10)
    parser.add_argument('--stride', type=float, default=5)
    parser.add_argument('--num-workers', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--config', default='configs/vop_fp_msrvtt.py')
    parser.add_argument('--clip', default='ViT-B-32-quickgelu', help='of open_clip')
    args = parser.parse_args()
    cfg = open_config(args.config)
    cfg.model.clip = dict(name=args.clip, pretrained=None)
    torch.manual_seed(0)
    inferencer = VoPInferencer(cfg, show_progress=False)
    windows = Windows(args.window, args.stride)
    with tempfile.TemporaryDirectory() as name:
        film = Path(name) / 'film.mp4'
        write_film(film, 0, args.seconds)
        spans = windows.spans(args.seconds)
        files = [str(film.with_stem(f'{number:05}')) for number in range(len(spans))]
        for file, span in zip(files, spans):
            write_film(Path(file), *span)
        sides = {'windows': ([str(film)], windows), 'files': (files, None)}
        ways = {
            'reading': lambda paths, windows: sum(
                clip.frames is not None
                for clip in read_videos(
                    paths, inferencer.pipeline, args.num_workers, None, 4, windows
                )
            ),
            'reading and embedding': lambda paths, windows: len(
                inferencer.encode_videos(paths, 8, args.num_workers, windows).paths
            ),
        }
        print(
            f'{args.seconds:g} s of video in {len(spans)} windows of {args.window:g} s, one each '
            f'{args.stride:g} s; {args.num_workers} workers, {args.clip} with random weights.\n\n'
            '| what | seconds of video a second: windows | a file for each window | times as fast '
            '|\n| --- | --- | --- | --- |'
        )
        for what, way in ways.items():
            taken: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(args.rounds):
                for side, given in sides.items():
                    found, seconds = timed(lambda way=way, given=given: way(*given))
                    assert found == len(spans), f'{side}: {found} of {len(spans)} windows'
                    taken[side].append(seconds)
            ratio = statistics.median(b / a for a, b in zip(*taken.values()))
            rates = [args.seconds / statistics.median(each) for each in taken.values()]
            print(f'| {what} | {rates[0]:.1f} | {rates[1]:.1f} | {ratio:.2f}x |', flush=True)


if __name__ == '__main__':
    main()
