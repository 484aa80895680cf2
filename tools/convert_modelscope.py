"""Make a checkpoint of the authors' one released model.

It is damo/cv_vit-b32_retrieval_vop of ModelScope, whose file is
VoP_msrvtt9k.pth. This makes a checkpoint for tools/test.py of it:

  tools/convert_modelscope.py VoP_msrvtt9k.pth vop_released.pth

The file holds its CLIP, a checkpoint of ours only a fingerprint of it.
Everything is checked before anything is written.
"""

import argparse
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.registry import init_default_scope
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import QuickGELU
from torch import Tensor

from projects.vop.engine import load_safely, merge_options, open_config
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import check_writable, save_tensors
from projects.vop.models import (
    LearnedPrompt,
    ModelScopeTextEncoder,
    RetrievalDataPreprocessor,
    RetrievalRecognizer,
    VideoEncoder,
)
from projects.vop.registry import MODELS

VISUAL = 'visual_prompt_learner.visual_prompts'
TEXT = 'text_prompt_learner.text_prompts'
KINDS = [VideoEncoder, ModelScopeTextEncoder, *3 * [LearnedPrompt]]
TRAINED = {'visual.prompts.0.tokens', 'text.prompts.0.tokens', 'text.prompts.1.tokens'}


def layout(model: RetrievalRecognizer) -> dict[str, Tensor]:
    """A model's weights by the names of ModelScope's file.

    All but the text prompts share memory with the model.
    """
    weights = {'clip.logit_scale': model.logit_scale}
    for encoder, *prefixes in (
        (model.visual, 'clip.visual.', 'image_encoder.'),
        (model.text, 'clip.', 'text_encoder.'),
    ):
        for name, value in encoder.backbone.state_dict().items():
            weights.update({prefix + name: value for prefix in prefixes})
    weights[VISUAL] = model.visual.prompts[0].tokens.detach()[:, None]
    weights[TEXT] = torch.cat([prompt.tokens.detach() for prompt in model.text.prompts], dim=1)
    return weights


def names(keys: set) -> str:
    """Some of the keys, for a message."""
    return ', '.join(sorted(keys)[:4]) + (', ...' if len(keys) > 4 else '')


def check_config(model: RetrievalRecognizer, config: str) -> None:
    """Refuse a model that would compute something else with the weights of the file.

    Raises:
        UserError: The message says in what it differs.
    """
    visual, text = model.visual, model.text
    kinds = [type(module) for module in (visual, text, *visual.prompts, *text.prompts)]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    blocks = [b for e in (visual, text) for b in e.backbone.transformer.resblocks]
    pixels = RetrievalDataPreprocessor(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    ours = model.data_preprocessor
    for holds, reason in (
        (kinds == KINDS, f'it is made of {", ".join(kind.__name__ for kind in kinds)}'),
        (trained == TRAINED, f'it does not train just the prompts: {names(trained ^ TRAINED)}'),
        (not model.normalize_video, 'it has normalize_video=True'),
        (all(type(b.mlp.gelu) is QuickGELU for b in blocks), 'its CLIP is not a -quickgelu model'),
        (all(b.attn.head_dim == 64 for b in blocks), 'the heads of its CLIP are not 64 wide'),
        (text.backbone.pool_type == 'argmax', 'its CLIP does not read a text at its highest id'),
        (
            ours.mean.equal(pixels.mean) and ours.std.equal(pixels.std),
            "its frames are not normalised with OpenAI's mean and deviation",
        ),
    ):
        if not holds:
            raise UserError(
                f"{config} is not a config of ModelScope's model: {reason}. "
                'Start from configs/vop_msrvtt_released.py.'
            )


def read_modelscope(file: Path, ours: dict[str, Tensor], config: str) -> dict[str, Tensor]:
    """Open ModelScope's file, and hold it against our :func:`layout` of a config.

    Returns:
        dict[str, Tensor]: Its weights, without the prefix ``module.``.

    Raises:
        UserError: If it is another file; the message names the key.
    """
    checkpoint = load_safely(str(file), map_location='cpu')
    raw = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    hint = 'Is it VoP_msrvtt9k.pth of damo/cv_vit-b32_retrieval_vop?'
    if not isinstance(raw, dict):
        raise UserError(f"{file} has no 'state_dict'. {hint}")
    state = {str(key).removeprefix('module.'): raw[key] for key in raw}
    if len(state) < len(raw):
        raise UserError(f"{file} has keys twice, with and without the prefix 'module.'.")
    lacks, extra = ours.keys() - state.keys(), state.keys() - ours.keys()
    if lacks or extra:
        what = f'lacks {names(lacks)}' if lacks else f'also has {names(extra)}'
        raise UserError(
            f'{file} {what} ({len(lacks or extra)} in total), against the model of {config}. '
            f'{hint} Another CLIP is set with --cfg-options model.clip.name=NAME.'
        )
    for key, value in state.items():
        dtype = getattr(value, 'dtype', type(value))
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise UserError(f'{key} in {file} holds {dtype}, not 16- or 32-bit floating point.')
        if value.shape != ours[key].shape:
            raise UserError(
                f'{key} is {list(value.shape)} in {file}, but {list(ours[key].shape)} in the '
                f'model of {config}. Set the lengths of its prompts in a copy of this config '
                '(--config), or its CLIP with --cfg-options model.clip.name=NAME.'
            )
        if not value.isfinite().all():
            raise UserError(f'{key} in {file} is not finite. The file is damaged; get it again.')
    for copy, clip in (('image_encoder.', 'clip.visual.'), ('text_encoder.', 'clip.')):
        for key in state:
            other = clip + key.removeprefix(copy)
            if key.startswith(copy) and not state[key].float().equal(state[other].float()):
                raise UserError(
                    f'{key} and {other} differ in {file}, so it is unclear which CLIP its '
                    'prompts were trained on. Save the model again with one CLIP for both.'
                )
    return state


def parse_args() -> argparse.Namespace:
    """The command line; its files have different names."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('source', type=Path, help='file to read')
    parser.add_argument('out', type=Path, help='file to write')
    clip_out = 'also write the CLIP of the file, for model.clip.pretrained=FILE'
    parser.add_argument('--clip-out', type=Path, metavar='FILE', help=clip_out)
    config = 'config of the model (default: %(default)s)'
    parser.add_argument('--config', default='configs/vop_msrvtt_released.py', help=config)
    options = dict(nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    parser.add_argument('--cfg-options', **options, help='change it, such as model.clip.name=NAME')
    args = parser.parse_args()
    files = [file for file in (args.source, args.out, args.clip_out) if file]
    if len({file.resolve() for file in files}) < len(files):
        parser.error('the files must have different names')
    return args


def main() -> None:
    """Read the file into our model, and save its state."""
    args = parse_args()
    for path in filter(None, (args.out, args.clip_out)):
        check_writable(path)
    cfg = open_config(args.config)
    merge_options(cfg, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmaction'))
    cfg.model.clip.load_weights = False  # they come from the file
    model = MODELS.build(cfg.model)
    check_config(model, args.config)
    ours = layout(model)
    state = read_modelscope(args.source, ours, args.config)
    lengths = [prompt.length for prompt in model.text.prompts]
    with torch.no_grad():
        for key, value in ours.items():
            value.copy_(state[key])
        for prompt, tokens in zip(model.text.prompts, state[TEXT].split(lengths, dim=1)):
            prompt.tokens.copy_(tokens)
    for encoder in (model.visual, model.text):
        encoder.clip_name = f'of {args.source.name}'
    print(
        f'{args.source}: {sum(state[key].numel() for key in (VISUAL, TEXT)):,} trained parameters\n'
        f'  {VISUAL} {list(state[VISUAL].shape)}\n'
        f'  {TEXT} {list(state[TEXT].shape)}, {lengths[0]} before the words and {lengths[1]} after'
    )
    command = f'python tools/test.py {args.config} {args.out}'
    needs = "\nThis needs OpenAI's weights of the CLIP; --clip-out writes those in the file."
    if args.clip_out:
        clip = {k.removeprefix('clip.'): v for k, v in ours.items() if k.startswith('clip.')}
        save_tensors(args.clip_out, clip)
        command, needs = f'{command} --cfg-options model.clip.pretrained={args.clip_out}', ''
    meta = dict(converted_from=args.source.name)
    save_tensors(args.out, dict(meta=meta, state_dict=model.state_dict()))
    print(f'Test it with\n  {command}{needs}')


if __name__ == '__main__':
    with exit_on_user_error():
        main()
