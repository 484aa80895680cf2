"""Time the ranking of random embeddings, and measure its memory.

First against the plain form, which holds all similarities and sorts each row
and each column, as CLIP4Clip's metrics do; both are run in turn. Then at
sizes where that does not fit, against the matrix product alone, in the same
tiles. Each size has a process of its own, whose memory is measured.
"""

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from projects.vop.evaluation import DSL, QBNorm, evaluate_embeddings
from projects.vop.evaluation.scores import TILE

PLAIN_SIZE = (20000, 1000)
SIZES = ((60000, 3000), (100000, 100000))
PRODUCTS = 500  # tiles to time the product alone with


def embeddings(count: int, dim: int, device: str) -> Tensor:
    x = torch.randn(count, dim, device=device)
    for part in x.split(TILE):  # in place, lest this be the peak of memory
        part.div_(part.norm(dim=1, keepdim=True))
    return x


def plain(text: Tensor, video: Tensor, video_of_text: Tensor) -> dict[str, float]:
    """All similarities, sorted by row and by column; ties as they come."""
    similarity = (text @ video.T).cpu().numpy()
    video_of_text = video_of_text.numpy()
    order = np.argsort(-similarity, axis=1)
    t2v = 1 + np.argmax(order == video_of_text[:, None], axis=1)
    order = np.argsort(-similarity.T, axis=1)
    right = video_of_text[order] == np.arange(len(video))[:, None]
    v2t = 1 + np.argmax(right, axis=1)[right.any(axis=1)]
    return {
        f'{direction}/{name}': value
        for direction, rank in dict(t2v=t2v, v2t=v2t).items()
        for name, value in {
            **{f'R@{k}': 100 * np.mean(rank <= k) for k in (1, 5, 10)},
            'MdR': np.median(rank),
            'MnR': np.mean(rank),
        }.items()
    }


def seconds(run: Callable, device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(device: str) -> int:
    """Bytes held at most so far."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def product_seconds(text: Tensor, video: Tensor, dtype: torch.dtype, device: str) -> float:
    """Seconds a score of the tiled matrix product alone, in one type."""
    pairs = [(t, v) for t in text.split(TILE) for v in video.split(TILE)]
    pairs = pairs[:: max(1, len(pairs) // PRODUCTS)]

    def run() -> None:
        for t, v in pairs:
            t.to(dtype) @ v.to(dtype).T

    return seconds(run, device) / sum(len(t) * len(v) for t, v in pairs)


def prepare(args: argparse.Namespace, texts: int, videos: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    text = embeddings(texts, args.dim, args.device)
    video = embeddings(videos, args.dim, args.device)
    # Libraries load and threads start here, with tiles that take no memory.
    evaluate_embeddings(text[:64], video[:1], [0] * len(text[:64]), (1,), [DSL()])
    return text, video, torch.arange(texts) % videos


def memory_of(form: str, args: argparse.Namespace, texts: int, videos: int) -> int:
    """Bytes that one form takes beside the embeddings."""
    data = prepare(args, texts, videos)
    before = peak(args.device)
    dict(plain=plain, ours=evaluate_embeddings)[form](*data)
    return peak(args.device) - before


def against_plain(args: argparse.Namespace, texts: int, videos: int) -> tuple[float, float]:
    """Median ratio of seconds, and the largest difference of a metric."""
    data = prepare(args, texts, videos)
    ratios = []
    for _ in range(args.repeats):
        theirs = seconds(lambda: plain(*data), args.device)
        ratios.append(theirs / seconds(lambda: evaluate_embeddings(*data), args.device))
    ours, theirs = evaluate_embeddings(*data), plain(*data)
    return statistics.median(ratios), max(abs(ours[key] - theirs[key]) for key in theirs)


def at_scale(args: argparse.Namespace, texts: int, videos: int) -> None:
    """Print a row for each form of ranking."""
    data = prepare(args, texts, videos)
    bank = QBNorm(*(embeddings(args.bank, args.dim, args.device) for _ in range(2)))
    before = peak(args.device)
    for form, rescoring in dict(raw=[], dsl=[DSL()], qb_norm=[bank], both=[DSL(), bank]).items():
        if args.forms and form not in args.forms:
            continue
        products = [
            product_seconds(data[0], data[1], dtype, args.device)
            for dtype in (torch.float64, torch.float32)
        ]
        taken = seconds(lambda: evaluate_embeddings(*data, rescoring=rescoring), args.device)
        memory = (peak(args.device) - before) / 2**20
        scores = texts * videos
        row(
            [
                f'{texts:,} x {videos:,}',
                form,
                f'{taken:.1f}',
                f'{taken / scores * 1e6:.4f}',
                *(f'{taken / scores / product:.2f}x' for product in products),
                f'{memory:.0f} MiB',
            ]
        )


def row(cells: list) -> None:
    print('| ' + ' | '.join(cells) + ' |', flush=True)


def header(cells: list) -> None:
    row(cells)
    row(['---'] * len(cells))


def alone(function: Callable, *args):
    """Call a function in a process of its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, args)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--texts', type=int, help='of one size alone')
    parser.add_argument('--videos', type=int, help='of one size alone')
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument(
        '--bank', type=int, default=9000, help='training captions, and as many training videos'
    )
    parser.add_argument(
        '--forms',
        nargs='+',
        choices=['raw', 'dsl', 'qb_norm', 'both'],
        help='which rankings to run at scale (default: all)',
    )
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    args = parser.parse_args()
    if (args.texts is None) != (args.videos is None):
        parser.error('--texts and --videos go together')
    sizes = [(args.texts, args.videos)] if args.texts else SIZES
    texts, videos = (min(a, b) for a, b in zip(PLAIN_SIZE, sizes[0]))
    name = (
        torch.cuda.get_device_name()
        if args.device == 'cuda'
        else f'{platform.machine()} CPU, {torch.get_num_threads()} threads'
    )
    print(
        f'{name}, torch {torch.__version__}, {args.dim} numbers an '
        f'embedding, tiles of {TILE} x {TILE}.\n'
    )
    print(
        'Plain form: all similarities, sorted by row and by column. Median '
        'of the ratios of neighbouring runs; above 1 ours is better. It '
        'sums in float32, which decides near ties otherwise.\n'
    )
    header(
        [
            'captions x videos',
            'time: plain / ours',
            'memory: plain / ours',
            'largest difference of a metric',
        ]
    )
    ratio, difference = alone(against_plain, args, texts, videos)
    memory = {form: alone(memory_of, form, args, texts, videos) for form in ('plain', 'ours')}
    row(
        [
            f'{texts:,} x {videos:,}',
            f'{ratio:.2f}x',
            f'{memory["plain"] / max(memory["ours"], 2**20):.1f}x',
            f'{difference:.0e}',
        ]
    )
    print(
        f'\nBoth directions; with dsl or qb_norm ({args.bank:,} captions '
        f'and videos in the bank) the raw ranks, too. Memory is the peak '
        'beside the embeddings, of this row and those above.\n'
    )
    header(
        [
            'captions x videos',
            'ranking',
            'seconds',
            'seconds a million scores',
            'time / float64 product',
            'time / float32 product',
            'peak memory',
        ]
    )
    for size in sizes:
        alone(at_scale, args, *size)


if __name__ == '__main__':
    main()
