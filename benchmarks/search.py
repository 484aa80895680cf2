"""Measure the search of a large index, and its updates.

The embeddings are synthetic, as no million of videos is at hand: wide clusters that overlap, mostly
in a hundred directions, in a common cone, which is how CLIP's lie. Half of the queries are drawn as
the videos are; the others, the "texts", from a cone of their own, as CLIP's texts lie apart from
its pictures. How many lists must be read depends on the data: `tools/search.py` measures it.

An index is made, 1,000 videos are added and removed again, as `tools/search.py index` does it, with
empty files as videos and embeddings that are drawn. FAISS's lists of whole embeddings (IVF-Flat)
are made beside it, with `--hnsw` its graph index, too. Queries are timed in turn, one by one, as a
user waits for them. What is made is made in a process of its own. Its memory is all that it holds
at its peak (Rss of Linux), with 0.9 GB of libraries and with pages of files that it has mapped.
"""

import argparse
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
from projects.vop.search.ann import (
    IVF,
    TOP,
    WANTED_RECALL,
    open_faiss,
    sample,
    search_exactly,
)
from projects.vop.search.store import read_blocks, read_videos

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
    """Bring an index up to date; give what was done, and what :func:`measure` does."""
    clip = dict(text_cfg=dict(TOWER, context_length=77, vocab_size=49408), embed_dim=width)
    clip['vision_cfg'] = dict(width=64, layers=1, head_width=64, patch_size=32, image_size=224)
    (folder / 'clip.json').write_text(json.dumps(clip))
    cfg = open_config('configs/zero_shot_msrvtt.py')
    cfg.model.clip = dict(name=str(folder / 'clip.json'), pretrained=None)
    torch.manual_seed(0)
    inferencer = Drawing(cfg, None, 'cpu', show_progress=False)
    inferencer.data = Synthetic(size, width)
    paths = folder / 'videos', folder / 'index'
    done, *used = measure(update_index, inferencer, *paths, 4096, exact_below=1)
    return f'{done.added:,} added, {done.removed:,} removed, {done.kept:,} kept', *used


def measure(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, float, float, float]:
    """Call a function; give also seconds, those of the processor, and GB at most."""
    Path('/proc/self/clear_refs').write_text('5')  # from here on, the peak counts
    start, used = time.perf_counter(), time.process_time()
    result = function(*args, **kwargs)
    taken = time.perf_counter() - start, time.process_time() - used
    status = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    return result, *taken, int(status['VmHWM'].split()[0]) / 1e6


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


def make(kind: str, folder: Path) -> None:
    """Write the lists, or the graph, of the embeddings of the index."""
    faiss = open_faiss()
    embeddings: np.memmap = np.load(folder / 'index/embeddings-1.npy', mmap_mode='r')
    count, width = embeddings.shape
    if kind == 'ours':
        ivf = IVF.train(embeddings)
        ivf.add(np.arange(count), read_blocks(embeddings))
        ivf.write(folder / 'lists')
        return
    if kind == 'HNSW':
        index = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        nlist = max(1, min(round(4 * count**0.5), count // 8))
        index = faiss.index_factory(width, f'IVF{nlist},Flat', faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        index.train(sample(embeddings, 64 * nlist))
    for block in read_blocks(embeddings):
        index.add(block)
    faiss.write_index(index, str(folder / kind))


def tune(kind: str, folder: Path, queries: np.ndarray, wanted: list[list[int]]) -> int:
    """Choose how far another index looks: the least with the wanted recall of each kind."""
    other = open_faiss().read_index(str(folder / kind))
    reach = 0
    while reach < 4096:
        reach += 1 + reach // 4
        set_reach(other, reach)
        found = other.search(queries, TOP)[1].tolist()
        halves = slice(len(found) // 2), slice(len(found) // 2, None)
        if min(recall(found[half], wanted[half]) for half in halves) >= WANTED_RECALL:
            break
    return reach


def set_reach(index: Any, reach: int) -> None:
    """Say how many lists or nodes a query reads."""
    if hasattr(index, 'nprobe'):
        index.nprobe = reach
    else:
        index.hnsw.efSearch = reach


def recall(found: list[list], exact: list[list]) -> float:
    """Mean part of the exact top 10 that was found."""
    return statistics.mean(len(set(a) & set(b)) / TOP for a, b in zip(found, exact))


def open_as(kind: str, folder: Path, reach: int) -> Callable:
    """Open an index; give what finds names of the top 10 of one query."""
    if kind in ('exact', 'ours'):
        index = VideoIndex.open(folder / 'index')
        return lambda query: [hit.name for hit in index.search(query, TOP, kind == 'exact')[0]]
    faiss, names = open_faiss(), read_videos(folder / 'index/videos-1.npz')[0].names
    other = faiss.read_index(str(folder / kind), faiss.IO_FLAG_MMAP if kind == 'IVF-Flat' else 0)
    set_reach(other, reach)
    return lambda query: [names[i] for i in other.search(query, TOP)[1][0]]


def one_query(kind: str, folder: Path, reach: int, query: np.ndarray) -> tuple:
    """Seconds to open, of the first query, and bytes of both with pages of mapped files."""
    open_faiss()
    statm = Path('/proc/self/statm')
    before, start = int(statm.read_text().split()[1]), time.perf_counter()
    find = open_as(kind, folder, reach)
    opened, start = time.perf_counter() - start, time.perf_counter()
    find(query)
    first = time.perf_counter() - start
    return opened, first, PAGESIZE * (int(statm.read_text().split()[1]) - before)


def compare(folder: Path, reach: dict[str, int], queries: dict[str, np.ndarray]) -> None:
    """Print a row for each kind of search."""
    searches = {kind: open_as(kind, folder, each) for kind, each in reach.items()}
    found = {(kind, name): [] for kind in reach for name in queries}
    taken = {(kind, name): [] for kind in reach for name in queries}
    for name, each in queries.items():
        for query in each[:, None]:
            for kind, search in searches.items():
                start = time.perf_counter()
                found[kind, name].append(search(query))
                taken[kind, name].append(time.perf_counter() - start)
    rows = []
    files = dict(exact='index/embeddings-1.npy', ours='index/ivf-1.faiss')
    for kind in reach:
        row = [kind, *(f'{1000 * statistics.median(taken[kind, n]):.2f}' for n in queries)]
        for other in ('exact', 'IVF-Flat'):
            ratios = [a / b for n in queries for a, b in zip(taken[other, n], taken[kind, n])]
            row.append(f'{statistics.median(ratios):.3g}x')
        row += [f'{recall(found[kind, n], found["exact", n]):.3f}' for n in queries]
        opened, first, held = alone(one_query, kind, folder, reach[kind], queries['videos'][:1])
        row += [f'{(folder / files.get(kind, kind)).stat().st_size / 1e6:,.0f} MB']
        rows.append([*row, f'{opened:.2f} s', f'{first:.2f} s', f'{held / 1e6:,.0f} MB'])
    columns = ['search', *(f'ms a query, {n}' for n in queries), 'exact / this', 'IVF-Flat / this']
    columns += [*(f'recall@{TOP}, {n}' for n in queries), 'on disk']
    table([*columns, 'opening', 'first query', 'memory of both'], rows)


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    print()
    for row in (header, ['---'] * len(header), *rows):
        print('| ' + ' | '.join(row) + ' |', flush=True)


def table_of_costs(what: str, rows: list[tuple[str, float, float, float]]) -> None:
    """Print what :func:`measure` gave."""
    cells = [[name, f'{s:.1f}', f'{cpu:.1f}', f'{peak:.2f} GB'] for name, s, cpu, peak in rows]
    table([what, 'seconds', 'of the processor', 'memory at most'], cells)


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
        others = ['IVF-Flat', *['HNSW'] * args.hnsw]
        made = [(kind, *alone(measure, make, kind, folder)[1:]) for kind in (*others, 'ours')]
        table_of_costs('lists or graph', made)

        data = Synthetic(args.size, args.width)
        data.draw('video', args.size % 997)  # other ones than those that were indexed
        queries = {f'{kind}s': data.draw(kind, args.queries) for kind in ('video', 'text')}
        both = np.concatenate([*queries.values()])
        wanted = search_exactly(both, read_blocks(index.embeddings), TOP)[1].tolist()
        reach = {kind: tune(kind, folder, both, wanted) for kind in others}
        print(f'\nIVF-Flat reads {reach["IVF-Flat"]} lists.')
        compare(folder, dict(exact=0, **reach, ours=0), queries)

        more = touch(folder / 'videos', range(args.size, args.size + CHANGED))
        updates.append(alone(update, folder, args.size, args.width))
        for path in more:
            path.unlink()
        updates.append(alone(update, folder, args.size, args.width))
        table_of_costs('update', updates)


if __name__ == '__main__':
    main()
