"""Time the start-up of a data set of many captions, and weigh it in each process.

Makes annotations and empty videos. The data set is made in a process of its own, as it is and as
MMEngine would hold its items (serialize_data=True), and read to its end in a worker that is forked
from that process.
"""

import argparse
import gc
import json
import multiprocessing
import random
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from projects.vop.datasets import VideoTextDataset

FORMS = dict(ours=False, MMEngine=True)


def make(folder: Path, videos: int, captions: int) -> tuple[Path, int, int]:
    """Write annotations of videos that are empty files; give their path, and what Arrow takes.

    That are the captions in UTF-8, and 4 bytes for each to say where it ends.
    """
    rng, annotations = random.Random(0), {}
    words = [''.join(rng.choices('etaoinshrdlu', k=rng.randint(2, 9))) for _ in range(5000)]
    (folder / 'videos').mkdir()
    for number in range(videos):
        name = f'video{number}.mp4'
        (folder / 'videos' / name).touch()
        several = range(captions // videos)
        annotations[name] = [' '.join(rng.choices(words, k=rng.randint(6, 13))) for _ in several]
    path = folder / 'train.json'
    path.write_text(json.dumps(annotations))
    sizes = [len(text) + 4 for texts in annotations.values() for text in texts]
    return path, sum(sizes), len(sizes)


def memory() -> np.ndarray:
    """MB that this process holds, and that it shares with no other."""
    sizes = {}
    for line in Path('/proc/self/smaps_rollup').read_text().splitlines()[1:]:
        key, size, _ = line.split()
        sizes[key[:-1]] = int(size) / 1024
    return np.array([sizes['Rss'], sizes['Private_Clean'] + sizes['Private_Dirty']])


def read(dataset: VideoTextDataset, queue: multiprocessing.Queue) -> None:
    """Read all items in a worker; say by how much its own memory grew, and the time of each."""
    gc.collect()
    before, start = memory(), time.perf_counter()
    for index in range(len(dataset)):
        dataset.get_data_info(index)
    seconds = time.perf_counter() - start
    queue.put((*(memory() - before)[1:], 1e6 * seconds / len(dataset)))


def measure(path: Path, serialize_data: bool) -> tuple[float, ...]:
    """Seconds, MB in the main process and at its peak, MB of a worker, microseconds an item."""
    prefix = dict(video=str(path.parent / 'videos'))
    VideoTextDataset(str(path.with_name('few.json')), [], prefix)  # libraries load
    gc.collect()
    before, start = memory(), time.perf_counter()
    dataset = VideoTextDataset(str(path), [], prefix, serialize_data=serialize_data)
    seconds = time.perf_counter() - start
    gc.collect()
    held, peak = memory()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fork = multiprocessing.get_context('fork')
    queue = fork.Queue()
    worker = fork.Process(target=read, args=(dataset, queue))
    worker.start()
    found = queue.get()
    worker.join()
    return (seconds, held - before[0], peak - before[0], *found)


def main() -> None:
    """Print a table, one row per form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--videos', type=int, default=100_000)
    parser.add_argument('--captions', type=int, default=1_000_000, help='of all videos')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, arrow, count = make(Path(folder), args.videos, args.captions)
        path.with_name('few.json').write_text(json.dumps({'video0': ['a caption']}))
        size = path.stat().st_size / 1e6
        print(f'{count:,} captions of {args.videos:,} videos, a file of {size:.1f} MB.')
        print(f'The captions are {arrow / 2**20:.1f} MiB as an Arrow array.')
        print('| items | start-up | main process | its peak | each worker | an item |')
        print('| --- | --- | --- | --- | --- | --- |')
        for name, serialize_data in FORMS.items():
            # A new process, whose memory is its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context('forkserver')) as pool:
                seconds, *sizes, item = pool.submit(measure, path, serialize_data).result()
            sizes = [f'{size:.1f} MiB' for size in sizes]
            print(f'| {name} | {seconds:.1f} s | {" | ".join(sizes)} | {item:.1f} µs |')


if __name__ == '__main__':
    main()
