"""Make MovingShapes: its clips, and the small CLIP that its configs prompt.

The CLIP is trained from scratch on still pictures with captions, so that it
knows colours, shapes and places but nothing of motion, as the CLIP that VoP
starts from knows pictures. What is there already is left alone.
"""

import argparse
import json
import statistics
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from projects.vop.clip_config import open_tokenizer
from projects.vop.datasets.moving_shapes import draw_still, still_captions, write_moving_shapes
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import ROOT, save_tensors, write_file
from projects.vop.models import open_towers

MODEL = ROOT / 'configs/moving_shapes/moving-shapes-clip.json'


def still_batch(pictures: list, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw one still of each kind, normalised as the configs do."""
    resize = dict(dsize=(size, size), interpolation=cv2.INTER_CUBIC)
    frames = [cv2.resize(draw_still(*picture, rng), **resize) for picture in pictures]
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (x - mean) / std


def train_clip(path: Path, steps: int, seed: int) -> bool:
    """Train the small CLIP on still pictures, and save its state dict.

    Returns:
        bool: False, and nothing is saved, if it has not learned the stills;
        sometimes training does not leave its first plateau.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = open_clip.CustomTextCLIP(**json.loads(MODEL.read_text()))
    pictures, captions = zip(*still_captions())
    tokens = open_tokenizer(str(MODEL))(list(captions))
    # Captions are short, and the text tower is causal: what comes after the
    # longest one need not be computed.
    length = int(tokens.argmax(-1).max()) + 1
    tokens = tokens[:, :length]
    model.text.attn_mask = model.text.attn_mask[:length, :length]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1
    )
    loss_of, found = open_clip.ClipLoss(), []
    for step in range(1, steps + 1):
        images = still_batch(pictures, model.visual.image_size[0], rng)
        image, text, scale = model(images, tokens)
        loss = loss_of(image, text, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = (image @ text.T).argmax(-1) == torch.arange(len(image))
        found.append(100 * right.float().mean().item())
        if step % 50 == 0:
            print(
                f'step {step}/{steps}: loss {loss.item():.3f}, '
                f'{found[-1]:.0f} % of the stills find their caption'
            )
    if statistics.mean(found[-10:]) < 90:
        return False
    save_tensors(path, model.state_dict())
    return True


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('root', nargs='?', default='data/moving_shapes')
    add('--clip-steps', type=int, default=200, help='training steps of the small CLIP')
    add('--seed', type=int, default=0)
    args = parser.parse_args()
    write_moving_shapes(args.root, seed=args.seed)
    path, done = Path(args.root, 'clip.pt'), Path(args.root, 'clip_settings.json')
    settings = dict(steps=args.clip_steps, seed=args.seed)
    if not (path.is_file() and done.is_file() and json.loads(done.read_text()) == settings):
        seeds = range(args.seed, args.seed + 3)
        if not any(train_clip(path, args.clip_steps, seed) for seed in seeds):
            raise UserError(
                'The small CLIP does not learn the stills; train it longer (--clip-steps).'
            )
        write_file(done, json.dumps(settings))
    open_towers(str(MODEL), str(path))
    print(f'MovingShapes is in {args.root}.')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
