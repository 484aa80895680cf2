"""Compare indexing the windows of a long video with indexing each as a file of its own, in turn.

The video is synthetic, with a key frame where a window begins, so that files are cut without being
encoded anew, and both sides read the same frames, which is tested. Cutting is not timed. The test
pipeline of a config reads them: alone, and for a small CLIP, as if computing took little.

Memory is what indexing a video and one four times as long takes at most (Rss of Linux): this
process more than before, and the largest of those that read.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import torch

from projects.vop.apis import VoPInferencer, Windows
from projects.vop.apis.reader import read_videos
from projects.vop.engine import open_config
from projects.vop.fileio import available_cores

WINDOWS = Windows(10, 5)
FPS, WIDTH, HEIGHT = 25, 320, 240
CLIP = dict(
    embed_dim=128,
    vision_cfg=dict(layers=3, width=192, image_size=224, patch_size=32),
    text_cfg=dict(layers=1, width=64, heads=1, context_length=77, vocab_size=49408),
)


def film(path: Path, seconds: int) -> None:
    """Make a video of noisy pictures that move."""
    rng = np.random.default_rng(0)
    scenes = rng.integers(128, size=(4, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    scenes = scenes.repeat(8, axis=1).repeat(8, axis=2)
    scenes += rng.integers(64, size=scenes.shape, dtype=np.uint8)
    with av.open(str(path), 'w') as file:
        # x264's groups of pictures are closed: what begins one can begin a file.
        options = dict(g=str(WINDOWS.stride * FPS), sc_threshold='0', preset='fast')
        stream = file.add_stream('libx264', rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        for number in range(seconds * FPS):
            scene = scenes[number // (7 * FPS) % len(scenes)]
            picture = np.roll(scene, (number, 2 * number), axis=(0, 1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        file.mux(stream.encode())


def cut(path: Path, start: float, stop: float, to: Path, times: int = 1) -> str:
    """Copy what lies between two key frames, several times one after the other."""
    with av.open(str(path)) as old, av.open(str(to), 'w') as new:
        stream = old.streams.video[0]
        begin, end = (round(second / stream.time_base) for second in (start, stop))
        kept, inside = [], False
        for packet in old.demux(stream):
            if packet.is_keyframe:
                inside = begin <= packet.pts < end
            if packet.size and inside:
                kept.append((bytes(packet), packet.pts, packet.dts, packet.is_keyframe))
        copy = new.add_stream_from_template(stream)
        for again in range(times):
            late = again * (end - begin) - begin
            for data, pts, dts, is_keyframe in kept:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.time_base = pts + late, dts + late, stream.time_base
                packet.is_keyframe, packet.stream = is_keyframe, copy
                new.mux(packet)
    return str(to)


def open_inferencer(folder: Path, config: str) -> VoPInferencer:
    """Open a config with a small CLIP of random weights."""
    clip, cfg = folder / 'clip.json', open_config(config)
    clip.write_text(json.dumps(CLIP))
    cfg.model.clip = dict(name=str(clip), pretrained=None)
    return VoPInferencer(cfg, None, 'cpu', show_progress=False)


def timed(function: Callable, *args: Any) -> list[float]:
    """Seconds of a function, and of CPU time, with processes that it starts and ends."""
    start, used = time.perf_counter(), os.times()
    function(*args)
    return [time.perf_counter() - start, sum(np.subtract(os.times(), used)[:4])]


def compare(inferencer: VoPInferencer, video: str, files: list[str], workers: int, rounds: int):
    """Give seconds and CPU time, of [reading alone, all] x rounds x [windows, files]."""

    def read(paths: list[str], windows: Windows | None) -> None:
        for clip in read_videos(paths, inferencer.pipeline, workers, None, 2 * workers, windows):
            assert clip.frames is not None, clip.error

    def encode(paths: list[str], windows: Windows | None) -> None:
        assert not inferencer.encode_videos(paths, 8, workers, windows).failed

    sides = ([video], WINDOWS), (files, None)
    # The first round warms up.
    seconds = [
        [[timed(how, *side) for side in sides] for _ in range(rounds + 1)][1:]
        for how in (read, encode)
    ]
    return np.array(seconds)


def is_same(inferencer: VoPInferencer, video: str, files: list[str]) -> bool:
    """Whether both sides read the same frames."""
    pairs = zip(
        read_videos([video], inferencer.pipeline, 1, windows=WINDOWS),
        read_videos(files, inferencer.pipeline, 1),
        strict=True,
    )
    return all(np.array_equal(a.frames, b.frames) for a, b in pairs)


def memory(folder: Path, config: str, video: str, workers: int) -> tuple[int, int, int]:
    """Windows; kB that this process takes more, and that the largest that reads takes."""
    inferencer = open_inferencer(folder, config)
    Path('/proc/self/clear_refs').write_text('5')  # the peak is what it is now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(len(batch.paths) for batch in inferencer.iter_videos([video], 8, workers, WINDOWS))
    after, others = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return count, after - before, others


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    print()
    for row in (header, ['---'] * len(header), *rows):
        print('| ' + ' | '.join(row) + ' |')


def main() -> None:
    """Make the videos, index and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default='configs/zero_shot_msrvtt.py', help='of the pipeline')
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    workers = available_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, length = folder / 'scene.mp4', 30
        film(scene, length)
        times = max(1, round(60 * args.minutes / length))
        video, long = (cut(scene, 0, length, folder / f'{n}.mp4', n * times) for n in (1, 4))
        spans = WINDOWS.spans(times * length)
        files = [cut(Path(video), *span, folder / f'window {span[0]}.mp4') for span in spans]
        inferencer = open_inferencer(folder, args.config)
        same = is_same(inferencer, video, files)
        print(
            f'{len(files)} windows of {WINDOWS.length:g} s, one each {WINDOWS.stride:g} s, in '
            f'{times * length} s of H.264, {WIDTH}x{HEIGHT}, {FPS} frames a second; '
            f'{workers} workers, {platform.machine()} CPU, decord {decord.__version__}, torch '
            f'{torch.__version__}. Both sides read {"the same" if same else "OTHER"} frames.'
        )
        seconds = compare(inferencer, video, files, workers, args.repeats)
        rows = []
        for what, each in zip(('reading alone', 'with a small CLIP'), seconds):
            rates = (f'{times * length / s:.1f} s' for s in np.median(each[..., 0], axis=0))
            ratios = (f'{r:.2f}x' for r in np.median(each[:, 1] / each[:, 0], axis=0))
            rows.append([what, *rates, *ratios])
        header = ['a second indexes', 'windows of the video', 'a file of each']
        table([*header, 'files / windows', 'by CPU time'], rows)

        rows = []
        for number, path in ((1, video), (4, long)):
            with multiprocessing.get_context('forkserver').Pool(1) as pool:
                count, *kilobytes = pool.apply(memory, (folder, args.config, path, workers))
            held = (f'{kb / 1e3:,.0f} MB' for kb in kilobytes)
            rows.append([f'{number * times * length} s', f'{count:,}', *held])
        table(['video', 'windows', 'this process, more', 'the largest that reads'], rows)


if __name__ == '__main__':
    main()
