"""Read every video as training would, and list those that cannot be used, or are damaged.

    python tools/data/check_videos.py data/msrvtt/train_9k.json
    python tools/data/check_videos.py my_videos

The first reads the videos of an annotation file, with its windows of time, the
second all videos in a folder. Each is read once, by the train pipeline of
--config; of several, by the first. The exit code is 1 if one cannot be used: if
it is missing or no regular file, fails, crashes its decoder or takes longer
than --timeout.
"""

import argparse
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from tqdm import tqdm

from projects.vop.damage import signs_of_damage
from projects.vop.engine import open_config
from projects.vop.engine.config import video_text_datasets
from projects.vop.errors import (
    UserError,
    VideoReadError,
    exit_on_user_error,
    reason_or_raise,
    shown,
)
from projects.vop.fileio import as_file, available_cores, is_video, walk_files, why_no_file
from projects.vop.isolation import check_timeout, map_isolated
from projects.vop.registry import DATASETS


def items_of_folder(folder: Path) -> list[dict]:
    names = [name for name, _ in walk_files(folder) if is_video(name)]
    more = dict(start_index=0, modality='RGB', text='a video')
    return [dict(filename=as_file(folder / name), video_id=name, **more) for name in names]


def items_of_annotations(path: Path, folder: Path, dataset: dict) -> list[dict]:
    """The first item of each video."""
    paths = dict(ann_file=str(path), data_root='', data_prefix=dict(video=str(folder)))
    data = DATASETS.build(dict(dataset, **paths, skip_bad_videos=True))  # missing ones, too
    items = (data.get_data_info(i) for i in reversed(range(len(data))))
    return list({item['filename']: item for item in items}.values())[::-1]


def read(pipeline: Callable, item: dict) -> list[str]:
    """Read a video; give the signs that it is damaged."""
    if reason := why_no_file(item['filename']):
        raise VideoReadError(reason)
    with signs_of_damage(item['filename'], alone=True) as signs:
        pipeline(item)
    return signs


def find_dataset(cfg: Config, config: Path, source: Path) -> dict:
    """What reads the videos of a folder or an annotation file, of the data sets of a config."""
    if not cfg.get('train_dataloader'):
        raise UserError(f'{config} has no train_dataloader.')
    whole = cfg.train_dataloader.dataset.to_dict()
    dataset = next(video_text_datasets(whole, cfg.get('default_scope', 'mmaction')), None)
    if not dataset and not source.is_dir():
        raise UserError(
            f'{config}: train_dataloader.dataset is no vop.VideoTextDataset, which alone reads '
            f'{source}. Give the folder of the videos, or another --config.'
        )
    dataset = dataset or whole
    if 'pipeline' not in dataset:
        raise UserError(f'{config}: train_dataloader.dataset has no pipeline.')
    return dataset


def check(pipeline: list, items: list[dict], jobs: int, timeout: float | None) -> int:
    """Read the videos, and print those that cannot be used, or are damaged; count the first."""
    function = partial(read, Compose(pipeline))
    bad, jobs = 0, min(jobs, len(items))
    with (
        closing(map_isolated(function, items, jobs, timeout, 4 * jobs)) as results,
        tqdm(total=len(items), unit='video', disable=None) as bar,
    ):
        for item, future in results:
            path = item['filename']
            try:
                notes = [f' {sign}' for sign in future.result()]
            except Exception as error:
                notes = [f': {reason_or_raise(error, path)}']
                bad += 1
            for note in notes:
                bar.write(f'{shown(path)}{note}')
            bar.update()
    return bad


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add('source', type=Path, metavar='DIR|ANN', help='folder of videos, or annotation file')
    text = "folder of an annotation file's videos (default: videos/ next to it)"
    add('--videos', type=Path, help=text)
    text = 'config whose train_dataloader says how videos are read (default: vop_msrvtt)'
    add('--config', default='vop_msrvtt', help=text)
    text = 'processes (default: %(default)s)'
    add('--jobs', type=int, default=available_cores(), help=text)
    text = "seconds that reading one video may take (default: the config's, 60)"
    add('--timeout', type=float, help=text)
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error('--jobs must be at least 1')
    cfg = open_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmaction'))
    dataset = find_dataset(cfg, args.config, args.source)
    timeout = args.timeout if args.timeout is not None else dataset.get('timeout', 60)
    check_timeout(timeout)
    if args.source.is_dir():
        items = items_of_folder(args.source)
    else:
        folder = args.videos or args.source.parent / 'videos'
        items = items_of_annotations(args.source, folder, dataset)
    if not items:
        raise UserError(f'There is no video in {args.source}.')
    try:
        bad = check(dataset['pipeline'], items, args.jobs, timeout)
    except KeyboardInterrupt:
        print('\nStopped.')
        raise SystemExit(130) from None
    print(f'{len(items):,} videos read; {bad:,} cannot be used.')
    if bad:
        raise SystemExit(1)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
