"""What several test files use: a small CLIP, small models, and processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import open_clip
import torch
from mmaction.structures import ActionDataSample
from mmengine.config import Config

from projects.vop.models import open_towers
from projects.vop.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]

TINY_CLIP = dict(
    embed_dim=32,
    quick_gelu=True,
    vision_cfg=dict(image_size=32, patch_size=16, layers=3, width=64, head_width=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=48, heads=4, layers=3),
)


def save_clip(config, path, seed=0):
    """Save random weights of a CLIP, as ``model.clip.pretrained`` takes them."""
    torch.manual_seed(seed)
    towers = open_towers(str(config))
    state = {'logit_scale': towers.logit_scale}
    for name in ('visual', 'text'):
        state |= getattr(towers, name).state_dict(prefix=f'{name}.')
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return str(path)


def make_model(tiny_clip, method='vop', **kwargs):
    """Build the model of a method's config on the tiny CLIP, with 4 frames."""
    torch.manual_seed(0)
    model = Config.fromfile(ROOT / f'configs/_base_/models/{method}.py').model
    model.clip = dict(name=tiny_clip)
    model.visual.num_frames = 4
    if model.visual.get('temporal_layers'):
        model.visual.temporal_layers = 1
    return MODELS.build({**model, **kwargs})


def make_batch(videos=3, captions=1):
    """Make a batch for it; with several captions, each video has one more."""
    generator = torch.Generator().manual_seed(2)
    tokenize = open_clip.get_tokenizer('ViT-B-32')
    return dict(
        inputs=dict(
            imgs=[
                torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
                for _ in range(videos)
            ],
            text=[
                tokenize([f'caption {i} of {v}' for i in range(captions + v)])
                if captions > 1
                else tokenize(f'a caption of video {v}')[0]
                for v in range(videos)
            ],
        ),
        data_samples=[ActionDataSample() for _ in range(videos)],
    )


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def run(*command, paths=(), ok=True, **env):
    """Run a command in the checkout; return what it prints.

    ``paths`` come before PYTHONPATH, ``env`` into the environment.
    """
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(map(str, [ROOT, *paths])),
            OMP_NUM_THREADS='1',
            PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]),
            **env,
        ),
    )
    output = done.stdout + done.stderr
    if ok:
        assert done.returncode == 0, output[-3000:]
    return output
