"""Make a checkpoint of the authors' released model, or one of that kind.

Their one model, damo/cv_vit-b32_retrieval_vop of ModelScope, is a file
VoP_msrvtt9k.pth. This makes a checkpoint for tools/test.py of it:

  tools/convert_modelscope.py VoP_msrvtt9k.pth vop_released.pth

and, with --reverse, such a file of a checkpoint that was trained here:

  tools/convert_modelscope.py --reverse epoch_5.pth VoP_msrvtt9k.pth

The released file holds its CLIP, a checkpoint of ours only a fingerprint of
it. Everything is checked before anything is written.
"""

import argparse
import os
import re
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import QuickGELU
from torch import Tensor

from projects.vop.engine import check_fit, load_safely, open_config
from projects.vop.models import (
    LearnedPrompt,
    ModelScopeTextEncoder,
    RetrievalDataPreprocessor,
    RetrievalRecognizer,
    VideoEncoder,
)
from projects.vop.models.encoder import weights_fingerprint
from projects.vop.registry import MODELS

VISUAL = 'visual_prompt_learner.visual_prompts'
TEXT = 'text_prompt_learner.text_prompts'
# The names in OpenAI's towers, with 0 for the number of a layer.
BLOCK = {
    f'transformer.resblocks.0.{name}' for name in ('attn.in_proj_weight', 'attn.in_proj_bias')
} | {
    f'transformer.resblocks.0.{module}.{kind}'
    for module in ('ln_1', 'attn.out_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj')
    for kind in ('weight', 'bias')
}
OPENAI = dict(
    visual=BLOCK
    | {
        'class_embedding',
        'positional_embedding',
        'proj',
        'conv1.weight',
        'ln_pre.weight',
        'ln_pre.bias',
        'ln_post.weight',
        'ln_post.bias',
    },
    text=BLOCK
    | {
        'token_embedding.weight',
        'positional_embedding',
        'text_projection',
        'ln_final.weight',
        'ln_final.bias',
    },
)
TRAINED = {'visual.prompts.0.tokens', 'text.prompts.0.tokens', 'text.prompts.1.tokens'}


class BadInput(Exception):
    """What was given cannot be converted; the message says why."""


def layout(model: RetrievalRecognizer) -> dict[str, Tensor]:
    """A model's weights as the released file holds them.

    Returns:
        dict[str, Tensor]: By the names of the released file. All but the text
        prompts share memory with the model.
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
    """Refuse a model that the released code cannot compute.

    Raises:
        BadInput: The message says what it has that the released code has not.
    """
    visual, text = model.visual, model.text
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    towers = {name: getattr(model, name).backbone for name in ('visual', 'text')}
    strange = {
        f'{name}.backbone.{key}'
        for name, tower in towers.items()
        for key in OPENAI[name]
        ^ {re.sub(r'(?<=resblocks\.)\d+', '0', key) for key in tower.state_dict()}
    }
    blocks = [b for t in towers.values() for b in t.transformer.resblocks]
    pixels = RetrievalDataPreprocessor(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    for holds, reason in (
        (
            type(text) is ModelScopeTextEncoder,
            f'its text encoder is {type(text).__name__}, not '
            'ModelScopeTextEncoder with a prefix and a suffix',
        ),
        (
            type(visual) is VideoEncoder,
            f'its visual encoder is {type(visual).__name__}, not VideoEncoder',
        ),
        (not model.normalize_video, 'it has normalize_video=True'),
        (
            [(type(p), p.first, p.last) for p in visual.prompts]
            == [(LearnedPrompt, 1, visual.spec.layers)],
            'its visual prompts are not one LearnedPrompt in every layer',
        ),
        (
            {type(p) for p in text.prompts} == {LearnedPrompt},
            'its text prompts are not LearnedPrompt',
        ),
        (
            trained == TRAINED,
            f'it trains not just the prompts, but also {names(trained - TRAINED)}',
        ),
        (not strange, f"its CLIP is not built as OpenAI's, which differs in {names(strange)}"),
        (
            all(type(b.mlp.gelu) is QuickGELU for b in blocks),
            "its CLIP has no QuickGELU; open_clip's models of OpenAI's have it "
            "with '-quickgelu' behind their name",
        ),
        (
            all(b.attn.head_dim == 64 for b in blocks),
            'the attention heads of its CLIP are not 64 wide',
        ),
        (
            towers['text'].context_length == 77 and towers['text'].pool_type == 'argmax',
            'its CLIP does not read captions of 77 tokens, at the highest id',
        ),
        (
            torch.equal(model.data_preprocessor.mean, pixels.mean)
            and torch.equal(model.data_preprocessor.std, pixels.std),
            "its frames are not normalised with OpenAI's mean and deviation",
        ),
    ):
        if not holds:
            raise BadInput(
                f'The released code cannot run the model of {config}: '
                f'{reason}. Start from configs/vop_msrvtt_released.py.'
            )


def check_finite(weights: dict[str, Tensor], file: Path) -> None:
    """Refuse weights that are no numbers."""
    for key, value in weights.items():
        if not value.isfinite().all():
            raise BadInput(
                f'{key} in {file} has values that are infinite or no numbers. '
                'The file is damaged, or its training failed; get it again.'
            )


def read_released(file: Path, ours: dict[str, Tensor], config: str) -> dict[str, Tensor]:
    """Open a released file and check its layout.

    Args:
        file (Path): The file.
        ours (dict[str, Tensor]): The :func:`layout` that it should have.
        config (str): Where that comes from, for messages.

    Returns:
        dict[str, Tensor]: Its weights, without the prefix ``module.``.

    Raises:
        BadInput: If it is another file; the message names the key.
    """
    checkpoint = load_safely(str(file), map_location='cpu')
    raw = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not isinstance(raw, dict):
        raise BadInput(
            f"{file} has no 'state_dict', and VoP_msrvtt9k.pth of "
            'damo/cv_vit-b32_retrieval_vop has. Is it that file?'
        )
    state = {str(key).removeprefix('module.'): raw[key] for key in raw}
    if len(state) < len(raw):
        raise BadInput(
            f'{file} has keys both with and without the prefix '
            "'module.'. Keep the ones that are meant."
        )
    for what, keys in (
        ('lacks', ours.keys() - state.keys()),
        ('also has', state.keys() - ours.keys()),
    ):
        if keys:
            raise BadInput(
                f'{file} {what} {names(keys)} ({len(keys)} in all), against '
                f'the model of {config}. Is it VoP_msrvtt9k.pth of '
                'damo/cv_vit-b32_retrieval_vop? A checkpoint that was trained '
                'here takes --reverse; another CLIP, --cfg-options '
                'model.clip.name=NAME.'
            )
    for key, value in state.items():
        dtype = getattr(value, 'dtype', type(value).__name__)
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise BadInput(
                f'{key} in {file} holds {dtype}, not 16- or 32-bit '
                'floating point. Convert it first.'
            )
        if value.shape != ours[key].shape:
            raise BadInput(
                f'{key} is {list(value.shape)} in {file}, but '
                f'{list(ours[key].shape)} in the model of {config}. '
                + (
                    'Write the lengths of its prompts into a copy of this config '
                    'and pass it as --config.'
                    if key in (VISUAL, TEXT)
                    else 'Set the CLIP that the file was trained on, with '
                    '--cfg-options model.clip.name=NAME.'
                )
            )
    check_finite(state, file)
    for copy, clip in (('image_encoder.', 'clip.visual.'), ('text_encoder.', 'clip.')):
        for key in state:
            other = clip + key.removeprefix(copy)
            if key.startswith(copy) and not state[key].float().equal(state[other].float()):
                raise BadInput(
                    f'{key} and {other} differ in {file}, so it is unclear '
                    'which CLIP its prompts were trained on. Save the model '
                    'again with one CLIP for both.'
                )
    return state


def describe(model: RetrievalRecognizer, file: Path) -> None:
    """Print what a file holds."""
    weights = layout(model)
    prefix, suffix = (prompt.length for prompt in model.text.prompts)
    trained = weights[VISUAL].numel() + weights[TEXT].numel()
    print(
        f'{file}: {trained:,} trained parameters\n'
        f'  {VISUAL} {list(weights[VISUAL].shape)}\n'
        f'  {TEXT} {list(weights[TEXT].shape)}, {prefix} in front of the '
        f'words and {suffix} behind'
    )
    for name in ('visual', 'text'):
        print(f'  fingerprint of its CLIP, {name}: {weights_fingerprint(getattr(model, name).frozen())}')


def save(contents: dict, file: Path) -> None:
    """Write a file under its name once it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f'{file.name}.part')
    try:
        torch.save(contents, part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    print(f'{file} is written.')


def from_released(args: argparse.Namespace, cfg: Config) -> None:
    """Make our checkpoint; see the module."""
    cfg.model.clip.pretrained = None  # the CLIP comes from the file
    MMLogger.get_current_instance().setLevel('ERROR')  # it is random only now
    model = MODELS.build(cfg.model)
    check_config(model, args.config)
    ours = layout(model)
    state = read_released(args.source, ours, args.config)
    with torch.no_grad():
        for key, value in ours.items():
            value.copy_(state[key])
        lengths = [prompt.length for prompt in model.text.prompts]
        for prompt, tokens in zip(model.text.prompts, state[TEXT].split(lengths, dim=1)):
            prompt.tokens.copy_(tokens)
    for encoder in (model.visual, model.text):
        encoder.clip_name = f'of {args.source.name}'
    describe(model, args.source)
    clip = {
        key.removeprefix('clip.'): value for key, value in ours.items() if key.startswith('clip.')
    }
    if args.clip_out:
        save(clip, args.clip_out)
    meta = dict(converted_from=args.source.name)
    save(dict(meta=meta, state_dict=model.state_dict()), args.out)
    command = f'python tools/test.py {args.config} {args.out}'
    if args.clip_out:
        command += f' --cfg-options model.clip.pretrained={args.clip_out}'
    print(f'Test it with\n  {command}')
    if not args.clip_out:
        print(
            "This needs OpenAI's weights of the CLIP; --clip-out writes those in the released file."
        )


def to_released(args: argparse.Namespace, cfg: Config) -> None:
    """Make a released file; see the module."""
    model = MODELS.build(cfg.model)
    check_config(model, args.config)
    check_fit(model, str(args.source))
    checkpoint = load_safely(str(args.source), map_location='cpu')
    model.load_state_dict(checkpoint.get('state_dict', checkpoint))
    weights = layout(model)
    check_finite(weights, args.source)
    describe(model, args.source)
    save(dict(state_dict=weights), args.out)
    prefix, suffix = (prompt.length for prompt in model.text.prompts)
    print(
        'The released code needs in its configuration.json:\n'
        f'  num_frames {model.visual.spec.num_frames}, vp_token_num '
        f'{model.visual.prompts[0].length}, tp_prefix_token_num {prefix}, '
        f'tp_suffix_token_num {suffix}'
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='file to read')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument(
        '--reverse',
        action='store_true',
        help='make a released file of a checkpoint that was trained here',
    )
    parser.add_argument(
        '--clip-out',
        type=Path,
        metavar='FILE',
        help='also write the CLIP of the released file, for model.clip.pretrained=FILE',
    )
    parser.add_argument(
        '--config',
        default='configs/vop_msrvtt_released.py',
        help='config of the model (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, such as model.clip.pretrained=FILE, the '
        'CLIP that --reverse takes up',
    )
    args = parser.parse_args()
    if args.reverse and args.clip_out:
        parser.error('--clip-out goes without --reverse')
    files = [f for f in (args.source, args.out, args.clip_out) if f]
    if len({file.resolve() for file in files}) < len(files):
        parser.error('the files must have different names')
    return args


def main() -> None:
    args = parse_args()
    try:
        cfg = open_config(args.config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmaction'))
        (to_released if args.reverse else from_released)(args, cfg)
    except (BadInput, ValueError, OSError) as error:
        raise SystemExit(f'{error}') from error


if __name__ == '__main__':
    main()
