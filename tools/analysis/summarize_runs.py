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

from projects.vop.engine.parameters import PAPER_CLIP_PARAMETERS
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import write_file
from projects.vop.paper import METRICS, TABLE_1

matplotlib.use('Agg')
CEILINGS = dict(moving_shapes=50)  # in R@1, of methods that do not see the order of frames
OF_TABLE_1 = ('msrvtt', 'msrvtt_9k')
COLUMNS = [f'{direction}/{name}' for direction in ('t2v', 'v2t') for name in METRICS]


def collect(work_dir: Path) -> list[dict]:
    """The results of all finished runs, in the order of Table 1."""
    order = {method: i for i, method in enumerate(TABLE_1)}

    def place(result: dict) -> tuple:
        method, setting, lr, seed = (result[key] for key in ('method', 'setting', 'lr', 'seed'))
        return order.get(method, len(order)), method, setting, lr or 0, seed

    results = (json.loads(path.read_text()) for path in work_dir.rglob('result.json'))
    return sorted(results, key=place)


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
    """As it is printed; one value has no deviation."""
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.1f}{spread}'


def table(best: dict, dataset: str) -> str:
    """Markdown, with the paper's row after ours where it has one."""
    paper = dataset in OF_TABLE_1
    counted = ['as the paper counts'] if paper else []
    metrics = [column.replace('/', ' ') for column in COLUMNS]
    rows = [['method', 'trained', *counted, 'lr', 'seeds', *metrics]]
    for (method, setting), runs in best.items():
        trained, as_paper, lr = (runs[0][key] for key in ('trained', 'as_paper', 'lr'))
        counted = [f'{as_paper:,} ({100 * as_paper / PAPER_CLIP_PARAMETERS:.3f}%)'] if paper else []
        grid = ['', ''] if lr is None else [f'{lr:g}', str(len(runs))]
        metrics = [mean_and_std([run[column] for run in runs]) for column in COLUMNS]
        rows.append([name_of(method, setting), f'{trained:,}', *counted, *grid, *metrics])
        row = TABLE_1.get(method)
        if paper and row and not setting:
            numbers = [*(row.t2v or [''] * 5), *(row.v2t or [''] * 5)]
            rows.append(['*the paper*', '', row.params or '', '', '', *map(str, numbers)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(map(str.ljust, row, widths))} |' for row in rows)


def write_csv(results: list[dict], path: Path) -> None:
    """Every run, one per line."""
    keys = ['dataset', 'method', 'setting', 'lr', 'seed', 'trained', 'as_paper', *COLUMNS]
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, keys, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(results)


def plot(best: dict, dataset: str, path: Path) -> None:
    """R@1 against trained parameters, like Fig. 1 of the paper."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    axes.set_xscale('log')
    points, markers = [], set()
    for (method, setting), runs in best.items():
        values = [run['t2v/R@1'] for run in runs]
        mean, x = statistics.mean(values), runs[0]['trained']
        label = name_of(method, setting)
        if not x:
            axes.axhline(mean, color='grey', linestyle='--', linewidth=1)
            right = dict(xycoords=('axes fraction', 'data'), textcoords='offset points', ha='right')
            axes.annotate(label, (1, mean), (-4, 3), color='grey', **right)
            continue
        spread = statistics.stdev(values) if len(values) > 1 else 0
        color = 'tab:red' if method.startswith('vop') else 'tab:blue'
        # Of a run of an earlier version, it is not known.
        marker = {True: 'o', False: 's'}.get(runs[0].get('sees_order'), 'D')
        markers.add(marker)
        axes.errorbar(x, mean, spread, fmt=marker, color=color, capsize=3)
        points.append((label, x, mean))
        row = TABLE_1.get(method)
        if dataset in OF_TABLE_1 and row and row.t2v and not setting:
            axes.plot(x, row.t2v[0], marker, color=color, fillstyle='none')
    kinds = dict(o='sees the order of frames', s='averages frames')
    handles = [
        axes.plot([], [], marker, color='grey', label=kinds[marker])[0]
        for marker in kinds
        if marker in markers
    ]
    if dataset in CEILINGS:
        label = 'ceiling of averaging frames'
        handles.append(axes.axhline(CEILINGS[dataset], color='tab:grey', lw=1, label=label))
    if handles:  # below the picture, where no label is
        below = dict(loc='upper center', bbox_to_anchor=(0.5, -0.12), ncols=len(handles))
        axes.legend(handles=handles, frameon=False, **below)
    axes.set_xlabel('trained parameters')
    axes.set_ylabel('text-to-video R@1')
    seeds = max(len(runs) for runs in best.values())
    spread = f': mean and standard deviation of {seeds} seeds' if seeds > 1 else ''
    axes.set_title(dataset + spread + (', hollow: the paper' if dataset in OF_TABLE_1 else ''))
    axes.margins(y=0.15)
    if points:
        counts = [x for _, x, _ in points]
        axes.set_xlim(min(counts) / 2, 2 * max(counts))  # of one point, there would be no width
    axes.grid(alpha=0.3)
    figure.tight_layout()
    label_points(axes, points)
    figure.savefig(path, dpi=120)


def label_points(axes: pyplot.Axes, points: list[tuple[str, float, float]]) -> None:
    """Write a label next to each point, clear of the labels before it."""
    # Where it can be: right, left, and further and further away.
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


def summarize(folder: Path) -> None:
    """Read all results in a folder, and write the three files."""
    results = collect(folder)
    if not results:
        raise UserError(f'No run in {folder} is finished.')
    dataset, *others = sorted({result['dataset'] for result in results})
    if others:
        raise UserError(
            f'{folder} holds runs on {dataset}, {", ".join(others)}. Choose one of them.'
        )
    best = choose_rates(results)
    if not best:
        raise UserError(f'All runs in {folder} diverged; lower the learning rates.')
    text = table(best, dataset)
    note = 'Numbers of the last epoch; mean ± standard deviation over seeds.'
    if len(best) < len({(r['method'], r['setting'], r['lr']) for r in results}):
        note += ' The learning rate of each method is the one with the highest t2v R@1 on the'
        note += ' test split, of those in results.csv.'
    write_file(folder / 'results.md', f'# {dataset}\n\n{text}\n\n{note}\n')
    write_csv(results, folder / 'results.csv')
    plot(best, dataset, folder / 'results.png')
    print(f'{text}\n\n{note}\nWritten to results.md, results.csv and results.png in {folder}.')


def main() -> None:
    """Read the argument, and summarize."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, help='the --work-dir of tools/reproduce.py')
    summarize(parser.parse_args().work_dir)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
