"""Show what a data loader gives: frames with their captions, on one HTML page.

The items are the first ones of a run, in its order and with its seed: as they are cropped,
flipped, cut to their windows and sampled, and with the text that the token ids stand for. Under a
frame is its number in the video.
"""

import argparse
import base64
import os.path as osp
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import Dataset

from projects.vop.clip_config import open_tokenizer
from projects.vop.engine import (
    check_data,
    fit_pixels,
    fit_tokenizers,
    merge_options,
    open_config,
)
from projects.vop.engine.config import video_text_datasets
from projects.vop.errors import UserError, VideoReadError, exit_on_user_error, log_to_stderr
from projects.vop.fileio import check_writable, write_file
from projects.vop.registry import TRANSFORMS, is_kind
from projects.vop.report.frames import draw_strip
from projects.vop.report.page import render

# What is asked of each item to be shown, beside what the config asks for.
META_KEYS = ('video_id', 'frame_inds', 'flip')


def ask_for_more(cfg: Config, loader: dict) -> None:
    """Let the pipeline say which frames it took."""
    scope = cfg.get('default_scope', 'mmengine')
    for dataset in video_text_datasets(loader['dataset'], scope):
        for step in dataset['pipeline']:
            if is_kind(step, 'mmaction.PackActionInputs', TRANSFORMS, scope):
                step.meta_keys = (*step.get('meta_keys', ()), *META_KEYS)


def show(dataset: Dataset, index: int, tokenizer: Any) -> dict:
    """What the page shows of an item.

    Raises:
        UserError: If it is not a video with captions.
    """
    info: dict = dataset.get_data_info(index)
    name, captions = info.get('video_id') or osp.basename(info['filename']), info.get('text')
    shown: dict = dict(index=index, name=name, notes=[], captions=[])
    if captions is None:
        raise UserError('The items of this data set have no captions.')
    captions = [captions] if isinstance(captions, str) else list(captions)
    start, end = info.get('start'), info.get('end')
    if (start, end) != (None, None):
        shown['notes'].append(f'from {start or 0} s to {"its end" if end is None else f"{end} s"}')
    try:
        item = dataset[index]
    except VideoReadError as error:
        return dict(shown, error=str(error), captions=[(text, '') for text in captions])
    meta, inputs = item['data_samples'].metainfo, item['inputs']
    if meta.get('video_id', name) != name:  # as the config skips what cannot be read
        shown['notes'].append(f'skipped; in its place: {meta["video_id"]}')
        captions = [f'a caption of {meta["video_id"]}']
    frames, tokens = inputs['imgs'], torch.atleast_2d(inputs['text'])
    shown['notes'].append(f'{len(frames)} frames of {frames.shape[-1]} x {frames.shape[-2]}')
    if meta.get('flip'):
        shown['notes'].append('flipped')
    jpegs = [base64.b64encode(draw_strip(frame[None])).decode() for frame in frames]
    numbers = [int(number) for number in meta.get('frame_inds', ())]
    if len(numbers) != len(jpegs):
        numbers = [''] * len(jpegs)
    decoded = [decode(tokenizer, row.tolist()) for row in tokens]
    return dict(shown, frames=list(zip(jpegs, numbers)), captions=list(zip(captions, decoded)))


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text that token ids stand for, without those that are no words."""
    if hasattr(tokenizer, 'tokenizer'):  # of transformers
        return tokenizer.tokenizer.decode(ids, skip_special_tokens=True)
    end = ids.index(tokenizer.eot_token_id)
    return f'{end + 1} tokens: {tokenizer.decode(ids[1:end]).strip()}'


def main() -> None:
    """Write the page."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('config', help='config file, or its name')
    add('--split', choices=('train', 'val', 'test'), default='train')
    add('--number', type=int, default=20, metavar='N', help='of items (default: 20)')
    add('--out', default='work_dirs/browse.html', help='the page (default: %(default)s)')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args()
    if args.number < 1:
        parser.error('--number must be at least 1')
    check_writable(args.out)
    log_to_stderr()
    cfg = open_config(args.config)
    merge_options(cfg, args.cfg_options)
    clip, scope = cfg.model.get('clip'), cfg.get('default_scope', 'mmengine')
    if clip is None:
        raise UserError(f'{args.config} does not train a CLIP on videos with captions.')
    check_data(cfg, args.split)
    loader = cfg[f'{args.split}_dataloader']
    fit_tokenizers(loader, clip, scope)
    fit_pixels(loader, clip, scope)
    ask_for_more(cfg, loader)
    loader.update(num_workers=0, persistent_workers=False)  # items are read here, one by one
    loader.pop('prefetch_factor', None)
    seed = cfg.get('randomness', {}).get('seed') or 0
    init_default_scope(scope)
    built = Runner.build_dataloader(loader, seed=seed)
    tokenizer = open_tokenizer(clip.name, clip.get('cache_dir'))
    items = [show(built.dataset, i, tokenizer) for i in islice(built.sampler, args.number)]
    facts = {
        'Config': args.config,
        'Data set': getattr(built.dataset, 'ann_file', type(built.dataset).__name__),
        'Items': f'the first {len(items)} of {len(built.dataset):,} of {args.split}_dataloader',
    }
    write_file(
        args.out,
        render(
            'browse.html.jinja', title=f'Data of {Path(args.config).stem}', facts=facts, items=items
        ),
    )
    print(f'{len(items)} items are in {args.out}.')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
