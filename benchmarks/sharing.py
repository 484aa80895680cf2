"""Weigh and time prompt sets that share one CLIP in memory.

Opens a config on a CLIP anew, and on one that is open already, with
checkpoints of fresh prompts: what matters here is their size alone.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from projects.vop.apis import VoPInferencer
from projects.vop.engine import open_config
from projects.vop.models import CLIPTowers
from projects.vop.models.clip import towers_of
from projects.vop.registry import MODELS


def size_of(tensors: Iterable[torch.Tensor]) -> float:
    """Size of tensors in memory, each storage once, in MB."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values()) / 1e6


def save_prompts(config: str, towers: CLIPTowers, path: Path) -> None:
    """Save a checkpoint of a config with fresh prompts."""
    model = MODELS.build(dict(open_config(config).model, clip=towers))
    torch.save(model.state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--configs',
        nargs='+',
        default=[
            'configs/vop_msrvtt.py',
            'configs/vop_didemo.py',
            'configs/vop_fp_activitynet.py',
            'configs/vop_c_lsmdc.py',
        ],
        help='the first is opened with the CLIP, the others on it',
    )
    parser.add_argument(
        '--clip',
        default='ViT-B-32-quickgelu',
        help='open_clip name or JSON config; its weights are random',
    )
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / 'clip.pt')
        towers = towers_of(dict(name=args.clip))
        torch.save(
            {
                **towers.visual.state_dict(prefix='visual.'),
                **towers.text.state_dict(prefix='text.'),
                'logit_scale': towers.logit_scale,
            },
            weights,
        )
        opened = []
        for config in args.configs:
            cfg = open_config(config)
            cfg.model.clip = dict(name=args.clip, pretrained=weights)
            path = Path(folder) / f'{Path(config).stem}.pth'
            save_prompts(config, towers, path)
            opened.append((Path(config).stem, cfg, str(path)))

        def seconds(call) -> float:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        (name, cfg, path), *others = opened
        first = VoPInferencer(cfg, path, show_progress=False)
        held = size_of(first.model.parameters())
        print(f'{name} on its own: {held:.1f} MB')
        print(
            '| prompts opened on the same CLIP | file | more in memory | '
            'ms | opening the CLIP anew takes |\n'
            '| --- | --- | --- | --- | --- |'
        )
        for name, cfg, path in others:
            pairs = [
                (
                    seconds(lambda: VoPInferencer(cfg, path, show_progress=False)),
                    seconds(lambda: first.share(cfg, path)),
                )
                for _ in range(args.rounds)
            ]
            both = size_of([*first.model.parameters(), *first.share(cfg, path).model.parameters()])
            alone, shared = (statistics.median(t) for t in zip(*pairs))
            print(
                f'| {name} | {Path(path).stat().st_size / 1e6:.2f} MB | '
                f'{both - held:.2f} MB | {1e3 * shared:.0f} | '
                f'{alone / shared:.0f}x as long |'
            )


if __name__ == '__main__':
    main()
