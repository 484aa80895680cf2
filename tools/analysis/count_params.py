"""Count what trains and what does not, by part, of any config.

Models are built without weights: nothing is downloaded. --paper prints the
parameter column of the paper's Table 1 from the configs of MSR-VTT instead.
"""

import argparse
import json
from pathlib import Path

from mmengine.config import DictAction

from projects.vop.engine import open_config
from projects.vop.engine.parameters import (
    PAPER_CLIP,
    build_without_weights,
    count_as_paper,
    count_by_part,
)
from projects.vop.paper import TABLE_1

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def count(config: str, options: dict) -> dict:
    """Counts of one config, as --json prints them."""
    cfg = open_config(config)
    cfg.merge_from_dict(options)
    parts = count_by_part(build_without_weights(cfg))
    return dict(
        config=config,
        trained=sum(part.trained for part in parts.values()),
        frozen=sum(part.frozen for part in parts.values()),
        parts={name: part._asdict() for name, part in parts.items()},
    )


def show(counts: dict) -> str:
    """A table of one config."""
    rows = [('part', 'trained', 'frozen')]
    rows += [
        (name, f'{part["trained"]:,}', f'{part["frozen"]:,}')
        for name, part in counts['parts'].items()
    ]
    rows.append(('in all', f'{counts["trained"]:,}', f'{counts["frozen"]:,}'))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        f'{name:{widths[0]}}  {trained:>{widths[1]}}  {frozen:>{widths[2]}}'
        for name, trained, frozen in rows
    )


def paper() -> list[dict]:
    """Every row of Table 1, counted as the paper does and as it is."""
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


def show_paper(rows: list[dict]) -> str:
    """Table 1's column of parameters, as Markdown."""
    lines = [
        '| method | the paper prints | as the paper counts | trained |',
        '| --- | --- | --- | --- |',
    ]
    for row in rows:
        counted = row['as_the_paper_counts']
        lines.append(
            f'| {row["name"]} | {row["paper_prints"] or ""} | {counted:,} '
            f'({100 * counted / PAPER_CLIP:.3f}%) | {row["trained"]:,} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--paper', action='store_true', help="the column of the paper's Table 1")
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        default={},
        help='change the config',
    )
    args = parser.parse_args()
    if (args.config is None) != args.paper:
        parser.error('give either a config or --paper')
    try:
        result = paper() if args.paper else count(args.config, args.cfg_options)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(show_paper(result) if args.paper else show(result))


if __name__ == '__main__':
    main()
