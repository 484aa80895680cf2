"""Time the visual encoder against two others, in turn, in one run.

For each method: our encoder, where prompts act as keys and values alone; the
concatenating form of the same method with the same weights, as the paper
writes it and other code bases run it; and plain CLIP without prompts. Frames
are random, weights too: they do not change the time.

The last columns say what is left to gain. The floor of a training step is one
forward and one backward to the activations through plain CLIP, every
multiplication of them at the rate of a large matrix product. With --memory,
the peak memory of a training step is measured instead of times, on a CPU in a
process of its own for each form.
"""

import argparse
import copy
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import projects.vop  # noqa: F401
from projects.vop.models import CLIPTowers, VideoEncoder, open_towers
from projects.vop.models.spec import frame_index

METHODS = ('vop', 'vop_p', 'vop_c', 'vop_f', 'vop_fp', 'vop_fc')
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def concatenating(encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """The same encoder with its prompts concatenated to the tokens."""
    clip = encoder.backbone
    b, f = frames.shape[:2]
    x = encoder.embed(frames.flatten(0, 1)).unflatten(0, (b, f))
    for layer, block in enumerate(clip.transformer.resblocks, start=1):
        if layer == encoder.spec.frame_layers + 1:
            table = encoder.frame_positional_embedding
            x = x + table[frame_index(f, len(table))][:, None]
        prompts = torch.cat(
            [tokens.expand(b, f, -1, -1) for tokens in encoder.prompt_tokens(layer, x[:, :, 0], f)],
            dim=2,
        )
        p = prompts.shape[2]
        if layer == 1:
            prompts = clip.ln_pre(prompts)
        if layer <= encoder.spec.frame_layers:
            x = torch.cat([x[:, :, :1], prompts, x[:, :, 1:]], dim=2)
            x = block(x.flatten(0, 1)).unflatten(0, (b, f))
            x = torch.cat([x[:, :, :1], x[:, :, 1 + p :]], dim=2)
        else:
            patches = x[:, :, 1:].flatten(1, 2)
            x = block(torch.cat([x[:, :, 0], prompts[:, 0], patches], dim=1))
            patches = x[:, f + p :].unflatten(1, (f, -1))
            x = torch.cat([x[:, :f, None], patches], dim=2)
    return clip.ln_post(x[:, :, 0]) @ clip.proj


def plain(encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """CLIP alone, as open_clip runs it."""
    return encoder.backbone(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def measure(
    forms: dict[str, Callable[[], None]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each form, run in turn so that drift hits all alike."""
    seconds = {name: [] for name in forms}
    for repeat in range(-1, repeats):  # the first round warms up
        for name, run in forms.items():
            if device == 'cuda':
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device == 'cuda':
                torch.cuda.synchronize()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def count_flops(run: Callable[[], None]) -> int:
    """Multiplications and additions of the matrix products of a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(run: Callable[[], None], device: str) -> int:
    """Bytes that a run adds at its peak."""
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5')  # the peak is now from here
    before = resident('VmRSS')
    run()
    return resident('VmHWM') - before


def resident(key: str) -> int:
    """Bytes of memory of this process, ``VmRSS`` now or ``VmHWM`` at most."""
    status = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(rf'{key}:\s+(\d+) kB', status)[1])


class Forms:
    """The forms of one method, as functions without arguments.

    Attributes:
        forward (dict[str, Callable]): Without gradients.
        step (dict[str, Callable]): Forward and backward.
    """

    def __init__(self, method: str, towers: CLIPTowers, args: argparse.Namespace) -> None:
        config = Config.fromfile(CONFIGS / f'{method}_msrvtt.py').model.visual
        config.pop('type')
        encoder = VideoEncoder(copy.deepcopy(towers), **config).to(args.device)
        self.encoder = encoder
        self.frames = torch.randn(
            args.batch, args.frames, 3, *towers.visual.image_size, device=args.device
        )
        self.functions = dict(
            ours=encoder, concat=partial(concatenating, encoder), plain=partial(plain, encoder)
        )
        if args.compile:
            self.functions = {name: torch.compile(form) for name, form in self.functions.items()}
        self.autocast = partial(
            torch.autocast,
            args.device,
            getattr(torch, args.amp or 'bfloat16'),
            enabled=args.amp is not None,
        )
        self.forward = {
            name: partial(self.run_forward, form) for name, form in self.functions.items()
        }
        self.step = {
            name: partial(self.run_step, form, name == 'plain')
            for name, form in self.functions.items()
        }

    def run_forward(self, form: Callable) -> None:
        with torch.no_grad(), self.autocast():
            form(self.frames)

    def run_step(self, form: Callable, to_frames: bool = False) -> None:
        # Plain CLIP has nothing to train: its gradient goes to the frames,
        # which takes the same pass through all layers.
        frames = self.frames.detach().requires_grad_(to_frames)
        self.encoder.zero_grad()
        with self.autocast():
            output = form(frames)
        output.float().square().mean().backward()

    def difference(self) -> float:
        """Of ours from the concatenating form, relative to its norm."""
        with torch.no_grad():
            ours = self.encoder(self.frames)
            theirs = concatenating(self.encoder, self.frames)
        return ((ours - theirs).norm() / theirs.norm()).item()


def matmul_rate(args: argparse.Namespace) -> float:
    """Floating point operations a second of a large matrix product."""
    size = 8192 if args.device == 'cuda' else 2048
    dtype = getattr(torch, args.amp or 'float32')
    a = torch.randn(size, size, device=args.device, dtype=dtype)
    seconds = measure(dict(matmul=lambda: a @ a), args.repeats, args.device)['matmul']
    return 2 * size**3 / statistics.median(seconds)


def compare_times(method: str, towers: CLIPTowers, args: argparse.Namespace) -> list[str]:
    """The row of a method: ratios of times."""
    forms = Forms(method, towers, args)
    difference = forms.difference()
    forward = measure(forms.forward, args.repeats, args.device)
    # The floor is measured between the steps, lest drift part them.
    rates = [matmul_rate(args)]
    step = measure(forms.step, args.repeats, args.device)
    rates.append(matmul_rate(args))

    def ratio(seconds: dict[str, list[float]], form: str) -> str:
        ratios = [a / b for a, b in zip(seconds[form], seconds['ours'])]
        return f'{statistics.median(ratios):.2f}x'

    floor_flops = 2 * count_flops(lambda: plain(forms.encoder, forms.frames))
    flops = count_flops(lambda: forms.run_step(forms.encoder))
    floor = floor_flops / statistics.mean(rates)
    ours = statistics.median(step['ours'])
    row = [
        method,
        f'{difference:.0e}',
        ratio(forward, 'concat'),
        ratio(forward, 'plain'),
        ratio(step, 'concat'),
        ratio(step, 'plain'),
        f'{flops / floor_flops:.2f}x',
        f'{ours / floor:.2f}x',
    ]
    if args.device == 'cuda':
        row += [f'{1000 * ours:.1f}', f'{args.batch / ours:.0f}']
    return row


def memory_of(method: str, form: str, args: argparse.Namespace) -> int:
    """Peak memory of a training step of one form, in bytes."""
    forms = Forms(method, open_towers(args.clip), args)
    whole, forms.frames = forms.frames, forms.frames[:1, :2].clone()
    forms.step[form]()  # what is made once does not count
    forms.frames = whole
    return peak_memory(forms.step[form], args.device)


def compare_memory(method: str, args: argparse.Namespace) -> list[str]:
    """The row of a method: peak memory, and its ratios."""
    memory = {}
    for form in ('ours', 'concat', 'plain'):
        # A process of its own, as freed memory does not all go back.
        with ProcessPoolExecutor(1, get_context('spawn')) as pool:
            memory[form] = pool.submit(memory_of, method, form, args).result()
    return [
        method,
        f'{memory["ours"] / 2**30:.2f}',
        f'{memory["ours"] / memory["concat"]:.2f}x',
        f'{memory["ours"] / memory["plain"]:.2f}x',
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'methods', nargs='*', metavar='METHOD', help=f'of {", ".join(METHODS)} (default: all)'
    )
    parser.add_argument('--clip', default='ViT-B-32-quickgelu')
    parser.add_argument('--batch', type=int, default=2, help='videos')
    parser.add_argument('--frames', type=int, default=12)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--amp', choices=['bfloat16', 'float16'])
    parser.add_argument('--compile', action='store_true', help='torch.compile all forms')
    parser.add_argument(
        '--memory',
        action='store_true',
        help='measure the peak memory of a training step, not times',
    )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    args = parser.parse_args()
    for method in args.methods:
        if method not in METHODS:
            parser.error(f'{method} is none of {", ".join(METHODS)}')
    torch.manual_seed(0)
    print(
        f'{args.clip}, {args.batch} videos of {args.frames} frames, '
        f'{args.amp or "float32"}, {args.device}, '
        f'{torch.get_num_threads()} CPU threads, torch {torch.__version__}'
        f'{", compiled" if args.compile else ""}.'
    )
    if args.memory:
        header = ['method', 'peak memory of a step, GiB', 'ours / concat', 'ours / plain CLIP']
        compare = compare_memory
    else:
        print('Medians of the ratios of neighbouring runs; above 1 ours is faster.')
        header = [
            'method',
            'difference',
            'forward: concat / ours',
            'forward: plain CLIP / ours',
            'forward + backward: concat / ours',
            'forward + backward: plain CLIP / ours',
            'operations: ours / floor',
            'time: ours / floor',
        ]
        if args.device == 'cuda':
            header += ['step, ms', 'videos/s']
        compare = partial(compare_times, towers=open_towers(args.clip))
    print('| ' + ' | '.join(header) + ' |')
    print('| ' + ' | '.join(['---'] * len(header)) + ' |')
    for method in args.methods or METHODS:
        row = compare(method, args=args)
        print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
    main()
