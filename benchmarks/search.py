"""Measure the search of a large index, and its updates.

The embeddings are synthetic, as no million of videos is at hand: wide clusters that overlap, mostly
in a hundred directions, in a common cone, which is how CLIP's lie. Half of the queries are drawn as
the videos are; the others, the "texts", from a cone of their own, as CLIP's texts lie apart from
its pictures. How many lists must be read depends on the data: `tools/search.py` measures it.

An index is made, 1,000 videos are added and removed again, as `tools/search.py index` does it, with
empty files as videos and embeddings that are drawn. FAISS's lists of whole embeddings (IVF-Flat)
are made beside it, with `--hnsw` its graph index, too. Queries are timed in turn, one by one, as a
user waits for them.
"""

import argparse
import itertools
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
import torch

from projects.vop.apis import EncodedVideos, VoPInferencer
from projects.vop.engine import open_config
from projects.vop.search import VideoIndex, update_index
from projects.vop.search.ann import TOP, WANTED_RECALL, open_faiss
from projects.vop.search.store import read_blocks

HNSW_LINKS = 32
DIRECTIONS = 96  # that embeddings mostly lie in
TOPIC = 200  # videos of a cluster
CHANGED = 1000  # videos that are added, and then removed
TOWER = dict(width=64, layers=1, heads=1)


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


class Drawing(VoPInferencer):
    """Embeds without reading."""

    data: Synthetic

    def iter_videos(
        self, videos: list[str], batch_size: int, *args: Any
    ) -> Iterator[EncodedVideos]:
        """Draw an embedding for each."""
        for start in range(0, len(videos), batch_size):
            paths = videos[start : start + batch_size]
            embeddings = torch.from_numpy(self.data.draw('video', len(paths)))
            yield EncodedVideos(paths, embeddings, {}, [(0.0, 10.0)] * len(paths))

    def encode_texts(self, texts: list[str], *args: Any) -> torch.Tensor:
        """Draw an embedding for each."""
        return torch.from_numpy(self.data.draw('text', len(texts)))


def update(folder: Path, size: int, width: int) -> tuple[str, float, float, float]:
    """Bring an index up to date; give what was done, seconds, of the processor, and GB at most."""
    clip = dict(text_cfg=dict(TOWER, context_length=77, vocab_size=49408), embed_dim=width)
    clip['vision_cfg'] = dict(width=64, layers=1, head_width=64, patch_size=32, image_size=224)
    (folder / 'clip.json').write_text(json.dumps(clip))
    cfg = open_config('configs/zero_shot_msrvtt.py')
    cfg.model.clip = dict(name=str(folder / 'clip.json'), pretrained=None)
    torch.manual_seed(0)
    inferencer = Drawing(cfg, None, 'cpu', show_progress=False)
    inferencer.data = Synthetic(size, width)
    Path('/proc/self/clear_refs').write_text('5')  # from here on, the peak counts
    start, used = time.perf_counter(), time.process_time()
    done = update_index(inferencer, folder / 'videos', folder / 'index', 4096, exact_below=1)
    taken = time.perf_counter() - start, time.process_time() - used
    status = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    what = f'{done.added:,} added, {done.removed:,} removed, {done.kept:,} kept'
    return what, *taken, int(status['VmHWM'].split()[0]) / 2**20


def alone(function: Callable, *args: Any) -> Any:
    """Call a function in a process whose memory is its own."""
    with multiprocessing.get_context('forkserver').Pool(1) as pool:
        return pool.apply(function, args)


def touch(folder: Path, numbers: range) -> list[Path]:
    """Make empty files, a thousand in a folder."""
    paths = [folder / f'folder {i // 1000}/video {i}.mp4' for i in numbers]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def save_flat(path: Path, index: VideoIndex, queries: dict[str, np.ndarray]) -> tuple[float, int]:
    """Write lists of whole embeddings; give their processor seconds, and nprobe."""
    faiss = open_faiss()
    count, width = index.embeddings.shape
    nlist = max(1, min(round(4 * count**0.5), count // 8))
    flat = faiss.index_factory(width, f'IVF{nlist},Flat', faiss.METRIC_INNER_PRODUCT)
    flat.cp.min_points_per_centroid = 1
    rows = np.random.default_rng(0).choice(count, min(count, 64 * nlist), replace=False)
    used = time.process_time()
    flat.train(np.array(index.embeddings[np.sort(rows)]))
    for block in read_blocks(index.embeddings):
        flat.add(block)
    used = time.process_time() - used
    exact = {kind: exactly(index, each) for kind, each in queries.items()}
    for nprobe in itertools.accumulate(itertools.repeat(1), lambda n, _: n + 1 + n // 4):
        flat.nprobe = min(nprobe, nlist)
        found = {kind: flat.search(each, TOP)[1].tolist() for kind, each in queries.items()}
        if min(recall(found[kind], exact[kind]) for kind in queries) >= WANTED_RECALL:
            break
        if nprobe >= nlist:
            break
    faiss.write_index(flat, str(path))
    return used, flat.nprobe


def save_hnsw(path: Path, index: VideoIndex, queries: np.ndarray) -> tuple[float, int]:
    """Write an HNSW of the wanted recall; give its processor seconds and efSearch."""
    faiss = open_faiss()
    graph = faiss.IndexHNSWFlat(queries.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    used = time.process_time()
    graph.add(index.embeddings)
    used = time.process_time() - used
    exact = exactly(index, queries)
    for reach in (16, 32, 64, 128, 256, 512, 1024, 2048):
        graph.hnsw.efSearch = reach
        if recall(graph.search(queries, TOP)[1].tolist(), exact) >= WANTED_RECALL:
            break
    faiss.write_index(graph, str(path))
    return used, reach


def exactly(index: VideoIndex, queries: np.ndarray) -> list[list[int]]:
    """Rows of the exact top 10."""
    row = {name: number for number, name in enumerate(index.names)}
    return [[row[hit.name] for hit in hits] for hits in index.search(queries, TOP, exact=True)]


def recall(found: list[list], exact: list[list]) -> float:
    """Mean part of the exact top 10 that was found."""
    return statistics.mean(len(set(a) & set(b)) / TOP for a, b in zip(found, exact))


def open_as(kind: str, folder: Path, nprobe: int) -> Callable:
    """Open an index; give what finds names of the top 10 of one query."""
    index = VideoIndex.open(folder / 'index')
    if kind in ('exact', 'ours'):
        return lambda query: [hit.name for hit in index.search(query, TOP, kind == 'exact')[0]]
    index.ivf = None
    faiss = open_faiss()
    flags = faiss.IO_FLAG_MMAP if kind == 'IVF-Flat' else 0
    other = faiss.read_index(str(folder / kind), flags)
    if kind == 'IVF-Flat':
        other.nprobe = nprobe
    return lambda query: [index.names[i] for i in other.search(query, TOP)[1][0]]


def one_query(kind: str, folder: Path, nprobe: int, query: np.ndarray) -> tuple:
    """Seconds to open, of the first query, and bytes of both with pages of mapped files."""
    open_faiss()
    statm = Path('/proc/self/statm')
    before, start = int(statm.read_text().split()[1]), time.perf_counter()
    find = open_as(kind, folder, nprobe)
    opened, start = time.perf_counter() - start, time.perf_counter()
    find(query)
    first = time.perf_counter() - start
    return opened, first, PAGESIZE * (int(statm.read_text().split()[1]) - before)


def compare(folder: Path, kinds: list[str], nprobe: int, queries: dict[str, np.ndarray]) -> None:
    """Print a row for each kind of search."""
    searches = {kind: open_as(kind, folder, nprobe) for kind in kinds}
    found = {(kind, name): [] for kind in kinds for name in queries}
    taken = {(kind, name): [] for kind in kinds for name in queries}
    for name, each in queries.items():
        for query in each[:, None]:
            for kind, search in searches.items():
                start = time.perf_counter()
                found[kind, name].append(search(query))
                taken[kind, name].append(time.perf_counter() - start)
    columns = ['search', *(f'ms a query, {n}' for n in queries), 'time: IVF-Flat / this']
    columns += [f'recall@{TOP}, {n}' for n in queries]
    columns += ['on disk', 'opening', 'first query', 'memory of both']
    print(f'\n| {" | ".join(columns)} |\n{"| --- " * len(columns)}|')
    files = dict(exact='index/embeddings-1.npy', ours='index/ivf-1.faiss')
    for kind in kinds:
        flat = [taken['IVF-Flat', n] for n in queries]
        own = [taken[kind, n] for n in queries]
        ratio = statistics.median(a / b for a, b in zip(sum(flat, []), sum(own, [])))
        recalls = [recall(found[kind, n], found['exact', n]) for n in queries]
        opened, first, held = alone(one_query, kind, folder, nprobe, queries['videos'][:1])
        cells = [kind, *(f'{1000 * statistics.median(each):.2f}' for each in own), f'{ratio:.3g}x']
        cells += [*(f'{each:.3f}' for each in recalls)]
        cells += [f'{(folder / files.get(kind, kind)).stat().st_size / 2**20:,.0f} MiB']
        cells += [f'{opened:.2f} s', f'{first:.2f} s', f'{held / 2**20:,.0f} MiB']
        print(f'| {" | ".join(cells)} |', flush=True)


def main() -> None:
    """Make the indexes, compare and update them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', type=int, default=100_000)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--queries', type=int, default=100, help='of each kind')
    parser.add_argument('--hnsw', action='store_true', help='also HNSW, which takes long to make')
    parser.add_argument('--folder', help='where to write the indexes, for as long as it runs')
    args = parser.parse_args()
    faiss = open_faiss()
    print(
        f'{platform.machine()} CPU, {faiss.omp_get_max_threads()} threads, FAISS '
        f'{faiss.__version__}, torch {torch.__version__}; '
        f'{args.size:,} synthetic videos of {args.width} numbers.\n'
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        touch(folder / 'videos', range(args.size))
        updates = [alone(update, folder, args.size, args.width)]
        index = VideoIndex.open(folder / 'index')
        print(index.how)
        data = Synthetic(args.size, args.width)
        data.draw('video', args.size % 997)  # other ones than those that were indexed
        queries = {f'{kind}s': data.draw(kind, args.queries) for kind in ('video', 'text')}
        kinds = ['exact', 'IVF-Flat', 'ours']
        used, nprobe = save_flat(folder / 'IVF-Flat', index, queries)
        print(f'IVF-Flat took {used:.0f} s of the processor, and reads {nprobe} lists.')
        if args.hnsw:
            both = np.concatenate([*queries.values()])
            used, reach = save_hnsw(folder / 'HNSW', index, both)
            print(f'HNSW took {used:.0f} s of the processor; efSearch is {reach}.')
            kinds.append('HNSW')
        compare(folder, kinds, nprobe, queries)
        more = touch(folder / 'videos', range(args.size, args.size + CHANGED))
        updates.append(alone(update, folder, args.size, args.width))
        for path in more:
            path.unlink()
        updates.append(alone(update, folder, args.size, args.width))
    print('\n| update | seconds | of the processor | memory at most |\n| --- | --- | --- | --- |')
    for what, taken, used, peak in updates:
        print(f'| {what} | {taken:.1f} | {used:.1f} | {peak:.2f} GB |')


if __name__ == '__main__':
    main()
