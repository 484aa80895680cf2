"""Copy a data set's videos in a form that trains far faster.

A copy has few frames a second (--fps), a small picture (--short-side), no
sound, and key frames alone: none needs its neighbours, so a reader decodes
the frames it wants and no others. It lasts as long as the original, and each
frame shows what the original shows in the middle of its interval, so windows
of time stay right. Names and folders stay too:

    python tools/data/compress_videos.py data/msrvtt data/msrvtt_small
    DATA_ROOT=data/msrvtt_small python tools/train.py configs/vop_msrvtt.py

SRC is a data root (.json files beside videos/), so that DST is one too, or
any folder of videos. Give the same command again to go on after a stop: what
is done is skipped, and what is newer in SRC is done again. Each process holds
one copy in memory until it is complete.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import av
from common import SUFFIXES
from tqdm import tqdm
from transcode import CODECS, Settings, Unreadable, encode

SETTINGS = 'compress_videos.json'
UNREADABLE = 'unreadable.txt'
TEMPORARY = re.compile(r'\.compress_videos\.(.+)\.(\d+)\.tmp')


class WriteError(Exception):
    """A file cannot be written; the message says which and why."""


# Writing


def write(path: Path, data: bytes, mtime_ns: int | None = None) -> None:
    """Write a file that is complete or not there.

    Args:
        path (Path): Where to.
        data (bytes): What it holds.
        mtime_ns (int, optional): When the file it is made from was modified.
            Taken before that is read, so that a change in the meantime shows.
    """
    temporary = path.with_name(f'.compress_videos.{socket.gethostname()}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            if mtime_ns is not None:
                # Rounded up to 10 ms, as not every file system keeps more,
                # and a copy must not seem older than its source.
                mtime_ns = -(-mtime_ns // 10**7) * 10**7
                os.utime(temporary, ns=(mtime_ns, mtime_ns))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f'{path} cannot be written: {error.strerror}.') from error


def remove_temporaries(folder: Path) -> None:
    """Remove what killed runs on this machine left."""
    for path in folder.rglob('.compress_videos.*.tmp'):
        match = TEMPORARY.fullmatch(path.name)
        if match is None or match[1] != socket.gethostname():
            continue
        try:
            os.kill(int(match[2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:
            pass  # it lives, and is another user's


# Over a folder


def is_done(source: Path, copy: Path) -> bool:
    """Whether there is a copy that is no older than its source."""
    try:
        return source.stat().st_mtime_ns <= copy.stat().st_mtime_ns
    except OSError:
        return False


def find_files(folder: Path) -> list[Path]:
    """All files, relative to the folder; links to folders are followed."""

    def fail(error: OSError) -> None:
        raise SystemExit(f'{error.filename} cannot be read: {error.strerror}.')

    files = []
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        above = Path(root).parents[: len(Path(root).relative_to(folder).parts)]
        if os.path.realpath(root) in map(os.path.realpath, above):
            folders.clear()  # it is a link to a folder above it
            continue
        folders.sort()
        files += [Path(root, name).relative_to(folder) for name in sorted(names)]
    return files


class Task(NamedTuple):
    """A video to copy."""

    source: Path
    copy: Path
    settings: Settings


def perform(task: Task) -> str | None:
    """Copy a video.

    Returns:
        str | None: Why it cannot be read, if so.

    Raises:
        WriteError: If the copy cannot be written.
    """
    try:
        mtime_ns = task.source.stat().st_mtime_ns
        data = encode(task.source, task.settings)
    except Unreadable as error:
        return str(error)
    except (OSError, av.FFmpegError) as error:
        return error.strerror or str(error)
    except Exception as error:  # one video does not stop the others
        return f'{type(error).__name__}: {error}'
    write(task.copy, data, mtime_ns)
    return None


def end_with_parent() -> None:
    """End a worker as soon as the process that started it is gone."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def perform_in_pool(tasks: list[Task], jobs: int) -> Iterator[tuple[Task, str | None]]:
    """What ``perform`` says of each task, as they are done."""
    with ProcessPoolExecutor(
        min(jobs, len(tasks)), multiprocessing.get_context('spawn'), initializer=end_with_parent
    ) as pool:
        try:
            # Workers start here and inherit that Ctrl-C does not reach them;
            # it reaches this process, which ends them.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures = {pool.submit(perform, task): task for task in tasks}
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def perform_all(tasks: list[Task], jobs: int) -> Iterator[tuple[Task, str | None]]:
    """The same, where a task that crashes its process does not stop it."""
    while tasks:
        done = set()
        try:
            for task, reason in perform_in_pool(tasks, jobs):
                done.add(task)
                yield task, reason
            return
        except BrokenProcessPool:
            # It was one of those that ran: try these on their own.
            left = [task for task in tasks if task not in done]
            suspects, tasks = left[:jobs], left[jobs:]
        for task in suspects:
            try:
                yield from perform_in_pool([task], 1)
            except BrokenProcessPool:
                yield task, ('its process crashed or was killed, perhaps for want of memory')


def check_folders(src: Path, dst: Path) -> None:
    """Refuse folders that would be read and written at once."""
    if not src.is_dir():
        raise SystemExit(f'There is no folder {src}.')
    if dst.exists() and not dst.is_dir():
        raise SystemExit(f'{dst} is not a folder.')
    inside = src.resolve(), dst.resolve()
    if inside[0] == inside[1]:
        raise SystemExit(f'SRC and DST are the same folder, {inside[0]}.')
    for inner, outer in (inside, inside[::-1]):
        if outer in inner.parents:
            raise SystemExit(f'{inner} lies in {outer}: put DST beside SRC.')


def check_settings(dst: Path, settings: Settings) -> None:
    """Hold against what DST was made with, or note it there.

    Only a folder that says what it is made with is written to: any other
    that holds videos or annotations may be someone's originals.
    """
    path = dst / SETTINGS
    if path.is_file():
        try:
            made = Settings(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise SystemExit(
                f'{path} is not what this tool writes ({error}). Give '
                'another DST, or delete this one.'
            ) from error
        if made != settings:
            raise SystemExit(
                f'{dst} holds copies made with\n  {made}\nnot with\n  '
                f'{settings}\nGive those options again, or another DST, or '
                f'delete {dst}.'
            )
        return
    there = [
        file
        for file in (find_files(dst) if dst.is_dir() else [])
        if file.suffix.lower() in (*SUFFIXES, '.json')
    ]
    if there:
        raise SystemExit(
            f'{dst} holds {there[0]}, but no {SETTINGS} that says how it was '
            'made. It may be an original, so nothing is written there: give '
            'another DST.'
        )
    write(path, json.dumps(settings._asdict()).encode())


def in_megabytes(size: int) -> str:
    return f'{size / 1e6:,.1f} MB'


def copy_texts(files: list[Path], src: Path, dst: Path) -> None:
    """Copy annotation files as they are."""
    for file in files:
        try:
            data = (src / file).read_bytes()
        except OSError as error:
            raise SystemExit(f'{src / file} cannot be read: {error.strerror}.') from error
        copy = dst / file
        if not (copy.is_file() and copy.read_bytes() == data):
            write(copy, data)


def compress(src: Path, dst: Path, settings: Settings, jobs: int) -> int:
    """Copy a folder.

    Returns:
        int: How many videos could not be read.
    """
    check_folders(src, dst)
    files = find_files(src)
    videos = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not videos:
        raise SystemExit(f'There is no video ({", ".join(SUFFIXES)}) in {src}.')
    check_settings(dst, settings)
    remove_temporaries(dst)
    # The notes of a run are no part of a data set.
    texts = [file for file in files if file.suffix.lower() == '.json' and file != Path(SETTINGS)]
    copy_texts(texts, src, dst)

    tasks = [
        Task(src / file, dst / file, settings)
        for file in videos
        if not is_done(src / file, dst / file)
    ]
    unreadable = {}
    for task, reason in tqdm(
        perform_all(tasks, jobs),
        total=len(videos),
        initial=len(videos) - len(tasks),
        unit='video',
        disable=None,
    ):  # where there is no terminal
        if reason is not None:
            unreadable[task.source] = reason
            task.copy.unlink(missing_ok=True)  # of what was there before

    copied = [file for file in videos if src / file not in unreadable]
    sizes = [sum((root / file).stat().st_size for file in copied) for root in (src, dst)]
    print(
        f'{len(tasks) - len(unreadable):,} videos copied, '
        f'{len(videos) - len(tasks):,} done before, '
        f'{len(unreadable):,} unreadable; {len(texts):,} .json files; '
        f'{len(files) - len(videos) - len(texts):,} other files left alone.'
    )
    if copied:
        print(
            f'{src}: {in_megabytes(sizes[0])} of videos, {dst}: '
            f'{in_megabytes(sizes[1])} ({sizes[1] / sizes[0]:.0%}).'
        )
    report = dst / UNREADABLE
    if unreadable:
        lines = [f'{path}: {unreadable[path]}\n' for path in sorted(unreadable)]
        write(report, ''.join(lines).encode())
        print(f'Unreadable (also in {report}):')
        print(''.join(lines), end='')
        print(
            f'Training on {dst} needs them there, readable, or '
            'train_dataloader.dataset.skip_bad_videos=True.'
        )
    else:
        report.unlink(missing_ok=True)
    return len(unreadable)


def number(kind: type, least: float):
    """A type for argparse: a finite number, of at least so much."""

    def parse(text: str):
        value = kind(text)
        if not math.isfinite(value) or value < least:
            raise ValueError
        return value

    parse.__name__ = f'number of at least {least}:'
    return parse


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', type=Path, metavar='SRC')
    parser.add_argument('dst', type=Path, metavar='DST')
    parser.add_argument(
        '--fps',
        type=number(float, 0.01),
        default=3.0,
        help='frames a second, never more than the original has (default: %(default)g)',
    )
    parser.add_argument(
        '--short-side',
        type=number(int, 16),
        default=224,
        help='pixels of the shorter side, never more than the original has (default: %(default)s)',
    )
    parser.add_argument(
        '--codec',
        choices=list(CODECS),
        default='mjpeg',
        help='mjpeg is read faster, h264 is smaller (default: %(default)s)',
    )
    parser.add_argument(
        '--quality',
        type=int,
        help='lower is better and larger: the quantiser of mjpeg, 2 to 31 '
        f'(default: {CODECS["mjpeg"].quality}), or the constant rate factor '
        f'of h264, 0 to 51 (default: {CODECS["h264"].quality})',
    )
    parser.add_argument(
        '--min-frames',
        type=number(int, 1),
        default=24,
        help='a video so short that it would have fewer frames gets a higher '
        'rate, up to its own (default: %(default)s)',
    )
    parser.add_argument(
        '--jobs',
        type=number(int, 1),
        default=len(os.sched_getaffinity(0)),
        help='processes (default: one for each core, here %(default)s)',
    )
    args = parser.parse_args(argv)
    codec = CODECS[args.codec]
    if args.quality is None:
        args.quality = codec.quality
    if args.quality not in codec.qualities:
        parser.error(
            f'--quality of {args.codec} is {codec.qualities[0]} to '
            f'{codec.qualities[-1]}, not {args.quality}'
        )
    settings = Settings(*(getattr(args, name) for name in Settings._fields))
    again = 'Give the same command again to go on.'
    try:
        unreadable = compress(args.src, args.dst, settings, args.jobs)
    except KeyboardInterrupt:
        remove_temporaries(args.dst)
        print(f'\nStopped; the copies so far are complete. {again}')
        raise SystemExit(130) from None
    except WriteError as error:
        remove_temporaries(args.dst)
        raise SystemExit(
            f'{error} The copies so far are complete, and nothing is half written. {again}'
        ) from error
    raise SystemExit(1 if unreadable else 0)


if __name__ == '__main__':
    main()
