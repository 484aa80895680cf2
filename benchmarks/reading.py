"""Compare the time of reading videos with that of reading copies, in turn, in one run.

Originals and copies of tools/data/compress_videos.py go through the train
pipeline of a config, in one process, with the same random crops and segments
of time. PSNR is between each frame that the test pipeline makes of a copy, and
what it makes of the original at the same time.

The last table is what it costs to read in a process of its own (timeout of
vop.VideoTextDataset) in place of the same process.
"""

import argparse
import json
import multiprocessing
import platform
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

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


def find_videos(folder: Path) -> set[str]:
    """Paths of the videos, relative to the folder."""
    return {name for name, _ in walk_files(folder) if is_video(name)}


def spread(videos: set[str], number: int) -> list[str]:
    """At most ``number`` of the videos, evenly spaced."""
    videos, number = sorted(videos), min(number, len(videos))
    return [videos[i * len(videos) // number] for i in range(number)]


def make_copies(folder: Path, videos: list[str], place: Path) -> dict[str, Path]:
    """Copy these videos with the defaults of both codecs; leave out what is unreadable."""
    for name, codec in CODECS.items():
        (place / name).mkdir()
        settings = CopySettings(codec=name, quality=codec.quality)
        for video in videos:
            with suppress(TranscodeError):
                write_file(place / name / video, encode(folder / video, settings))
    return {name: place / name for name in CODECS}


def open_datasets(
    cfg: Config, split: str, folders: dict[str, Path], videos: list[str], timeout: float | None = 60
) -> dict:
    """Open the data set of a split, over these videos of each folder."""
    datasets = {}
    with tempfile.NamedTemporaryFile('w', suffix='.json') as file:
        json.dump({video: ['a video of something'] for video in videos}, file)
        file.flush()
        for name, folder in folders.items():
            dataset = cfg[f'{split}_dataloader'].dataset.to_dict()
            dataset.update(ann_file=file.name, data_root='', data_prefix=dict(video=str(folder)))
            dataset['timeout'] = timeout
            datasets[name] = DATASETS.build(dataset)
    return datasets


def time_clip(dataset, index: int, seed: int) -> list[float]:
    """Seconds of each transform of the pipeline on one video, and of CPU time in total."""
    random.seed(seed)
    np.random.seed(seed)  # transforms draw from both
    results, times = dataset.get_data_info(index), [time.perf_counter()]
    cpu_start = time.process_time()
    for transform in dataset.pipeline.transforms:
        results = transform(results)
        times.append(time.perf_counter())
    return [*np.diff(times), time.process_time() - cpu_start]


def measure(datasets: dict, repeats: int) -> dict[str, np.ndarray]:
    """Seconds in data sets that take turns, of repeats x videos x (transforms + CPU time)."""
    number = len(next(iter(datasets.values())))
    rounds = []
    for repeat in range(repeats + 1):  # the first warms up
        rounds.append([[time_clip(d, i, repeat) for d in datasets.values()] for i in range(number)])
    return {name: np.array(rounds)[1:, :, i] for i, name in enumerate(datasets)}


def cpu_time() -> float:
    """Seconds of CPU time of this process and of those that it started."""
    pids = [child.pid for child in multiprocessing.active_children()]
    # The clock of another process, by its number as in clock_getcpuclockid(3).
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def cost_of_isolation(plain, isolated, repeats: int) -> tuple[float, float, float]:
    """Seconds of a clip in the same process; how many times as long, and CPU time, in its own."""
    rounds = np.zeros((repeats + 1, 2, 2))
    for repeat in range(repeats + 1):  # the first warms up
        for dataset in (plain, isolated):
            dataset.set_epoch(repeat, 0)
        for index in range(len(plain)):
            for side, dataset in enumerate((plain, isolated)):
                start = time.perf_counter(), cpu_time()
                dataset[index]
                rounds[repeat, side] += np.subtract((time.perf_counter(), cpu_time()), start)
    ratios = np.median(rounds[1:, 1] / rounds[1:, 0], 0)
    return np.median(rounds[1:, 0, 0]) / len(plain), *ratios


def psnr(original, copy, index: int) -> list[float]:
    """PSNR of each frame that the test pipeline takes of a video, in dB."""
    ours, theirs = copy.get_data_info(index), original.get_data_info(index)
    for transform, other in zip(copy.pipeline.transforms, original.pipeline.transforms):
        if type(transform).__name__ == 'DecordDecode':
            # A frame of a copy stands for the middle of its interval.
            seconds = (ours['frame_inds'] + 0.5) / ours['video_reader'].get_avg_fps()
            reader = theirs['video_reader']
            starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
            # Timestamps are float32, and the middle is often the start of a frame.
            starts, seconds = starts - starts[0], seconds * (1 + 1e-6)
            theirs['frame_inds'] = np.searchsorted(starts, seconds, 'right') - 1
        ours, theirs = transform(ours), other(theirs)
    a, b = (results['inputs']['imgs'].double() for results in (ours, theirs))
    error = (a - b).square().flatten(1).mean(1).clamp(min=1e-2)
    return (10 * torch.log10(255**2 / error)).tolist()


def table(header: list[str], rows: list[list[str]]) -> None:
    print()
    for row in (header, ['---'] * len(header), *rows):
        print('| ' + ' | '.join(row) + ' |')


def report(cfg: Config, folders: dict[str, Path], videos: list[str], repeats: int) -> None:
    train, test = (open_datasets(cfg, split, folders, videos) for split in ('train', 'test'))
    seconds = measure(train, repeats)
    clock = {name: each[:, :, :-1].sum((1, 2)) for name, each in seconds.items()}  # of each round
    cpu = {name: each[:, :, -1].sum(1) for name, each in seconds.items()}
    sizes = {n: sum((f / video).stat().st_size for video in videos) for n, f in folders.items()}
    rows = []
    for name in folders:
        rate = len(videos) / np.median(clock[name])
        row = [name, f'{sizes[name] / sizes["originals"]:.0%}', f'{rate:.1f}']
        row += [f'{np.median(each["originals"] / each[name]):.1f}x' for each in (clock, cpu)]
        looks = [psnr(test['originals'], test[name], i) for i in range(len(videos))]
        rows.append([*row, f'{np.mean(looks):.1f} dB', f'{np.min(looks):.1f} dB'])
    header = ['videos', 'size', 'clips per second', 'against the originals', 'by CPU time']
    table([*header, 'mean PSNR', 'worst PSNR'], rows)

    print('\nTime of a clip, by transform:')
    means = [np.median(each[:, :, :-1].mean(1), 0) * 1e3 for each in seconds.values()]
    rows = [['all', *(f'{mean.sum():.1f} ms' for mean in means)]]
    for transform, *parts in zip(train['originals'].pipeline.transforms, *means):
        shares = (f'{part / mean.sum():.1%}' for part, mean in zip(parts, means))
        rows.append([type(transform).__name__, *shares])
    table(['transform', *folders], rows)

    print('\nA process of its own:')
    plain = open_datasets(cfg, 'train', folders, videos, timeout=None)
    rows = []
    for name in folders:
        seconds, clock, cpu = cost_of_isolation(plain[name], train[name], repeats)
        rows.append([name, f'{seconds * 1e3:.1f} ms', f'{clock:.3f}x', f'{cpu:.3f}x'])
    table(['videos', 'a clip in the same process', 'in its own', 'by CPU time'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('originals', type=Path, metavar='VIDEO_DIR', help='folder of the originals')
    text = 'folders of copies; without one, copies of both codecs are made for the moment'
    add('copies', type=Path, nargs='*', metavar='COPY_DIR', help=text)
    add('--config', default=str(ROOT / 'configs/vop_msrvtt.py'), help='config of the pipelines')
    add('--repeats', type=int, default=5)
    add('--videos', type=int, default=32, help='how many, evenly from the folder')
    args = parser.parse_args()
    cfg = open_config(args.config)
    init_default_scope('mmaction')
    cv2.setNumThreads(cfg.env_cfg.mp_cfg.opencv_num_threads)  # as in training
    torch.set_num_threads(1)

    found = find_videos(args.originals)
    with tempfile.TemporaryDirectory() as place:
        copies = {str(folder): folder for folder in args.copies}
        if not copies:
            found = set(spread(found, args.videos))
            copies = make_copies(args.originals, found, Path(place))
        common = found.intersection(*map(find_videos, copies.values()))
        videos = spread(common, args.videos)
        if not videos:
            raise UserError(f'No video of {args.originals} has a copy in all of {[*copies]}.')
        packages = (f'{p.__name__} {p.__version__}' for p in (decord, cv2, mmaction, torch))
        print(
            f'{len(videos)} videos, train pipeline of {Path(args.config).name}, one process, '
            f'{platform.processor() or platform.machine()}, {", ".join(packages)}. '
            f'Medians over {args.repeats} rounds in turn, and of their ratios.'
        )
        if found > common:
            print(f'{len(found - common)} left out, without a copy, such as {min(found - common)}.')
        report(cfg, dict(originals=args.originals, **copies), videos, args.repeats)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
