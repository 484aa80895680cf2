"""Time the visual encoder against two other forms of it, in turn, in one run.

For each method: our encoder, where prompts act as keys and values only; the
same method with the same weights, its prompts concatenated to the tokens, as
the paper writes it and other code bases run it; and plain CLIP without prompts.
Frames and weights are random, which does not change the time.

Of what is left to gain: the floor of a training step is one forward and one
backward to the activations through plain CLIP, with all matrix products at the
rate of a large one. --memory measures peaks of memory (on Linux), not times.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import projects.vop  # noqa: F401
from projects.vop.models import CLIPTowers, VideoEncoder, open_towers
from projects.vop.models.spec import frame_index

CLIP = 'ViT-B-32-quickgelu'
METHODS = ('vop', 'vop_p', 'vop_c', 'vop_f', 'vop_fp', 'vop_fc')
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
FORMS = ('ours', 'concat', 'plain')
TIMES = ['CLIP', 'method', 'difference', 'forward: concat / ours', 'forward: plain CLIP / ours']
TIMES += ['forward + backward: concat / ours', 'forward + backward: plain CLIP / ours']
TIMES += ['operations: ours / floor', 'time: ours / floor', 'step, ms', 'videos/s']
MEMORY = ['CLIP', 'method', 'peak memory of a step, GiB', 'ours / concat', 'ours / plain CLIP']


def concatenating(encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """Embed frames ``(B, F, 3, H, W)`` with prompts concatenated to the tokens."""
    tower, cls, position = encoder.tower, int(encoder.tower.has_cls), encoder.tower.position
    b, f = frames.shape[:2]
    video_position = None if position is None else position[cls:].repeat(f, 1)
    x = tower.embed(frames.flatten(0, 1)).unflatten(0, (b, f))
    for layer, block in enumerate(tower.blocks, start=1):
        if layer == encoder.spec.frame_layers + 1:
            table = encoder.frame_positional_embedding
            x = x + table[frame_index(f, len(table), table.device)][:, None]
        prompts = encoder.prompt_tokens(layer, tower.cls(x), f)
        prompts = torch.cat([tokens.expand(b, f, -1, -1) for tokens in prompts], dim=2)
        p = prompts.shape[2]
        if layer == 1:
            prompts = tower.pre_norm(prompts)
        if layer <= encoder.spec.frame_layers:
            x = torch.cat([prompts, x], dim=2).flatten(0, 1)
            x = run(block, x, p + cls, position).unflatten(0, (b, f))[:, :, p:]
        else:
            own, patches = x[:, :, :cls].flatten(1, 2), x[:, :, cls:].flatten(1, 2)
            x = torch.cat([prompts[:, 0], own, patches], dim=1)
            x = run(block, x, p + f * cls, video_position)
            own = x[:, p : p + f * cls].unflatten(1, (f, cls))
            x = torch.cat([own, x[:, p + f * cls :].unflatten(1, (f, -1))], dim=2)
    return tower.read_out(x.flatten(0, 1)).unflatten(0, (b, f))


def run(block: nn.Module, x: Tensor, not_rotated: int, position: Tensor | None) -> Tensor:
    """Run a block of timm or open_clip as it is, the first tokens without a position."""
    if position is None:
        return block(x)
    before, block.attn.num_prefix_tokens = block.attn.num_prefix_tokens, not_rotated
    x = block(x, rope=position[-(x.shape[1] - not_rotated) :])
    block.attn.num_prefix_tokens = before
    return x


class Forms:
    """The forms of one method: ``ours``, ``concat`` and ``plain``."""

    def __init__(self, method: str, towers: CLIPTowers, args: argparse.Namespace) -> None:
        config = Config.fromfile(CONFIGS / f'{method}_msrvtt.py').model.visual
        config.pop('type')
        self.encoder = encoder = VideoEncoder(towers, **config).to(args.device)
        shape = (args.batch, args.frames, 3, *towers.visual.image_size)
        self.frames = torch.randn(shape, device=args.device)
        plain = nn.Sequential(nn.Flatten(0, 1), encoder.backbone)
        models = (encoder, partial(concatenating, encoder), plain)
        if args.compile:
            models = map(torch.compile, models)
        self.models = dict(zip(FORMS, models))
        dtype = getattr(torch, args.amp or 'bfloat16')
        self.autocast = partial(torch.autocast, args.device, dtype, enabled=args.amp is not None)

    def forward(self, name: str) -> None:
        """Run a form without gradients."""
        with torch.no_grad(), self.autocast():
            self.models[name](self.frames)

    def step(self, name: str) -> None:
        """Run a form forward and backward."""
        # Plain CLIP trains nothing: its gradient goes to the frames, through all layers.
        frames = self.frames.detach().requires_grad_(name == 'plain')
        self.encoder.zero_grad()
        with self.autocast():
            output = self.models[name](frames)
        output.float().square().mean().backward()


def measure(run: Callable, names: tuple[str, ...], repeats: int) -> dict[str, list[float]]:
    """Time ``run(name)`` for each name in turn, so that drift affects all alike."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds = {name: [] for name in names}
    for name in names * (1 + repeats):
        synchronize()
        start = time.perf_counter()
        run(name)
        synchronize()
        seconds[name].append(time.perf_counter() - start)
    return {name: each[1:] for name, each in seconds.items()}  # the first round warms up


def matmul_rate(args: argparse.Namespace) -> float:
    """Floating point operations per second of a large matrix product."""
    size = 8192 if args.device == 'cuda' else 2048
    a = torch.randn(size, size, device=args.device, dtype=getattr(torch, args.amp or 'float32'))
    seconds = measure(lambda _: a @ a, ('matmul',), args.repeats)
    return 2 * size**3 / statistics.median(seconds['matmul'])


def compare_times(clip: str, method: str, args: argparse.Namespace) -> list[str]:
    """Measure a row of the table of times."""
    forms = Forms(method, open_towers(clip), args)
    with torch.no_grad():
        ours, theirs = forms.encoder(forms.frames), concatenating(forms.encoder, forms.frames)
    difference = (ours - theirs).norm() / theirs.norm()
    forward = measure(forms.forward, FORMS, args.repeats)
    # The floor is measured before and after the steps, as machines drift.
    rates = [matmul_rate(args)]
    step = measure(forms.step, FORMS, args.repeats)
    rates.append(matmul_rate(args))
    ratios = [
        statistics.median(a / b for a, b in zip(seconds[form], seconds['ours']))
        for seconds in (forward, step)
        for form in FORMS[1:]
    ]
    with FlopCounterMode(display=False) as floor:  # it counts matrix products
        forms.encoder.backbone(forms.frames.flatten(0, 1))
    forms.models['ours'] = forms.encoder  # the counter sees nothing of a compiled one
    with FlopCounterMode(display=False) as counter:
        forms.step('ours')
    ours, flops = statistics.median(step['ours']), 2 * floor.get_total_flops()
    ratios += [counter.get_total_flops() / flops, ours * statistics.mean(rates) / flops]
    row = [clip, method, f'{difference.item():.0e}', *(f'{ratio:.2f}x' for ratio in ratios)]
    return [*row, f'{1000 * ours:.1f}', f'{args.batch / ours:.1f}']


def peak_resident() -> int:
    """Bytes of memory that this process had at its peak."""
    return 1024 * int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])


def peak_memory(clip: str, method: str, form: str, args: argparse.Namespace) -> int:
    """Bytes that a training step of one form adds at its peak."""
    forms = Forms(method, open_towers(clip), args)
    frames, forms.frames = forms.frames, forms.frames[:1, :2].clone()
    forms.step(form)  # what is allocated once does not count
    forms.frames = frames
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forms.step(form)
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak to what is held now
    before = peak_resident()
    forms.step(form)
    return peak_resident() - before


def compare_memory(clip: str, method: str, args: argparse.Namespace) -> list[str]:
    """Measure a row of the table of memory."""
    memory = []
    for form in FORMS:
        # A process of its own, as freed memory does not all return to the system.
        with ProcessPoolExecutor(1, get_context('forkserver')) as pool:
            memory.append(pool.submit(peak_memory, clip, method, form, args).result())
    ours, *others = memory
    return [clip, method, f'{ours / 2**30:.2f}', *(f'{ours / other:.2f}x' for other in others)]


def main() -> None:
    """Print a Markdown table with a row for each CLIP and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('methods', nargs='*', metavar='METHOD', help=f'of {", ".join(METHODS)} (default: all)')
    add('--clip', nargs='+', default=[CLIP], help='models of open_clip or their JSON files')
    add('--batch', type=int, default=2, help='videos')
    add('--frames', type=int, default=12)
    add('--repeats', type=int, default=7)
    add('--amp', choices=['bfloat16', 'float16'])
    add('--compile', action='store_true', help='torch.compile all forms')
    add('--memory', action='store_true', help='peak memory of a training step, not times')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    torch.manual_seed(0)
    print(
        f'{args.batch} videos of {args.frames} frames, '
        f'{args.amp or "float32"}, {args.device}, {torch.get_num_threads()} CPU threads, '
        f'torch {torch.__version__}{", compiled" if args.compile else ""}.'
    )
    header, compare = MEMORY, compare_memory
    if not args.memory:
        print('Medians of the ratios of neighbouring runs; above 1 ours is faster.')
        header, compare = TIMES, compare_times
    print(f'| {" | ".join(header)} |\n| {" | ".join(["---"] * len(header))} |')
    for clip, method in itertools.product(args.clip, args.methods or METHODS):
        print(f'| {" | ".join(compare(clip, method, args))} |', flush=True)


if __name__ == '__main__':
    main()
