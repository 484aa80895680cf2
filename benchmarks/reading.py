"""Time the reading of videos against that of copies, in turn, in one run.

Originals and copies that tools/data/compress_videos.py made go through the
train pipeline of a config, one process, the same random crops and segments
of time. Says how many clips a second each gives, where their time goes, and
how well a model sees in the copies what it would in the originals: the PSNR
between what the test pipeline makes of each frame that it takes of a copy and
of the frame that the original shows at the same time.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import decord
import mmaction
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import projects.vop  # noqa: F401
from projects.vop.engine import open_config
from projects.vop.fileio import VIDEO_SUFFIXES as SUFFIXES
from projects.vop.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tools/data'))
from common import some  # noqa: E402


def find_videos(folder: Path) -> list[str]:
    """Paths of the videos, relative to the folder."""
    if not folder.is_dir():
        raise SystemExit(f'There is no folder {folder}.')
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob('*')
        if path.suffix.lower() in SUFFIXES
    )


def spread(videos: list[str], number: int) -> list[str]:
    """At most so many of them, evenly from first to last."""
    step = max(1, len(videos) / number)
    return [videos[int(i * step)] for i in range(min(number, len(videos)))]


def make_copies(folder: Path, videos: list[str], place: Path) -> list[Path]:
    """Copies of these videos with the defaults of both codecs."""
    for video in videos:
        link = place / 'originals' / video
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((folder / video).resolve())
    copies = [place / codec for codec in ('mjpeg', 'h264')]
    for copy in copies:
        done = subprocess.run(
            [
                sys.executable,
                ROOT / 'tools/data/compress_videos.py',
                place / 'originals',
                copy,
                '--codec',
                copy.name,
            ],
            capture_output=True,
            text=True,
        )
        if done.stderr:  # one that cannot be read is said elsewhere
            raise SystemExit(done.stderr.strip())
    return copies


def open_datasets(cfg: Config, split: str, folders: dict[str, Path], videos: list[str]) -> dict:
    """The data set of a split's dataloader, over these videos of each."""
    with tempfile.TemporaryDirectory() as place:
        ann_file = Path(place) / 'videos.json'
        ann_file.write_text(json.dumps({video: ['a video of something'] for video in videos}))
        change = dict(ann_file=str(ann_file), data_root='')
        return {
            name: DATASETS.build(
                cfg[f'{split}_dataloader'].dataset.to_dict()
                | change
                | dict(data_prefix=dict(video=str(folder)))
            )
            for name, folder in folders.items()
        }


def time_clip(dataset, index: int, seed: int) -> list[float]:
    """Seconds of each transform of the pipeline on one video, and of CPU
    time in all."""
    random.seed(seed)
    np.random.seed(seed)  # transforms draw from both
    results, seconds = dataset.get_data_info(index), []
    cpu_start = time.process_time()
    for transform in dataset.pipeline.transforms:
        start = time.perf_counter()
        results = transform(results)
        seconds.append(time.perf_counter() - start)
    return seconds + [time.process_time() - cpu_start]


def measure(datasets: dict, repeats: int) -> dict[str, np.ndarray]:
    """What ``time_clip`` says: repeats x videos x (transforms + CPU time).

    Each video is read from one data set right after the other, so that drift
    hits all alike.
    """
    seconds = {name: [] for name in datasets}
    for repeat in range(-1, repeats):  # the first round warms up
        rounds = {name: [] for name in datasets}
        for index in range(len(next(iter(datasets.values())))):
            for name, dataset in datasets.items():
                rounds[name].append(time_clip(dataset, index, repeat + 1))
        if repeat >= 0:
            for name in datasets:
                seconds[name].append(rounds[name])
    return {name: np.array(each) for name, each in seconds.items()}


def same_moments(
    copy: decord.VideoReader, frames: np.ndarray, original: decord.VideoReader
) -> np.ndarray:
    """Of the original, the frames on screen when a copy takes its own.

    A frame of a copy stands for the middle of its interval.
    """
    seconds = (frames + 0.5) / copy.get_avg_fps()
    starts = original.get_frame_timestamp(range(len(original)))[:, 0]
    starts = starts - starts[0]
    # Timestamps are float32, and the middle is often the start of a frame.
    return np.searchsorted(starts, seconds * (1 + 1e-6), 'right') - 1


def psnr(original, copy, index: int) -> list[float]:
    """Decibels of each frame that the test pipeline takes of a video."""
    ours, theirs = copy.get_data_info(index), original.get_data_info(index)
    for transform, other in zip(copy.pipeline.transforms, original.pipeline.transforms):
        if type(transform).__name__ == 'DecordDecode':
            theirs['frame_inds'] = same_moments(
                ours['video_reader'], ours['frame_inds'], theirs['video_reader']
            )
        ours, theirs = transform(ours), other(theirs)
    a, b = (results['inputs']['imgs'].double() for results in (ours, theirs))
    error = (a - b).square().flatten(1).mean(1).clamp(min=1e-2)
    return (10 * torch.log10(255**2 / error)).tolist()


def table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ['---'] * len(header), *rows):
        print('| ' + ' | '.join(row) + ' |')


def report(cfg: Config, folders: dict[str, Path], videos: list[str], repeats: int) -> None:
    """Measure and print."""
    train = open_datasets(cfg, 'train', folders, videos)
    seconds = measure(train, repeats)
    rounds = {name: each[:, :, :-1].sum((1, 2)) for name, each in seconds.items()}
    cpu = {name: each[:, :, -1].sum(1) for name, each in seconds.items()}
    originals, *copies = folders
    test = open_datasets(cfg, 'test', folders, videos)
    size = {
        name: sum((folder / video).stat().st_size for video in videos)
        for name, folder in folders.items()
    }

    rows = []
    for name in folders:
        faster, cheaper = (
            f'{statistics.median(each[originals] / each[name]):.1f}x' for each in (rounds, cpu)
        )
        row = [
            name,
            f'{size[name] / size[originals]:.0%}',
            f'{len(videos) / statistics.median(rounds[name]):.1f}',
            faster,
            cheaper,
            '',
            '',
        ]
        if name in copies:
            decibels = [
                each
                for index in range(len(videos))
                for each in psnr(test[originals], test[name], index)
            ]
            row[5:] = [f'{statistics.mean(decibels):.1f} dB', f'{min(decibels):.1f} dB']
        rows.append(row)
    table(
        [
            'videos',
            'size',
            'clips a second',
            'against the originals',
            'by CPU time',
            'mean PSNR',
            'worst PSNR',
        ],
        rows,
    )

    print('\nTime of a clip, by transform:\n')
    means = {name: np.median(each[:, :, :-1].mean(1), 0) * 1e3 for name, each in seconds.items()}
    names = [type(transform).__name__ for transform in train[originals].pipeline.transforms]
    rows = [
        [name] + [f'{mean[i] / mean.sum():.1%}' for mean in means.values()]
        for i, name in enumerate(names)
    ]
    rows.append(['all'] + [f'{mean.sum():.1f} ms' for mean in means.values()])
    table(['transform', *folders], rows)


def cpu() -> str:
    """What the machine says of its processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(': ')[1] for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('originals', type=Path, metavar='VIDEO_DIR', help='folder of the originals')
    parser.add_argument(
        'copies',
        type=Path,
        nargs='*',
        metavar='COPY_DIR',
        help='folders of copies; if none is named, copies of both codecs are '
        'made in a temporary folder',
    )
    parser.add_argument(
        '--config',
        default=str(ROOT / 'configs/vop_msrvtt.py'),
        help='config of the pipelines (default: %(default)s)',
    )
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument(
        '--videos',
        type=int,
        default=32,
        help='how many videos, evenly from the folder (default: %(default)s)',
    )
    args = parser.parse_args()
    for name in ('repeats', 'videos'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be 1 or more')
    try:
        cfg = open_config(args.config)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    init_default_scope('mmaction')
    cv2.setNumThreads(cfg.env_cfg.mp_cfg.opencv_num_threads)  # as in training
    torch.set_num_threads(1)

    found = find_videos(args.originals)
    if not found:
        raise SystemExit(f'There is no video in {args.originals}.')
    with tempfile.TemporaryDirectory() as place:
        copies = args.copies
        if not copies:
            found = spread(found, args.videos)
            copies = make_copies(args.originals, found, Path(place))
        in_all = set(found).intersection(*map(find_videos, copies))
        left_out = [video for video in found if video not in in_all]
        videos = spread(sorted(in_all), args.videos)
        if not videos:
            raise SystemExit(
                f'No video of {args.originals} is in all of {", ".join(map(str, copies))}.'
            )
        folders = dict(originals=args.originals)
        for copy in copies:
            name = copy.name if copy.name not in folders else str(copy)
            folders[name] = copy
        print(
            f'{len(videos)} videos, train pipeline of '
            f'{Path(args.config).name}, one process, {cpu()}, decord '
            f'{decord.__version__}, OpenCV {cv2.__version__}, MMAction2 '
            f'{mmaction.__version__}, torch {torch.__version__}. Medians '
            f'over {args.repeats} rounds in turn, and of their ratios.'
        )
        if left_out:
            print(f'{len(left_out)} left out, of which there is no copy: {some(left_out)}.')
        print()
        report(cfg, folders, videos, args.repeats)


if __name__ == '__main__':
    main()
