"""Compare the time of reading videos with that of reading copies, in turn, in one run.

Originals and copies that tools/data/compress_videos.py made go through the
train pipeline of a config, in one process, with the same random crops and
segments of time. Prints how many clips per second each gives, where their time
goes, and how close the copies look: the PSNR between each frame that the test
pipeline makes of a copy, and what it makes of the original at the same time.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import decord
import mmaction
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from projects.vop.engine import open_config
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.fileio import is_video, walk_files, write_file
from projects.vop.registry import DATASETS

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'tools/data'))
from transcode import CODECS, CopySettings, TranscodeError, encode  # noqa: E402


def find_videos(folder: Path) -> list[str]:
    """Paths of the videos, relative to the folder."""
    return [name for name, _ in walk_files(folder) if is_video(name)]


def spread(videos: list[str], number: int) -> list[str]:
    """At most ``number`` of the videos, evenly spaced."""
    step = max(1, len(videos) / number)
    return [videos[int(i * step)] for i in range(min(number, len(videos)))]


def make_copies(folder: Path, videos: list[str], place: Path) -> list[Path]:
    """Copy these videos with the defaults of both codecs; leave out what is unreadable."""
    for name, codec in CODECS.items():
        settings = CopySettings(codec=name, quality=codec.quality)
        for video in videos:
            try:
                write_file(place / name / video, encode(folder / video, settings))
            except (TranscodeError, av.FFmpegError):
                continue
    return [place / name for name in CODECS]


def open_datasets(cfg: Config, split: str, folders: dict[str, Path], videos: list[str]) -> dict:
    """Open the data set of a split, over these videos of each folder."""
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
    """Seconds of each transform of the pipeline on one video, and of CPU time in total."""
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
    """Run ``time_clip`` on all videos, each from one data set right after the other.

    Returns:
        dict[str, np.ndarray]: Seconds, repeats x videos x (transforms + CPU time).
    """
    number = len(next(iter(datasets.values())))
    seconds = [
        [[time_clip(each, i, repeat) for each in datasets.values()] for i in range(number)]
        for repeat in range(repeats + 1)
    ]
    seconds = np.array(seconds[1:])  # the first round warms up
    return {name: seconds[:, :, i] for i, name in enumerate(datasets)}


def same_moments(
    copy: decord.VideoReader, frames: np.ndarray, original: decord.VideoReader
) -> np.ndarray:
    """Frames of the original that are on screen when a copy shows ``frames``."""
    # A frame of a copy stands for the middle of its interval.
    seconds = (frames + 0.5) / copy.get_avg_fps()
    starts = original.get_frame_timestamp(range(len(original)))[:, 0]
    starts = starts - starts[0]
    # Timestamps are float32, and the middle is often the start of a frame.
    return np.searchsorted(starts, seconds * (1 + 1e-6), 'right') - 1


def psnr(original, copy, index: int) -> list[float]:
    """PSNR of each frame that the test pipeline takes of a video, in dB."""
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
    """Print a Markdown table."""
    for row in (header, ['---'] * len(header), *rows):
        print('| ' + ' | '.join(row) + ' |')


def report(cfg: Config, folders: dict[str, Path], videos: list[str], repeats: int) -> None:
    """Measure and print."""
    train = open_datasets(cfg, 'train', folders, videos)
    seconds = measure(train, repeats)
    rounds = {name: each[:, :, :-1].sum((1, 2)) for name, each in seconds.items()}
    cpu = {name: each[:, :, -1].sum(1) for name, each in seconds.items()}
    test = open_datasets(cfg, 'test', folders, videos)
    size = {
        name: sum((folder / video).stat().st_size for video in videos)
        for name, folder in folders.items()
    }
    rows = []
    for name in folders:
        ratios = [statistics.median(each['originals'] / each[name]) for each in (rounds, cpu)]
        row = [name, f'{size[name] / size["originals"]:.0%}']
        row.append(f'{len(videos) / statistics.median(rounds[name]):.1f}')
        row += [f'{ratio:.1f}x' for ratio in ratios]
        if name != 'originals':
            each = [psnr(test['originals'], test[name], i) for i in range(len(videos))]
            row += [f'{np.mean(each):.1f} dB', f'{np.min(each):.1f} dB']
        rows.append(row + [''] * (7 - len(row)))
    header = ['videos', 'size', 'clips per second', 'against the originals', 'by CPU time']
    table(header + ['mean PSNR', 'worst PSNR'], rows)

    print('\nTime of a clip, by transform:\n')
    means = {name: np.median(each[:, :, :-1].mean(1), 0) * 1e3 for name, each in seconds.items()}
    names = [type(transform).__name__ for transform in train['originals'].pipeline.transforms]
    rows = [
        [name] + [f'{mean[i] / mean.sum():.1%}' for mean in means.values()]
        for i, name in enumerate(names)
    ]
    rows.append(['all'] + [f'{mean.sum():.1f} ms' for mean in means.values()])
    table(['transform', *folders], rows)


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('originals', type=Path, metavar='VIDEO_DIR', help='folder of the originals')
    text = 'folders of copies; without one, copies of both codecs are made for the moment'
    add('copies', type=Path, nargs='*', metavar='COPY_DIR', help=text)
    add('--config', default=str(ROOT / 'configs/vop_msrvtt.py'), help='config of the pipelines')
    add('--repeats', type=int, default=5)
    add('--videos', type=int, default=32, help='how many, evenly from the folder')
    args = parser.parse_args()
    if min(args.repeats, args.videos) < 1:
        parser.error('--repeats and --videos must be 1 or more')
    cfg = open_config(args.config)
    init_default_scope('mmaction')
    cv2.setNumThreads(cfg.env_cfg.mp_cfg.opencv_num_threads)  # as in training
    torch.set_num_threads(1)

    found = find_videos(args.originals)
    if not found:
        raise UserError(f'There is no video in {args.originals}.')
    with tempfile.TemporaryDirectory() as place:
        copies = args.copies
        if not copies:
            found = spread(found, args.videos)
            copies = make_copies(args.originals, found, Path(place))
        common = sorted(set(found).intersection(*map(find_videos, copies)))
        videos = spread(common, args.videos)
        if not videos:
            names = ', '.join(map(str, copies))
            raise UserError(f'No video of {args.originals} has a copy in each of {names}.')
        names = [copy.name for copy in copies]
        if len({'originals', *names}) <= len(names):
            names = map(str, copies)
        folders = dict(originals=args.originals) | dict(zip(names, copies))
        print(
            f'{len(videos)} videos, train pipeline of {Path(args.config).name}, one process, '
            f'{platform.processor() or platform.machine()}, decord {decord.__version__}, OpenCV '
            f'{cv2.__version__}, MMAction2 {mmaction.__version__}, torch {torch.__version__}. '
            f'Medians over {args.repeats} rounds in turn, and of their ratios.'
        )
        if len(common) < len(found):
            left_out = sorted(set(found) - set(common))
            print(f'{len(left_out)} left out, without a copy, such as {left_out[0]}.')
        print()
        report(cfg, folders, videos, args.repeats)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
