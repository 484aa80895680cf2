"""Count the trained and the frozen parameters of each part of a model.

The model is built without weights, so nothing is downloaded. With --paper, the
parameter column of the paper's Table 1 is printed, from the configs of MSR-VTT.
"""

import argparse
import json
from pathlib import Path

from mmengine.config import DictAction

from projects.vop.engine import merge_options, open_config
from projects.vop.engine.parameters import (
    PAPER_CLIP_PARAMETERS,
    build_without_weights,
    count_as_paper,
    count_by_part,
)
from projects.vop.errors import exit_on_user_error
from projects.vop.paper import TABLE_1

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


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
    for method, row in TABLE_1.items():
        model = build_without_weights(open_config(CONFIGS / f'{method}_msrvtt.py'))
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


def main() -> None:
    """Print the counts."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('config', nargs='?', help='config file')
    add('--paper', action='store_true', help="the parameter column of the paper's Table 1")
    add('--json', action='store_true', help='print JSON instead of a table')
    add('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', default={})
    args = parser.parse_args()
    if (args.config is None) != args.paper:
        parser.error('give either a config or --paper')
    result = count_table_1() if args.paper else count(args.config, args.cfg_options)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(format_table_1(result) if args.paper else format_counts(result))


if __name__ == '__main__':
    with exit_on_user_error():
        main()
