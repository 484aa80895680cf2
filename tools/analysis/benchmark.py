"""Time the visual encoder against two others, in turn, in one run.

For each method: our encoder, where prompts act as keys and values alone; the
concatenating form of the same method with the same weights, as the paper
writes it and other code bases run it; and plain CLIP without prompts. Frames
are random, weights too: they do not change the time.
"""
import argparse
import copy
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Callable, Dict, List

import torch
from mmengine.config import Config
from torch import Tensor

import projects.vop  # noqa: F401
from projects.vop.models import CLIPTowers, VideoEncoder, open_towers
from projects.vop.models.tower import frame_index

METHODS = ('vop', 'vop_p', 'vop_c', 'vop_f', 'vop_fp', 'vop_fc')
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def concatenating(encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """The same encoder with its prompts concatenated to the tokens."""
    clip = encoder.backbone
    b, f = frames.shape[:2]
    x = encoder.embed(frames.flatten(0, 1)).unflatten(0, (b, f))
    for layer, block in enumerate(clip.transformer.resblocks, start=1):
        if layer == encoder.tower.frame_layers + 1:
            table = encoder.frame_positional_embedding
            x = x + table[frame_index(f, len(table))][:, None]
        prompts = torch.cat([
            tokens.expand(b, f, -1, -1)
            for tokens in encoder.prompt_tokens(layer, x[:, :, 0])
        ], dim=2)
        p = prompts.shape[2]
        if layer == 1:
            prompts = clip.ln_pre(prompts)
        if layer <= encoder.tower.frame_layers:
            x = torch.cat([x[:, :, :1], prompts, x[:, :, 1:]], dim=2)
            x = block(x.flatten(0, 1)).unflatten(0, (b, f))
            x = torch.cat([x[:, :, :1], x[:, :, 1 + p:]], dim=2)
        else:
            patches = x[:, :, 1:].flatten(1, 2)
            x = block(torch.cat([x[:, :, 0], prompts[:, 0], patches], dim=1))
            patches = x[:, f + p:].unflatten(1, (f, -1))
            x = torch.cat([x[:, :f, None], patches], dim=2)
    return clip.ln_post(x[:, :, 0]) @ clip.proj


def plain(encoder: VideoEncoder, frames: Tensor) -> Tensor:
    """CLIP alone, as open_clip runs it."""
    return encoder.backbone(frames.flatten(0, 1)).unflatten(
        0, frames.shape[:2])


def measure(forms: Dict[str, Callable[[], None]], repeats: int,
            device: str) -> Dict[str, List[float]]:
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


def peak_memory(run: Callable[[], None]) -> int:
    """Bytes that a run adds at its peak on the GPU."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def benchmark(method: str, towers: CLIPTowers,
              args: argparse.Namespace) -> None:
    """Print the ratios of one method."""
    config = Config.fromfile(CONFIGS / f'{method}_msrvtt.py').model.visual
    config.pop('type')
    encoder = VideoEncoder(copy.deepcopy(towers), **config).to(args.device)
    frames = torch.randn(
        args.batch,
        args.frames,
        3,
        *towers.visual.image_size,
        device=args.device)

    def autocast():
        return torch.autocast(
            args.device, getattr(torch, args.amp)) if args.amp else \
            nullcontext()

    with torch.no_grad():
        ours, theirs = encoder(frames), concatenating(encoder, frames)
        difference = ((ours - theirs).norm() / theirs.norm()).item()

    def forward(form: Callable) -> Callable[[], None]:

        def run() -> None:
            with torch.no_grad(), autocast():
                form(frames)

        return run

    # Plain CLIP has nothing to train: its gradient goes to the frames, which
    # takes the same pass through all layers.
    watched = frames.clone().requires_grad_()

    def backward(name: str, form: Callable) -> Callable[[], None]:

        def run() -> None:
            encoder.zero_grad()
            watched.grad = None
            with autocast():
                output = form(watched if name == 'plain' else frames)
            output.float().square().mean().backward()

        return run

    forms = dict(
        ours=encoder,
        concat=lambda x: concatenating(encoder, x),
        plain=lambda x: plain(encoder, x))
    ahead = {name: forward(form) for name, form in forms.items()}
    both = {name: backward(name, form) for name, form in forms.items()}
    fw = measure(ahead, args.repeats, args.device)
    fb = measure(both, args.repeats, args.device)

    def ratio(seconds: dict, form: str) -> str:
        ratios = [a / b for a, b in zip(seconds[form], seconds['ours'])]
        return f'{statistics.median(ratios):.2f}x'

    row = [
        method, f'{difference:.0e}',
        ratio(fw, 'concat'),
        ratio(fw, 'plain'),
        ratio(fb, 'concat'),
        ratio(fb, 'plain')
    ]
    if args.device == 'cuda':
        memory = {name: peak_memory(run) for name, run in both.items()}
        row.append(f"{memory['ours'] / memory['concat']:.2f}x")
    print('| ' + ' | '.join(row) + ' |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'methods',
        nargs='*',
        metavar='METHOD',
        help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument('--clip', default='ViT-B-32-quickgelu')
    parser.add_argument('--batch', type=int, default=2, help='videos')
    parser.add_argument('--frames', type=int, default=12)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--amp', choices=['bfloat16', 'float16'])
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    for method in args.methods:
        if method not in METHODS:
            parser.error(f"{method} is none of {', '.join(METHODS)}")
    torch.manual_seed(0)
    towers = open_towers(args.clip)
    print(f'{args.clip}, {args.batch} videos of {args.frames} frames, '
          f'{args.amp or "float32"}, {args.device}, '
          f'{torch.get_num_threads()} CPU threads, torch {torch.__version__}. '
          'Medians of the ratios of neighbouring runs; above 1 ours is '
          'faster.')
    header = [
        'method', 'difference', 'forward: concat / ours',
        'forward: plain CLIP / ours', 'forward + backward: concat / ours',
        'forward + backward: plain CLIP / ours'
    ]
    if args.device == 'cuda':
        header.append('peak training memory: ours / concat')
    print('| ' + ' | '.join(header) + ' |')
    print('| ' + ' | '.join(['---'] * len(header)) + ' |')
    for method in args.methods or METHODS:
        benchmark(method, towers, args)


if __name__ == '__main__':
    main()
