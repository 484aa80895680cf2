"""Time the search of a large index: exact, and with an IVF.

The embeddings are synthetic, as no million of videos is at hand: wide clusters that overlap, mostly
in a hundred directions, in a common cone, which is how CLIP's lie. Half of the queries are drawn as
the videos are; the others, the "texts", from a cone of their own, as CLIP's texts lie apart from
its pictures. How many lists must be read depends on the data: `tools/search.py` measures it.

All are timed in turn, query by query, as a user waits for them. `--hnsw` adds FAISS's graph index.
"""

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
import torch

from projects.vop.search import VideoIndex
from projects.vop.search.ann import IVF, ROWS_PER_BLOCK, TOP, WANTED_RECALL, open_faiss
from projects.vop.search.read import FILES, FORMAT, MANIFEST
from projects.vop.search.store import write_array, write_json

HNSW_LINKS = 32
DIRECTIONS = 96  # that embeddings mostly lie in
TOPIC = 200  # videos of a cluster


class Synthetic:
    """Draws embeddings; how many videos there will be sets the clusters."""

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
        x = where @ self.base + 0.3 * self._normal(count, self.base.shape[1]) + 2 * self.cones[kind]
        return x / np.linalg.norm(x, axis=1, keepdims=True)


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """What a function returns, and its seconds."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def save_index(folder: Path, data: Synthetic, size: int) -> float:
    """Write an index as update_index does; give the seconds of its IVF."""
    files = {what: folder / name.format(0) for what, name in FILES.items()}
    for what in ('config', 'model'):
        files[what] = folder / FILES[what].format('0' * 12)
        files[what].touch()
    ids, width, texts = np.arange(size), data.base.shape[1], data.draw('text', 256)
    write_json(files['names'], [f'folder {i // 1000}/video {i}.mp4' for i in range(size)])
    write_array(files['stamps'], [np.stack([ids] * 3, axis=1)], 0)
    embeddings = np.lib.format.open_memmap(files['embeddings'], 'w+', np.float32, (size, width))
    for start in range(0, size, ROWS_PER_BLOCK):
        block = embeddings[start : start + ROWS_PER_BLOCK]
        block[:] = data.draw('video', len(block))
    embeddings.flush()
    start = time.perf_counter()
    ivf = IVF.train(embeddings)
    ivf.add(ids, embeddings)
    ivf.choose_nprobe(embeddings, ids, texts)
    taken = time.perf_counter() - start
    ivf.write(files['ivf'])
    manifest = dict(format=FORMAT, generation=0, model_fingerprint='0' * 32, video_dir='/videos')
    manifest.update(videos=size, width=width, next_id=size, ivf=ivf.settings._asdict())
    sizes = {what: path.stat().st_size for what, path in files.items()}
    manifest['files'] = {what: sizes[what] for what in ('names', 'stamps', 'embeddings', 'ivf')}
    write_json(folder / MANIFEST, manifest)
    return taken


def save_hnsw(path: Path, index: VideoIndex, queries: np.ndarray) -> tuple[float, int]:
    """Write an HNSW of the wanted recall; give its seconds and efSearch."""
    faiss = open_faiss()
    graph = faiss.IndexHNSWFlat(queries.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    taken = timed(graph.add, index.embeddings)[1]
    exact = [[hit.name for hit in hits] for hits in index.search(queries, TOP, exact=True)]
    for reach in (16, 32, 64, 128, 256, 512, 1024, 2048):
        graph.hnsw.efSearch = reach
        found = [[index.names[i] for i in ids] for ids in graph.search(queries, TOP)[1]]
        if recall(found, exact) >= WANTED_RECALL:
            break
    faiss.write_index(graph, str(path))
    return taken, reach


def recall(found: list[list], exact: list[list]) -> float:
    """Mean part of the exact top 10 that was found."""
    return statistics.mean(len(set(a) & set(b)) / TOP for a, b in zip(found, exact))


def open_as(kind: str, folder: Path) -> Callable:
    """Open an index; give what finds names of the top 10 of one query."""
    index = VideoIndex.open(folder)
    if kind == 'HNSW':
        graph = open_faiss().read_index(str(folder / 'hnsw'))
        return lambda query: [index.names[i] for i in graph.search(query, TOP)[1][0]]
    return lambda query: [hit.name for hit in index.search(query, TOP, kind == 'exact')[0]]


def one_query(kind: str, folder: Path, query: np.ndarray) -> tuple[float, float, int]:
    """Seconds to open, of the first query, and bytes of both with pages of mapped files."""
    open_faiss()
    statm = Path('/proc/self/statm')
    before = int(statm.read_text().split()[1])
    find, opened = timed(open_as, kind, folder)
    first = timed(find, query)[1]
    return opened, first, PAGESIZE * (int(statm.read_text().split()[1]) - before)


def compare(folder: Path, kinds: list[str], queries: dict[str, np.ndarray]) -> None:
    """Print a row for each kind of index."""
    searches = {kind: open_as(kind, folder) for kind in kinds}
    found = {(kind, name): [] for kind in kinds for name in queries}
    taken = {kind: [] for kind in kinds}
    for name, each in queries.items():
        for query in each[:, None]:
            for kind, search in searches.items():
                names, took = timed(search, query)
                found[kind, name].append(names)
                taken[kind].append(took)
    recalls = ' | '.join(f'recall@{TOP}, {name}' for name in queries)
    print(
        f'\n| search | ms a query | time: exact / this | {recalls} | on disk | opening | '
        f'first query | memory of both |\n{"| --- " * (7 + len(queries))}|'
    )
    for kind in kinds:
        ratio = statistics.median(a / b for a, b in zip(taken['exact'], taken[kind]))
        recalls = ' | '.join(f'{recall(found[kind, n], found["exact", n]):.3f}' for n in queries)
        file = folder / dict(exact='embeddings-0.npy', IVF='ivf-0.faiss', HNSW='hnsw')[kind]
        with multiprocessing.get_context('forkserver').Pool(1) as alone:  # its memory is its own
            opened, first, held = alone.apply(one_query, (kind, folder, queries['videos'][:1]))
        print(
            f'| {kind} | {1000 * statistics.median(taken[kind]):.2f} | {ratio:.3g}x | {recalls} | '
            f'{file.stat().st_size / 2**20:,.0f} MiB | {opened:.2f} s | {first:.2f} s | '
            f'{held / 2**20:,.0f} MiB |',
            flush=True,
        )


def main() -> None:
    """Make the indexes, and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', type=int, default=100_000)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--queries', type=int, default=100, help='of each kind')
    parser.add_argument('--hnsw', action='store_true', help='also HNSW, which takes long to make')
    parser.add_argument('--folder', help='where to write the indexes, for as long as it runs')
    args = parser.parse_args()
    data = Synthetic(args.size, args.width)
    queries = dict(videos=data.draw('video', args.queries), texts=data.draw('text', args.queries))
    faiss = open_faiss()
    print(
        f'{platform.machine()} CPU, {faiss.omp_get_max_threads()} threads, FAISS '
        f'{faiss.__version__}, torch {torch.__version__}; '
        f'{args.size:,} synthetic videos of {args.width} numbers.\n'
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder, kinds = Path(folder), ['exact', 'IVF']
        taken = save_index(folder, data, args.size)
        index = VideoIndex.open(folder)
        print(f'IVF made in {taken:.0f} s. {index.ivf.settings}')
        if args.hnsw:
            taken, reach = save_hnsw(folder / 'hnsw', index, np.concatenate([*queries.values()]))
            print(f'HNSW made in {taken:.0f} s: {HNSW_LINKS} links, efSearch {reach}.')
            kinds.append('HNSW')
        compare(folder, kinds, queries)


if __name__ == '__main__':
    main()
