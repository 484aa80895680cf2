"""Collect the runs of tools/reproduce.py into a table, a csv and a plot."""

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.transforms import Bbox

from projects.vop.engine.parameters import PAPER_CLIP
from projects.vop.paper import METRICS, TABLE_1

matplotlib.use('Agg')
COLUMNS = [f'{way}/{name}' for way in ('t2v', 'v2t') for name in METRICS]


def collect(work_dir: Path) -> list[dict]:
    """The results of all finished runs, in the order of Table 1.

    One that diverged has no metrics.
    """
    results = [json.loads(path.read_text()) for path in work_dir.rglob('result.json')]
    order = {method: i for i, method in enumerate(TABLE_1)}
    return sorted(
        results,
        key=lambda r: (
            order.get(r['method'], len(order)),
            r['method'],
            r['setting'],
            r['lr'] or 0,
            r['seed'],
        ),
    )


def choose_rates(results: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """The runs of each method at its best learning rate.

    That is the rate with the highest mean t2v R@1 over its seeds, among
    those with the most seeds.
    """
    groups = defaultdict(lambda: defaultdict(list))
    for result in results:
        key = result['method'], result['setting']
        if 't2v/R@1' in result:  # else it diverged
            groups[key][result['lr']].append(result)

    def quality(runs: list[dict]) -> tuple[int, float]:
        return len(runs), statistics.mean(r['t2v/R@1'] for r in runs)

    return {key: max(rates.values(), key=quality) for key, rates in groups.items()}


def name_of(method: str, setting: str = '') -> str:
    """The paper's name of a method, with the setting of an ablation."""
    name = TABLE_1[method].name if method in TABLE_1 else method
    return f'{name} {setting}'.strip()


def mean_and_std(values: list[float]) -> str:
    mean = f'{statistics.mean(values):.1f}'
    if len(values) == 1:
        return mean
    return f'{mean} ± {statistics.stdev(values):.1f}'


def table(best: dict, dataset: str) -> str:
    """Markdown, with the paper's row behind ours where it has one."""
    paper = is_msrvtt(dataset)
    rows = [
        [
            'method',
            'trained',
            *(['as the paper counts'] if paper else []),
            'lr',
            'seeds',
            *(column.replace('/', ' ') for column in COLUMNS),
        ]
    ]
    for (method, setting), runs in best.items():
        first = runs[0]
        share = 100 * first['as_paper'] / PAPER_CLIP
        counted = f'{first["as_paper"]:,} ({share:.3f}%)'
        rows.append(
            [
                name_of(method, setting),
                f'{first["trained"]:,}',
                *([counted] if paper else []),
                '' if first['lr'] is None else f'{first["lr"]:g}',
                '' if first['lr'] is None else str(len(runs)),
                *(mean_and_std([run[column] for run in runs]) for column in COLUMNS),
            ]
        )
        row = TABLE_1.get(method)
        if paper and row and not setting:
            numbers = [*(row.t2v or [''] * 5), *(row.v2t or [''] * 5)]
            rows.append(['*the paper*', '', row.params or '', '', '', *map(str, numbers)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(map(str.ljust, row, widths))} |' for row in rows)


def is_msrvtt(dataset: str) -> bool:
    """Whether Table 1 is about this data set."""
    return dataset in ('msrvtt', 'msrvtt_9k')


def write_csv(results: list[dict], path: Path) -> None:
    """Every run, one a line."""
    keys = ['dataset', 'method', 'setting', 'lr', 'seed', 'trained', 'as_paper', *COLUMNS]
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, keys, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(results)


def plot(best: dict, dataset: str, path: Path) -> None:
    """R@1 against trained parameters, like Fig. 1 of the paper."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    axes.set_xscale('log')
    points = []
    for (method, setting), runs in best.items():
        values = [run['t2v/R@1'] for run in runs]
        mean, x = statistics.mean(values), runs[0]['trained']
        label = name_of(method, setting)
        if not x:
            axes.axhline(mean, color='grey', linestyle='--', linewidth=1)
            axes.annotate(
                label,
                (1, mean),
                (-4, 3),
                color='grey',
                xycoords=('axes fraction', 'data'),
                textcoords='offset points',
                ha='right',
            )
            continue
        spread = statistics.stdev(values) if len(values) > 1 else 0
        color = 'tab:red' if method.startswith('vop') else 'tab:blue'
        axes.errorbar(x, mean, spread, fmt='o', color=color, capsize=3)
        points.append((label, x, mean))
        row = TABLE_1.get(method)
        if is_msrvtt(dataset) and row and row.t2v and not setting:
            axes.plot(x, row.t2v[0], 'o', color=color, fillstyle='none')
    axes.set_xlabel('trained parameters')
    axes.set_ylabel('text-to-video R@1')
    seeds = max(len(runs) for runs in best.values())
    axes.set_title(
        dataset
        + (f': mean and standard deviation of {seeds} seeds' if seeds > 1 else '')
        + (', hollow: the paper' if is_msrvtt(dataset) else '')
    )
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    label_points(axes, points)
    figure.savefig(path, dpi=120)


def label_points(axes: pyplot.Axes, points: list[tuple[str, float, float]]) -> None:
    """Write a label beside each point, clear of the labels before it."""
    # Where a label can stand: right, left, and further and further off.
    places = [
        (x, 4 + sign * step, align)
        for step in range(0, 60, 12)
        for sign in (1, -1)
        for x, align in ((7, 'left'), (-7, 'right'))
    ]
    taken = [Bbox.from_bounds(*axes.transData.transform((x, y)) - 5, 10, 10) for _, x, y in points]
    for label, x, y in points:
        for *offset, align in places:
            text = axes.annotate(label, (x, y), offset, ha=align, textcoords='offset points')
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            text = axes.annotate(label, (x, y), (7, 4), textcoords='offset points')
        taken.append(text.get_window_extent())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='the --work-dir of tools/reproduce.py')
    args = parser.parse_args()
    results = collect(args.work_dir)
    if not results:
        raise SystemExit(f'No run in {args.work_dir} is finished.')
    datasets = sorted({result['dataset'] for result in results})
    if len(datasets) > 1:
        raise SystemExit(
            f'{args.work_dir} holds runs on {len(datasets)} data '
            f"sets ({', '.join(datasets)}); name one's folder."
        )
    dataset = datasets[0]
    best = choose_rates(results)
    if not best:
        raise SystemExit(f'All runs in {args.work_dir} diverged; lower the learning rates.')
    text = table(best, dataset)
    note = 'Numbers of the last epoch; mean ± standard deviation over seeds.'
    if len(best) < len({(r['method'], r['setting'], r['lr']) for r in results}):
        note += (
            ' The learning rate of each method is the one with the '
            'highest t2v R@1 on the test split, of those in '
            'results.csv.'
        )
    (args.work_dir / 'results.md').write_text(
        f'# {dataset}\n\n{text}\n\n{note}\n', encoding='utf-8'
    )
    write_csv(results, args.work_dir / 'results.csv')
    plot(best, dataset, args.work_dir / 'results.png')
    print(
        f'{text}\n\n{note}\nWritten to results.md, results.csv and results.png in {args.work_dir}.'
    )


if __name__ == '__main__':
    main()
