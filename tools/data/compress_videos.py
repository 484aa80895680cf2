"""Copy a data set's videos in a form that trains far faster.

A copy has few frames per second (--fps), a small picture (--short-side), no
sound, and only key frames: a reader decodes just the frames it wants. It lasts
as long as the original, whose frames in the middles of equal parts it has, each
on screen when it is in the original. Names and folders stay:

    python tools/data/compress_videos.py data/msrvtt data/msrvtt_small
    DATA_ROOT=data/msrvtt_small python tools/train.py configs/vop_msrvtt.py

SRC is a data root (.json files next to videos/), or any folder of videos. The
same command resumes after a stop: what is done is skipped, and what is newer
in SRC is copied again. A video that cannot be read, crashes the decoder or
takes too long (--timeout) is listed, and the exit code is 1.
"""

import argparse
import json
import math
import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from tqdm import tqdm
from transcode import CODECS, CopySettings, encode

from projects.vop import fileio
from projects.vop.errors import UserError, exit_on_user_error, reason_or_raise, shown
from projects.vop.isolation import check_timeout, map_isolated

SETTINGS = 'compress_videos.json'
UNREADABLE = 'unreadable.txt'


def check_folders(src: Path, dst: Path) -> None:
    """Refuse folders that would be read and written at once."""
    if dst.exists() and not dst.is_dir():
        raise UserError(f'{dst} is not a folder.')
    a, b = src.resolve(), dst.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(f'One of SRC, {a}, and DST, {b}, is in the other: put DST next to SRC.')


def list_files(folder: Path) -> list[str]:
    """Names of the files, without pipes and sockets, whose reading would block."""
    names = []
    for name, file in fileio.walk_files(folder):
        if os.path.isfile(file) or not os.path.exists(file):
            names.append(name)
        elif fileio.is_video(name):
            print(f'{shown(str(folder / name))} is left out: {fileio.why_no_file(file)}.')
    return names


def check_settings(dst: Path, settings: CopySettings) -> None:
    """Compare with what DST was made with.

    Only a folder that says what it is made with is written to: any other
    that holds videos or annotations may be someone's originals.
    """
    path = dst / SETTINGS
    if not path.is_file():
        for name in list_files(dst) if dst.is_dir() else []:
            if fileio.is_video(name) or name.lower().endswith('.json'):
                raise UserError(
                    f'{dst} holds {name}, but no {SETTINGS} that says how it was made. It may be '
                    'an original, so nothing is written there: give another DST.'
                )
        return
    try:
        made = CopySettings(**fileio.read_json(path))
    except TypeError as error:
        raise UserError(f'{path} is not what this tool writes ({error}): delete it.') from error
    if made != settings:
        raise UserError(
            f'{dst} holds copies made with\n  {shown(str(made), 500)}\nnot with\n  {settings}\n'
            f'Give those options again, or another DST, or delete {dst}.'
        )


def mtime_ns(path: Path) -> int:
    """When a file was modified; 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def write_copy(path: Path, data: bytes, time_ns: int) -> None:
    """Write a copy; ``time_ns`` is when its source was modified, looked up before it was read."""
    with fileio.atomic_write(path) as part:
        part.write_bytes(data)
        # Rounded up to 10 ms, as not every file system keeps more, and a
        # copy must not seem older than its source.
        time_ns = -(-time_ns // 10**7) * 10**7
        os.utime(part, ns=(time_ns, time_ns))


def copy_videos(
    videos: dict[Path, Path], settings: CopySettings, jobs: int, timeout: float, bar: tqdm
) -> dict[Path, str]:
    """Copy videos, each to the path it maps to, by processes that write nothing themselves.

    Returns:
        dict[Path, str]: Why videos are unreadable.
    """
    unreadable, times = {}, {}

    def begun() -> Iterator[Path]:
        for video in videos:
            times[video] = mtime_ns(video)
            yield video

    copy, jobs = partial(encode, settings=settings), max(1, min(jobs, len(videos)))
    # Few ahead, as a copy stays in memory until it is written.
    with closing(map_isolated(copy, begun(), jobs, timeout, 2 * jobs, ordered=False)) as copies:
        for video, future in copies:
            try:
                data = future.result()
            except Exception as error:
                unreadable[video] = reason_or_raise(error, video)
                videos[video].unlink(missing_ok=True)  # an older copy
            else:
                write_copy(videos[video], data, times[video])
            bar.update()
    return unreadable


def compress(src: Path, dst: Path, settings: CopySettings, jobs: int, timeout: float) -> int:
    """Copy a folder; count the videos that cannot be read."""
    check_folders(src, dst)
    files = list_files(src)
    videos = {src / name: dst / name for name in files if fileio.is_video(name)}
    if not videos:
        raise UserError(f'There is no video ({", ".join(fileio.VIDEO_SUFFIXES)}) in {src}.')
    check_settings(dst, settings)
    with fileio.file_lock(dst / '.lock'):
        if (dst / SETTINGS).is_file():
            for name in list_files(dst):
                if name.endswith('.part'):  # of a run that was killed
                    (dst / name).unlink()
        fileio.write_file(dst / SETTINGS, json.dumps(settings._asdict()))
        # The settings of an earlier copy are no part of a data set.
        texts = [name for name in files if name.lower().endswith('.json') and name != SETTINGS]
        for name in texts:
            try:
                text = (src / name).read_bytes()
            except OSError as error:
                raise UserError(f'{src / name} cannot be read: {error.strerror}.') from error
            fileio.write_file(dst / name, text)
        todo = {a: b for a, b in videos.items() if not 0 < mtime_ns(a) <= mtime_ns(b)}
        done = len(videos) - len(todo)
        with tqdm(total=len(videos), initial=done, unit='video', disable=None) as bar:
            unreadable = copy_videos(todo, settings, jobs, timeout, bar)
        print(
            f'{len(todo) - len(unreadable):,} videos copied, {done:,} done before, '
            f'{len(unreadable):,} unreadable; {len(texts):,} .json files; '
            f'{len(files) - len(videos) - len(texts):,} other files left alone.'
        )
        if pairs := [pair for pair in videos.items() if pair[0] not in unreadable]:
            before, after = (sum(path.stat().st_size for path in paths) for paths in zip(*pairs))
            print(
                f'{src}: {before / 1e6:,.1f} MB of videos, {dst}: {after / 1e6:,.1f} MB '
                f'({after / before:.0%}).'
            )
        list_unreadable(unreadable, dst)
    return len(unreadable)


def list_unreadable(unreadable: dict[Path, str], dst: Path) -> None:
    """Write the list of unreadable videos, and print it; without one, delete that of before."""
    path = dst / UNREADABLE
    path.unlink(missing_ok=True)
    if unreadable:
        lines = ''.join(f'{shown(str(v))}: {unreadable[v]}\n' for v in sorted(unreadable))
        fileio.write_file(path, lines)
        print(
            f'Unreadable (also in {path}):\n{lines}'
            f'Training on {dst} needs them there, readable, or '
            'train_dataloader.dataset.skip_bad_videos=True.'
        )


def main() -> None:
    """Read the arguments, and copy."""
    defaults = CopySettings()
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('src', type=Path, metavar='SRC', help='folder of the videos')
    parser.add_argument('dst', type=Path, metavar='DST', help='folder of the copies')
    numbers = dict(
        fps=(defaults.fps, 0.01, "frames per second, at most the original's"),
        short_side=(defaults.short_side, 16, "pixels, at most the original's"),
        min_frames=(defaults.min_frames, 1, 'of a short video, up to its own number'),
        jobs=(fileio.available_cores(), 1, 'processes'),
        timeout=(600.0, 0.1, 'seconds that copying one video may take'),
    )
    for name, (default, _, text) in numbers.items():
        option = f'--{name.replace("_", "-")}'
        text += ' (default: %(default)s)'
        parser.add_argument(option, type=type(default), default=default, help=text)
    text = 'h264 is smaller, but slower (default: %(default)s)'
    parser.add_argument('--codec', choices=list(CODECS), default=defaults.codec, help=text)
    ranges = (
        f'{name}: {codec.qualities[0]} to {codec.qualities[-1]}, {codec.quality} by default'
        for name, codec in CODECS.items()
    )
    text = f'the lower, the better; {"; ".join(ranges)}'
    parser.add_argument('--quality', type=int, default=argparse.SUPPRESS, help=text)
    args = parser.parse_args()
    for name, (_, least, _) in numbers.items():
        if not least <= getattr(args, name) < math.inf:
            parser.error(f'--{name.replace("_", "-")} must be a number of at least {least}')
    vars(args).setdefault('quality', CODECS[args.codec].quality)
    if args.quality not in CODECS[args.codec].qualities:
        parser.error(f'--quality of {args.codec} is out of its range, which --help gives')
    check_timeout(args.timeout)
    settings = CopySettings(*(getattr(args, name) for name in CopySettings._fields))
    try:
        unreadable = compress(args.src, args.dst, settings, args.jobs, args.timeout)
    except KeyboardInterrupt:
        print('\nStopped; the copies so far are complete. The same command resumes.')
        raise SystemExit(130) from None
    if unreadable:
        raise SystemExit(1)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
