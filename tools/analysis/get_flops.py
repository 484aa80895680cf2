"""Count the operations of a video and of a caption, and the parameters, beside plain CLIP.

An operation is a multiplication with an addition, as in MMEngine's counts; those of matrix
products, attention and convolution count, which are nearly all. The model is built without
weights and computes nothing, so this takes seconds for any CLIP.
"""

import argparse
import json

import torch
from mmengine.config import Config, DictAction
from torch.utils.flop_counter import FlopCounterMode

from projects.vop.engine import merge_options, open_config
from projects.vop.engine.parameters import build_without_weights, count_by_part
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.models import ModelScopeTextEncoder, RetrievalRecognizer


def count(cfg: Config, num_frames: int | None, num_tokens: int | None) -> dict[str, int]:
    """Count what one model computes and has.

    Raises:
        UserError: If the model is not one whose operations can be counted.
    """
    model = build_without_weights(cfg)
    if not isinstance(model, RetrievalRecognizer) or isinstance(model.text, ModelScopeTextEncoder):
        raise UserError(
            'Operations are counted of a vop.RetrievalRecognizer whose text encoder is a '
            'vop.TextEncoder. tools/analysis/count_params.py counts the parameters of any model.'
        )
    frames = model.visual.num_frames if num_frames is None else num_frames
    size, clip = model.visual.backbone.image_size, model.text.backbone
    num_tokens = num_tokens or min(32, clip.context_length)
    if frames < 1:
        raise UserError(f'--num-frames must be at least 1, got {frames}.')
    if not 2 <= num_tokens <= clip.context_length:
        raise UserError(f'--num-tokens must be 2 to {clip.context_length}, got {num_tokens}.')
    # A caption whose length is known, as tensors without values do not tell it.
    tokens = torch.ones(1, clip.context_length, dtype=torch.long)
    tokens[0, num_tokens - 1] = clip.eos_id if clip.pool_type == 'eos' else clip.vocab_size - 1
    fitted = [part.to('meta') for part in model.text.fit(tokens)]
    model.text.fit = lambda _: fitted
    parts = count_by_part(model).values()
    return dict(
        frames=frames,
        video=operations(model.encode_video, torch.empty(1, frames, 3, *size, device='meta')),
        caption=operations(model.encode_text, tokens),
        trained=sum(part.trained for part in parts),
        parameters=sum(sum(part) for part in parts),
    )


def operations(encode, inputs: torch.Tensor) -> int:
    """Count the operations of a call.

    On the meta device attention and LSTMs are matrix products, which are counted; their fused
    kernels on a CPU are not.
    """
    with FlopCounterMode(display=False) as counter:
        encode(inputs)
    return counter.get_total_flops() // 2


def main() -> None:
    """Print the table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('config', help='config file, or its name')
    add('--num-frames', type=int, metavar='N', help="of a video (default: the config's)")
    add(
        '--num-tokens',
        type=int,
        metavar='N',
        help='of a caption (default: 32, if the CLIP has as many)',
    )
    add('--json', action='store_true', help='print JSON instead of a table')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args()
    cfg = open_config(args.config)
    merge_options(cfg, args.cfg_options)
    ours = count(cfg, args.num_frames, args.num_tokens)
    plain = Config(dict(model=dict(type='vop.RetrievalRecognizer', clip=cfg.model.clip)))
    rows = {'with this config': ours, 'plain CLIP': count(plain, ours['frames'], args.num_tokens)}
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f'{"":18}{"G per video":>14}{"G per caption":>16}{"trained":>14}{"parameters":>14}')
    for name, row in rows.items():
        video, caption = (f'{row[key] / 1e9:.3f}' for key in ('video', 'caption'))
        print(f'{name:18}{video:>14}{caption:>16}{row["trained"]:>14,}{row["parameters"]:>14,}')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
