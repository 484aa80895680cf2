"""Find out whether a model sees the order of frames.

Clips are played forwards and backwards: both have the same frames. Drawn clips of a moving shape
(MovingShapes, in the picture size of the CLIP) have captions that say where it moves from and to;
with --data, the test data set of the config is played, too. How far apart are the embeddings of a
clip and its reverse, and does a caption find the right one of the two? By chance it does in half
of the cases.
"""

import argparse
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import DictAction
from torch import Tensor

from projects.vop.apis import VoPInferencer
from projects.vop.datasets.moving_shapes import draw_clip, scenes
from projects.vop.engine import check_data, fit_pixels, fit_tokenizers, merge_options, open_config
from projects.vop.errors import UserError, exit_on_user_error, log_to_stderr
from projects.vop.registry import DATASETS

SAME = 1e-5  # of numbers that differ by rounding alone
Z = 1.96  # of a 95 % interval


class Played(NamedTuple):
    """Embeddings of n clips, of their reverses and of their m captions."""

    forwards: Tensor
    backwards: Tensor
    texts: Tensor
    clip_of_text: Tensor


def draw_clips(inferencer: VoPInferencer, clips: int, seed: int) -> Iterator[tuple[Tensor, list]]:
    """Draw clips as uint8 frames [f x 3 x h x w], each with its captions."""
    rng = np.random.default_rng(seed)
    visual, both = inferencer.model.visual, scenes()
    for number in range(clips):
        scene = both[number % len(both)]
        scene = scene if rng.integers(2) else scene.reverse
        size = max(visual.backbone.image_size)
        frames = draw_clip(scene, rng, visual.num_frames, size)
        yield torch.from_numpy(frames).permute(0, 3, 1, 2), [scene.caption]


def read_clips(inferencer: VoPInferencer) -> Iterator[tuple[Tensor, Tensor]]:
    """Read the clips of the config's test data set, each with the tokens of its captions."""
    cfg = inferencer.cfg
    loader, scope = cfg.test_dataloader, cfg.get('default_scope')
    check_data(cfg, 'test')
    fit_tokenizers(loader, cfg.model.clip, scope)
    fit_pixels(loader, cfg.model.clip, scope)
    for item in DATASETS.build(loader.dataset):
        inputs = item['inputs']
        yield inputs['imgs'], torch.atleast_2d(inputs['text'])


@torch.inference_mode()
def play(inferencer: VoPInferencer, clips: Iterator, batch_size: int) -> Played:
    """Embed clips forwards and backwards, and their captions."""
    model = inferencer.model
    device = model.logit_scale.device
    videos, texts, clip_of_text = [], [], []
    batch: list[Tensor] = []

    def encode() -> None:
        both = [*batch, *(frames.flip(0) for frames in batch)]
        imgs = model.data_preprocessor(dict(inputs=dict(imgs=both)))['inputs']['imgs']
        videos.append(model.encode_video(imgs).float().cpu().unflatten(0, (2, -1)))
        batch.clear()

    for number, (frames, captions) in enumerate(clips):
        if not isinstance(captions, Tensor):
            captions = inferencer.tokenizer(captions)
        texts.append(model.encode_text(captions.to(device)).float().cpu())
        clip_of_text += [number] * len(captions)
        batch.append(frames)
        if len(batch) == batch_size:
            encode()
    if batch:
        encode()
    if not videos:
        raise UserError('The data set is empty.')
    forwards, backwards = torch.cat(videos, dim=1)
    return Played(forwards, backwards, torch.cat(texts), torch.tensor(clip_of_text))


def compare(name: str, played: Played) -> dict:
    """What --json prints of one data set."""
    forwards, backwards, texts, clip_of_text = played
    cosine = torch.cosine_similarity(forwards, backwards)
    scores = texts @ forwards.T
    own = scores[torch.arange(len(texts)), clip_of_text]
    gap = own - (texts * backwards[clip_of_text]).sum(-1)
    found = ((gap > SAME).float() + 0.5 * (gap.abs() <= SAME)).mean().item()
    spread = scores.std(1, correction=0).mean().item()  # 0 of one clip, or of clips that are alike
    return dict(
        data=name,
        clips=len(forwards),
        captions=len(texts),
        cosine=cosine.mean().item(),
        largest_difference_of_embeddings=(forwards - backwards).abs().max().item(),
        difference=gap.abs().mean().item() / spread if spread > SAME else None,
        recall=100 * found,
        # Captions of one clip are not independent.
        interval=interval(found, len(forwards)),
    )


def interval(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    middle = share + Z**2 / (2 * trials)
    reach = Z * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    whole = 1 + Z**2 / trials
    return tuple(round(100 * float(end / whole), 1) for end in (middle - reach, middle + reach))


def verdict(row: dict) -> str:
    """A sentence about a row."""
    low, high = row['interval']
    data = row['data']
    found = f'{row["recall"]:.1f} % of the captions of {data} find the right one of a clip '
    found += f'and its reverse (95 % interval {low} to {high}; chance is 50)'
    if row['largest_difference_of_embeddings'] <= SAME:
        what = f'a clip of {data} and its reverse have the same embedding'
        return f'It does not see the order of frames: {what}.'
    if low > 50:
        return f'It sees the order of frames: {found}.'
    if high < 50:
        return f'It sees the order of frames, but prefers captions of the opposite one: {found}.'
    return f'Its embeddings depend on the order of frames, but no better than chance: {found}.'


def format_rows(rows: list[dict]) -> str:
    """The table."""
    names = 'data', 'clips', 'cosine of a clip and its reverse', 'difference of scores / spread'
    names += 'R@1 between the two', '95 % interval'
    lines = [f'| {" | ".join(names)} |', f'| {" | ".join(["---"] * len(names))} |']
    for row in rows:
        low, high = row['interval']
        difference = '-' if row['difference'] is None else f'{row["difference"]:.3f}'
        lines.append(
            f'| {row["data"]} | {row["clips"]:,} | {row["cosine"]:.6f} | {difference} '
            f'| {row["recall"]:.1f} | {low} to {high} |'
        )
    return '\n'.join(lines)


def main() -> None:
    """Print sentences and a table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('config', help='config file, or its name')
    add('checkpoint', nargs='?', help='what was trained; not for a config of zero_shot')
    add('--clips', type=int, default=192, help='drawn clips (default: 192)')
    add('--data', action='store_true', help="the config's test data set, too")
    add('--batch-size', type=int, default=8)
    add('--seed', type=int, default=0, help='of the drawn clips')
    add('--json', action='store_true', help='print JSON instead of a table')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args()
    if args.clips < 1 or args.batch_size < 1:
        parser.error('--clips and --batch-size must be at least 1')
    log_to_stderr()
    cfg = open_config(args.config)
    merge_options(cfg, args.cfg_options)
    inferencer = VoPInferencer(cfg, args.checkpoint, show_progress=False)
    sources = {'MovingShapes': draw_clips(inferencer, args.clips, args.seed)}
    if args.data:
        sources['the test data'] = read_clips(inferencer)
    rows = [
        compare(name, play(inferencer, clips, args.batch_size)) for name, clips in sources.items()
    ]
    if args.json:
        print(json.dumps([dict(row, verdict=verdict(row)) for row in rows], indent=1))
        return
    print('\n'.join(map(verdict, rows)), format_rows(rows), sep='\n\n')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
