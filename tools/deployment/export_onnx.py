"""Write the video and the text encoder of a model as ONNX files, which run without torch.

OUT gets video.onnx and text.onnx, tokenizer.json, and encoders.json, which says what they take.
Each file is compared with torch.
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction

from projects.vop.apis import VoPInferencer, export_onnx
from projects.vop.engine import merge_options, open_config
from projects.vop.errors import exit_on_user_error


def main() -> None:
    """Write the folder."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add('config', help='config file, or its name; or a folder that `vop export` has written')
    add('checkpoint', help='of that config, or such a folder; none for the model as it is made')
    add('out', type=Path, help='folder to write')
    add('--int8', action='store_true', help='also write both with weights of 8 bits')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args()
    cfg = open_config(args.config)
    merge_options(cfg, args.cfg_options)
    checkpoint = None if args.checkpoint == 'none' else args.checkpoint
    inferencer = VoPInferencer(cfg, checkpoint, 'cpu', show_progress=False)
    about = export_onnx(inferencer, args.out, args.int8)
    frames = about['video']['shape'][1]
    for kind, of in (('video', f'a video of {frames} frames'), ('text', 'the longest text')):
        found = about[kind]
        print(
            f'{kind}.onnx: it differs from torch by {found["difference"]:.0e}; '
            f'{found["operations"] / 1e9:.2f} billion operations for {of}, '
            f'{found["alone"] / 1e9:.2f} by the CLIP alone.'
        )
        if args.int8:
            print(f'{kind}_int8.onnx: the least cosine with torch is {found["cosine"]:.4f}.')
    if about['text']['tokenizer'] is None:
        print('The tokenizer of this CLIP needs torch: texts are to be given as token ids.')
    print(f'{args.out} holds the encoders.')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
