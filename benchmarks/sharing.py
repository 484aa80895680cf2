"""Weigh and time prompts that share one CLIP in memory.

Opens each config on a CLIP anew, and on one that is open already, with checkpoints of fresh
prompts: only their size matters here.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import torch
from mmengine.logging import MMLogger

from projects.vop.apis import VoPInferencer
from projects.vop.engine import open_config
from projects.vop.models.clip import towers_of
from projects.vop.registry import MODELS

NAMES = ('vop_msrvtt', 'vop_didemo', 'vop_fp_activitynet', 'vop_c_lsmdc')
CONFIGS = [f'configs/{name}.py' for name in NAMES]


def size_of(tensors: Iterable[torch.Tensor]) -> float:
    """Size of tensors in memory, each storage once, in MB."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values()) / 1e6


def main() -> None:
    """Print a table, one row per config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--configs', nargs='+', default=CONFIGS, help='the first opens the CLIP')
    parser.add_argument('--clip', default='ViT-B-32-quickgelu', help='of open_clip')
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / 'clip.pt'
        towers = towers_of(dict(name=args.clip))  # with random weights
        state = {f'visual.{k}': v for k, v in towers.visual.state_dict().items()}
        state |= {f'text.{k}': v for k, v in towers.text.state_dict().items()}
        torch.save(state | {'logit_scale': towers.logit_scale}, weights)

        def save_prompts(config: str) -> tuple:
            cfg = open_config(config)
            path = Path(folder) / f'{Path(config).stem}.pth'
            torch.save(MODELS.build(dict(cfg.model, clip=towers)).state_dict(), path)
            cfg.model.clip = dict(name=args.clip, pretrained=str(weights))
            return cfg, str(path)

        def timed(open_model, *prompts) -> tuple[float, VoPInferencer]:
            start = time.perf_counter()
            opened = open_model(*prompts)
            return 1e3 * (time.perf_counter() - start), opened

        first = VoPInferencer(*save_prompts(args.configs[0]), show_progress=False)
        ours = list(first.model.parameters())
        print(f'{args.configs[0]} on its own: {size_of(ours):.1f} MB')
        print('| prompts | file | more in memory | opened in | opening the CLIP anew |')
        print('| --- | --- | --- | --- | --- |')
        for config in args.configs[1:]:
            prompts = save_prompts(config)
            anew = median(timed(VoPInferencer, *prompts)[0] for _ in range(args.rounds))
            rounds = [timed(first.share, *prompts) for _ in range(args.rounds)]
            more = size_of([*ours, *rounds[-1][1].model.parameters()]) - size_of(ours)
            shared, size = median(ms for ms, _ in rounds), Path(prompts[1]).stat().st_size / 1e6
            print(f'| {config} | {size:.2f} MB | {more:.2f} MB | {shared:.0f} ms | {anew:.0f} ms |')


if __name__ == '__main__':
    main()
