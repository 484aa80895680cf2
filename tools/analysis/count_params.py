"""Count the trained and the frozen parameters of each part of a model.

The model is built without weights, so nothing is downloaded. With --paper, the
parameter column of the paper's Table 1 is printed, from the configs of MSR-VTT.
With --clips, what a config trains on every CLIP of open_clip that can be prompted.
"""

import argparse
import json

import open_clip
from mmengine.config import Config, DictAction

from projects.vop.clip_config import read_clip_config
from projects.vop.engine import merge_options, open_config
from projects.vop.engine.parameters import (
    PAPER_CLIP_PARAMETERS,
    build_without_weights,
    count_as_paper,
    count_by_part,
)
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import ROOT
from projects.vop.paper import TABLE_1, Row

OTHERS = dict(lora=Row('LoRA (not in the paper)'))


def count(config: str, options: dict) -> dict:
    """Count the parameters of one config, as --json prints them."""
    cfg = open_config(config)
    merge_options(cfg, options)
    parts = count_by_part(build_without_weights(cfg))
    return dict(
        config=config,
        trained=sum(part.trained for part in parts.values()),
        frozen=sum(part.frozen for part in parts.values()),
        parts={name: part._asdict() for name, part in parts.items()},
    )


def format_counts(counts: dict) -> str:
    """The counts of one config as a table."""
    total = dict(trained=counts['trained'], frozen=counts['frozen'])
    rows = [
        (name, f'{part["trained"]:,}', f'{part["frozen"]:,}')
        for name, part in (counts['parts'] | {'in total': total}).items()
    ]
    width = max(len(name) for name, *_ in rows)
    return '\n'.join(
        f'{name:{width}}{trained:>15}{frozen:>15}'
        for name, trained, frozen in [('part', 'trained', 'frozen'), *rows]
    )


def count_table_1() -> list[dict]:
    """Count each row of Table 1: as the paper does, and all that trains."""
    rows = []
    for method, row in (TABLE_1 | OTHERS).items():
        model = build_without_weights(open_config(ROOT / f'configs/{method}_msrvtt.py'))
        parts = count_by_part(model).values()
        rows.append(
            dict(
                method=method,
                name=row.name,
                paper_prints=row.params,
                as_the_paper_counts=count_as_paper(model),
                trained=sum(part.trained for part in parts),
            )
        )
    return rows


def format_table_1(rows: list[dict]) -> str:
    """The parameter column of Table 1 as Markdown."""
    lines = [
        '| method | the paper prints | as the paper counts | trained |',
        '| --- | --- | --- | --- |',
    ]
    for row in rows:
        counted = row['as_the_paper_counts']
        lines.append(
            f'| {row["name"]} | {row["paper_prints"] or ""} | {counted:,} '
            f'({100 * counted / PAPER_CLIP_PARAMETERS:.3f}%) | {row["trained"]:,} |'
        )
    return '\n'.join(lines)


def count_clips(cfg: Config) -> list[dict]:
    """Count what a config trains on each CLIP of open_clip, or say why it cannot."""
    rows = []
    for name in open_clip.list_models():
        cfg.model.clip.update(name=name, pretrained=None)
        row = dict(name=name, pixels=read_clip_config(name).size[0])
        try:
            model = build_without_weights(cfg)
        except UserError as error:
            rows.append(dict(row, refused=str(error)))
            continue
        spec, parts = model.visual.spec, count_by_part(model).values()
        row |= dict(width=spec.width, layers=spec.layers, tokens=model.text.slots)
        trained, frozen = (sum(part[i] for part in parts) for i in (0, 1))
        rows.append(dict(row, trained=trained, frozen=frozen))
    return rows


def format_clips(rows: list[dict]) -> str:
    """Those that can be prompted as Markdown."""
    lines = [
        '| CLIP | pixels | image tower | caption tokens | frozen (M) | trained | share |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    for row in rows:
        if 'refused' not in row:
            lines.append(
                f'| {row["name"]} | {row["pixels"]} | {row["layers"]} x {row["width"]} '
                f'| {row["tokens"]} | {row["frozen"] / 1e6:,.1f} | {row["trained"]:,} '
                f'| {100 * row["trained"] / row["frozen"]:.3f} % |'
            )
    return '\n'.join(lines)


def main() -> None:
    """Print the counts."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('config', nargs='?', help='config file, or its name')
    add('--paper', action='store_true', help="the parameter column of the paper's Table 1")
    add('--clips', action='store_true', help='the config on every CLIP that can be prompted')
    add('--json', action='store_true', help='print JSON instead of a table')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args()
    if (args.config is None) != args.paper or args.paper and args.clips:
        parser.error('give a config or --paper; --clips needs a config')
    if args.paper:
        result, show = count_table_1(), format_table_1
    elif args.clips:
        cfg = open_config(args.config)
        merge_options(cfg, args.cfg_options)
        if 'clip' not in cfg.model:
            parser.error(f'--clips replaces model.clip, which {args.config} does not have')
        result, show = count_clips(cfg), format_clips
    else:
        result, show = count(args.config, args.cfg_options), format_counts
    print(json.dumps(result, indent=1) if args.json else show(result))


if __name__ == '__main__':
    with exit_on_user_error():
        main()
