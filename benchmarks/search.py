"""Time the search of a large index: exact, and with an IVF.

The embeddings are synthetic, as no million of videos is at hand: wide clusters
that overlap, mostly in a hundred directions, in a common cone, which is how
CLIP's lie. Half of the queries are drawn as the videos are; the others, the
"texts", from a cone of their own, as CLIP's texts lie apart from its pictures.
How many lists must be read depends on the data: `tools/search.py` measures it
on yours.

All are timed in turn, query by query, as a user waits for them. `--hnsw` adds
FAISS's graph index, for comparison.
"""

import argparse
import itertools
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
import torch

from projects.vop.search import VideoIndex
from projects.vop.search.ann import CHUNK, IVF, TOP, WANTED_RECALL, open_faiss, search_exactly
from projects.vop.search.read import FILES, FORMAT, MANIFEST
from projects.vop.search.store import write, write_array

HNSW_LINKS = 32
DIRECTIONS = 96  # that embeddings mostly lie in
TOPIC = 200  # videos of a cluster


class Synthetic:
    """Draws embeddings of videos and texts.

    Args:
        videos (int): How many there will be, which sets the clusters.
        width (int): Numbers of an embedding.
    """

    def __init__(self, videos: int, width: int) -> None:
        self.rng = np.random.default_rng(0)
        spread = 1 / np.sqrt(1 + np.arange(DIRECTIONS))
        self.base = spread[:, None] * self._normal(DIRECTIONS, width)
        self.topics = self._normal(max(1, videos // TOPIC), DIRECTIONS)
        self.cones = dict(video=self._normal(width), text=self._normal(width))

    def _normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def draw(self, kind: str, count: int) -> np.ndarray:
        """Embeddings of shape [count x width]."""
        topics = self.rng.integers(len(self.topics), size=count)
        where = self.topics[topics] + 1.2 * self._normal(count, DIRECTIONS)
        x = where @ self.base + 0.3 * self._normal(count, self.base.shape[1])
        x += 2 * self.cones[kind]
        return x / np.linalg.norm(x, axis=1, keepdims=True)


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def memory() -> int:
    """Bytes that this process holds, with the pages of mapped files."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * PAGESIZE


def save_index(
    folder: Path, blocks: Iterator[np.ndarray], size: int, width: int, texts: np.ndarray
) -> float:
    """Write an index as update_index does; give the seconds of its IVF."""
    files = {what: folder / name.format(0) for what, name in FILES.items()}
    for what in ('config', 'model'):
        files[what].touch()
    write(files['names'], [f'folder {i // 1000}/video {i}.mp4' for i in range(size)])
    write_array(files['stamps'], [np.stack([np.arange(size)] * 3, axis=1)], 0)
    embeddings = np.lib.format.open_memmap(files['embeddings'], 'w+', np.float32, (size, width))
    for start, block in zip(range(0, size, CHUNK), blocks):
        embeddings[start : start + CHUNK] = block
    embeddings.flush()
    start = time.perf_counter()
    ivf = IVF.train(embeddings)
    ivf.add(np.arange(size), embeddings)
    ivf.choose_read(embeddings, np.arange(size), texts)
    taken = time.perf_counter() - start
    ivf.write(files['ivf'])
    write(
        folder / MANIFEST,
        dict(
            format=FORMAT,
            generation=0,
            fingerprint='',
            video_dir='/videos',
            videos=size,
            width=width,
            ivf=ivf.settings._asdict(),
            files={what: (path.name, path.stat().st_size) for what, path in files.items()},
        ),
    )
    return taken


def save_hnsw(path: Path, embeddings: np.ndarray, queries: np.ndarray) -> tuple[float, int]:
    """Write an HNSW of the wanted recall; give its seconds and efSearch."""
    faiss = open_faiss()
    index = faiss.IndexHNSWFlat(embeddings.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    start = time.perf_counter()
    for first in range(0, len(embeddings), CHUNK):
        index.add(embeddings[first : first + CHUNK])
    taken = time.perf_counter() - start
    exact = search_exactly(queries, embeddings, TOP)[1].tolist()
    for reach in (16, 32, 64, 128, 256, 512, 1024, 2048):
        index.hnsw.efSearch = reach
        if recall(index.search(queries, TOP)[1].tolist(), exact) >= WANTED_RECALL:
            break
    faiss.write_index(index, str(path))
    return taken, reach


def recall(found: list[list], exact: list[list]) -> float:
    return statistics.mean(len(set(a) & set(b)) / TOP for a, b in zip(found, exact))


def open_as(kind: str, folder: Path) -> Callable:
    """Open an index; give what finds names of the top 10 of one query."""
    index = VideoIndex.open(folder)
    if kind == 'HNSW':
        graph = open_faiss().read_index(str(folder / 'hnsw'))
        return lambda query: [index.names[i] for i in graph.search(query, TOP)[1][0]]
    return lambda query: [hit.name for hit in index.search(query, TOP, kind == 'exact')[0]]


def one_query(kind: str, folder: Path, query: np.ndarray) -> tuple[float, float, int]:
    """Seconds to open, seconds of the first query, and memory of both."""
    open_faiss()
    before, start = memory(), time.perf_counter()
    find = open_as(kind, folder)
    opened = time.perf_counter() - start
    return opened, seconds(lambda: find(query)), memory() - before


def row(cells: list) -> None:
    print('| ' + ' | '.join(cells) + ' |', flush=True)


def alone(function: Callable, *args):
    """Call a function in a process of its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, args)


def compare(folder: Path, kinds: list[str], queries: dict[str, np.ndarray]) -> None:
    """Print a row for each kind of index."""
    searches = {kind: open_as(kind, folder) for kind in kinds}
    found = {key: [] for key in itertools.product(kinds, queries)}
    taken = {kind: [] for kind in kinds}
    for name, each in queries.items():
        for query in each[:, None]:
            for kind, search in searches.items():
                taken[kind].append(seconds(lambda: found[kind, name].append(search(query))))
    row(
        [
            'search',
            'ms a query',
            'time: exact / this',
            *(f'recall@{TOP}, {name}' for name in queries),
            'on disk',
            'opening',
            'first query',
            'memory of both',
        ]
    )
    row(['---'] * (7 + len(queries)))
    for kind in kinds:
        ratio = statistics.median(a / b for a, b in zip(taken['exact'], taken[kind]))
        files = dict(exact='embeddings-0.npy', IVF='ivf-0.faiss', HNSW='hnsw')
        opened, first, held = alone(one_query, kind, folder, queries['videos'][:1])
        row(
            [
                kind,
                f'{1000 * statistics.median(taken[kind]):.2f}',
                f'{ratio:.3g}x',
                *(f'{recall(found[kind, name], found["exact", name]):.3f}' for name in queries),
                f'{(folder / files[kind]).stat().st_size / 2**20:,.0f} MiB',
                f'{opened:.2f} s',
                f'{first:.2f} s',
                f'{held / 2**20:,.0f} MiB',
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', type=int, default=100_000)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--queries', type=int, default=100, help='of each kind')
    parser.add_argument(
        '--hnsw', action='store_true', help='compare with HNSW, which takes long to make'
    )
    parser.add_argument('--folder', help='where to write the indexes, for as long as it runs')
    args = parser.parse_args()
    data = Synthetic(args.size, args.width)
    blocks = (
        data.draw('video', min(CHUNK, args.size - start)) for start in range(0, args.size, CHUNK)
    )
    queries = dict(videos=data.draw('video', args.queries), texts=data.draw('text', args.queries))
    threads = open_faiss().omp_get_max_threads()
    print(
        f'{platform.machine()} CPU, {threads} threads, FAISS '
        f'{open_faiss().__version__}, torch {torch.__version__}; '
        f'{args.size:,} synthetic videos of {args.width} numbers.\n'
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        taken = save_index(folder, blocks, args.size, args.width, data.draw('text', 256))
        index = VideoIndex.open(folder)
        print(f'IVF made in {taken:.0f} s. {index.ivf.settings}')
        kinds = ['exact', 'IVF']
        if args.hnsw:
            taken, reach = save_hnsw(
                folder / 'hnsw', index.embeddings, np.concatenate(list(queries.values()))
            )
            print(f'HNSW made in {taken:.0f} s: {HNSW_LINKS} links, efSearch {reach}.')
            kinds.append('HNSW')
        print()
        compare(folder, kinds, queries)


if __name__ == '__main__':
    main()
