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
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from projects.vop.evaluation import DSL, QBNorm, evaluate_embeddings
from projects.vop.evaluation.scores import TILE

PLAIN_SIZE = (20000, 1000)
SIZES = ((60000, 3000), (100000, 100000))
PRODUCTS = 500  # tiles to time the product alone with


def timed(function: Callable, *args) -> float:
    """Seconds that a call takes, on a GPU until its work is done."""
    _synchronize()
    start = time.perf_counter()
    function(*args)
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def run_in_process(function: Callable, *args):
    """Call a function in a new process, whose memory is its own."""
    with multiprocessing.get_context('forkserver').Pool(1) as pool:
        return pool.apply(function, args)


def print_row(cells: Sequence[str], header: bool = False) -> None:
    """Print a row of a Markdown table, with the rule below if it is the header."""
    print('| ' + ' | '.join(cells) + ' |', flush=True)
    if header:
        print_row(['---'] * len(cells))


def embeddings(count: int, dim: int, device: str) -> Tensor:
    """Random embeddings of length 1, of shape [count x dim]."""
    x = torch.randn(count, dim, device=device)
    for part in x.split(TILE):  # in place, so that this is not the peak of memory
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
    metrics = {}
    for direction, rank in dict(t2v=t2v, v2t=v2t).items():
        metrics |= {f'{direction}/R@{k}': 100 * np.mean(rank <= k) for k in (1, 5, 10)}
        metrics |= {f'{direction}/MdR': np.median(rank), f'{direction}/MnR': np.mean(rank)}
    return metrics


def peak(device: str) -> int:
    """Bytes held at most so far."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def product_seconds(text: Tensor, video: Tensor, dtype: torch.dtype) -> float:
    """Seconds per score of the tiled matrix product alone, in one type."""
    pairs = [(t, v) for t in text.split(TILE) for v in video.split(TILE)]
    pairs = pairs[:: max(1, len(pairs) // PRODUCTS)]

    def run() -> None:
        for t, v in pairs:
            t.to(dtype) @ v.to(dtype).T

    return timed(run) / sum(len(t) * len(v) for t, v in pairs)


def prepare(args: argparse.Namespace, texts: int, videos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts, videos, and the video of each text."""
    torch.manual_seed(0)
    text = embeddings(texts, args.dim, args.device)
    video = embeddings(videos, args.dim, args.device)
    # Libraries load and threads start here, with tiles that take no memory.
    evaluate_embeddings(text[:64], video[:1], [0] * len(text[:64]), (1,), [DSL()])
    return text, video, torch.arange(texts) % videos


def memory_of(form: str, args: argparse.Namespace, texts: int, videos: int) -> int:
    """Bytes that one form takes besides the embeddings."""
    data = prepare(args, texts, videos)
    before = peak(args.device)
    dict(plain=plain, ours=evaluate_embeddings)[form](*data)
    return peak(args.device) - before


def against_plain(args: argparse.Namespace, texts: int, videos: int) -> tuple[float, float]:
    """Median ratio of seconds, and the largest difference of a metric."""
    data = prepare(args, texts, videos)
    ratios = [timed(plain, *data) / timed(evaluate_embeddings, *data) for _ in range(args.repeats)]
    ours, theirs = evaluate_embeddings(*data), plain(*data)
    return statistics.median(ratios), max(abs(ours[key] - theirs[key]) for key in theirs)


def at_scale(args: argparse.Namespace, texts: int, videos: int) -> list[list[str]]:
    """Measure a row for each form of ranking."""
    data = prepare(args, texts, videos)
    bank = QBNorm(*(embeddings(args.bank, args.dim, args.device) for _ in range(2)))
    before = peak(args.device)
    rows = []
    forms = dict(raw=[], dsl=[DSL()], qb_norm=[bank], both=[DSL(), bank])
    for form in args.forms or forms:
        products = [product_seconds(*data[:2], dtype) for dtype in (torch.float64, torch.float32)]
        taken = timed(lambda form=form: evaluate_embeddings(*data, rescoring=forms[form]))
        each = taken / (texts * videos)
        rows.append(
            [
                f'{texts:,} x {videos:,}',
                form,
                f'{taken:.1f}',
                f'{each * 1e6:.4f}',
                *(f'{each / product:.2f}x' for product in products),
                f'{(peak(args.device) - before) / 2**20:.0f} MiB',
            ]
        )
    return rows


def main() -> None:
    """Compare with the plain form, then with the matrix product alone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--texts', type=int, help='of one size alone')
    parser.add_argument('--videos', type=int, help='of one size alone')
    parser.add_argument('--dim', type=int, default=512)
    parser.add_argument('--bank', type=int, default=9000, help='training captions, and videos')
    parser.add_argument(
        '--forms', nargs='+', choices=['raw', 'dsl', 'qb_norm', 'both'], help='default: all'
    )
    parser.add_argument('--repeats', type=int, default=3)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', choices=['cpu', 'cuda'], default=device)
    args = parser.parse_args()
    if (args.texts is None) != (args.videos is None):
        parser.error('--texts and --videos go together')
    sizes = [(args.texts, args.videos)] if args.texts else SIZES
    texts, videos = (min(a, b) for a, b in zip(PLAIN_SIZE, sizes[0]))
    name = f'{platform.machine()} CPU, {torch.get_num_threads()} threads'
    if args.device == 'cuda':
        name = torch.cuda.get_device_name()
    print(
        f'{name}, torch {torch.__version__}, embeddings of {args.dim} numbers, tiles of '
        f'{TILE} x {TILE}.\n\n'
        'Plain form: all similarities, sorted by row and by column. Median of the ratios of '
        'successive runs; above 1 ours is better. It sums in float32, which decides near ties '
        'differently.\n'
    )
    columns = 'captions x videos', 'time: plain / ours', 'memory: plain / ours'
    print_row([*columns, 'largest difference of a metric'], header=True)
    ratio, difference = run_in_process(against_plain, args, texts, videos)
    memory = [run_in_process(memory_of, form, args, texts, videos) for form in ('plain', 'ours')]
    memory = f'{memory[0] / max(memory[1], 2**20):.1f}x'
    print_row([f'{texts:,} x {videos:,}', f'{ratio:.2f}x', memory, f'{difference:.0e}'])
    print(
        f'\nBoth directions; with dsl or qb_norm ({args.bank:,} captions and videos in the bank) '
        'the raw ranks, too. Memory is the peak besides the embeddings, of this row and those '
        'above.\n'
    )
    columns = ['captions x videos', 'ranking', 'seconds', 'seconds per million scores']
    columns += ['time / float64 product', 'time / float32 product', 'peak memory']
    print_row(columns, header=True)
    for size in sizes:
        for row in run_in_process(at_scale, args, *size):
            print_row(row)


if __name__ == '__main__':
    main()
