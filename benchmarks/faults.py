"""What damage does to a run: kills, damaged videos and annotation files, full disks.

Makes a small CLIP with random weights and videos of a moving square in a temporary folder, runs
the tools on them, and damages what they read and write. Prints a Markdown table per part;
docs/reliability.md has the results. For Linux.

    python benchmarks/faults.py                  # all parts
    python benchmarks/faults.py kills --count 5  # one, with fewer faults
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import av
import numpy as np
import torch
from mmengine.logging import MMLogger

from projects.vop.apis import VoPInferencer
from projects.vop.compat import fresh_instances
from projects.vop.datasets.annotations import read_annotations
from projects.vop.engine import open_config
from projects.vop.errors import UserError, VideoReadError
from projects.vop.models import open_towers
from projects.vop.registry import DATASETS
from projects.vop.search import VideoIndex

ROOT = Path(__file__).resolve().parents[1]
CLIP = dict(
    embed_dim=32,
    quick_gelu=True,
    vision_cfg=dict(image_size=32, patch_size=16, layers=3, width=64, head_width=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=48, heads=4, layers=3),
)
CONFIG = """
_base_ = '{root}/configs/vop_msrvtt.py'
model = dict(clip=dict(name='{folder}/clip.json', pretrained='{folder}/clip.pt'),
             visual=dict(num_frames=4))
_base_.train_pipeline[2].clip_len = _base_.test_pipeline[2].clip_len = 4
_base_.train_pipeline[5].scale = (32, 32)
_base_.test_pipeline[4].scale, _base_.test_pipeline[5].crop_size = (-1, 32), 32
data = dict(data_root='{folder}', data_prefix=dict(video='videos'))
loader = dict(num_workers=2, batch_size=4)
train_dataloader = dict(loader, dataset=dict(
    data, ann_file='train.json', pipeline=_base_.train_pipeline))
val_dataloader = dict(loader, dataset=dict(
    data, ann_file='train.json', pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1))
log_processor = dict(window_size=1)
randomness = dict(seed=0)
"""
# Of the part on damaged videos.
SKIPPING = """
train_dataloader['dataset']['skip_bad_videos'] = True
train_cfg['max_epochs'] = 1
"""
# Suffix, codec.
KINDS = [('mp4', 'libx264'), ('mkv', 'libx264'), ('avi', 'mpeg4'), ('webm', 'libvpx')]
KINDS += [('ts', 'mpeg2video'), ('mpg', 'mpeg1video')]


def write_video(path: Path, number: int, codec: str, frames: int = 48) -> None:
    """Write a video of a square that moves from left to right; the number is its color."""
    options = dict(movflags='+faststart') if path.suffix == '.mp4' else {}
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream(codec, rate=24)
        stream.width = stream.height = 96
        stream.pix_fmt = 'yuv420p'
        for i in range(frames):
            picture = np.random.default_rng(number).integers(0, 99, (96, 96, 3), np.uint8)
            picture[32:64, i : i + 32] = np.random.default_rng(number).integers(80, 255, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode())


def make_data(folder: Path, videos: int = 12) -> Path:
    """Write CLIP, videos, annotations and config into a folder; give the config."""
    (folder / 'videos').mkdir(parents=True)
    (folder / 'clip.json').write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    towers = open_towers(str(folder / 'clip.json'))
    state = {'logit_scale': towers.logit_scale}
    for name in ('visual', 'text'):
        state |= getattr(towers, name).state_dict(prefix=f'{name}.')
    torch.save(state, folder / 'clip.pt')
    captions = {}
    for number in range(videos):
        suffix, codec = KINDS[number % len(KINDS)]
        name = f'{number:02}.{suffix}'
        write_video(folder / 'videos' / name, number, codec)
        captions[name] = [f'square {number}', f'a square that is {number}']
    (folder / 'train.json').write_text(json.dumps(captions))
    config = folder / 'config.py'
    config.write_text(CONFIG.format(root=ROOT, folder=folder))
    return config


def start(log: Path, tool: str, *arguments) -> BaseProcess:
    """Start a tool in a fork of this process, which has imported all; it prints to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context('fork').Process(
        target=_run, args=(log, tool, [str(argument) for argument in arguments])
    )
    process.start()
    return process


def _run(log: Path, tool: str, arguments: list[str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, 'w', closefd=False) for number in (1, 2))
    sys.argv = [tool, *arguments]
    sys.path.insert(0, str(ROOT / Path(tool).parent))
    with fresh_instances():  # loggers, which print elsewhere
        runpy.run_path(str(ROOT / tool), run_name='__main__')


def run(log: Path, tool: str, *arguments) -> int:
    """Run a tool; give its exit code."""
    process = start(log, tool, *arguments)
    process.join()
    return process.exitcode


def print_table(*rows: list) -> None:
    """Print a Markdown table, whose first row is the heading."""
    rows = [rows[0], ['---'] * len(rows[0]), *rows[1:]]
    print('\n'.join(f'| {" | ".join(map(str, row))} |' for row in rows), flush=True)


def training_result(work_dir: Path) -> dict:
    """What a training and its resumptions came to."""
    losses, metrics = {}, {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for record in map(json.loads, path.read_text().splitlines()):
            if 'loss' in record:
                losses[record['step']] = record['loss']
            else:
                metrics[record['step']] = {k: v for k, v in record.items() if '2' in k}
    last, best = (sorted(work_dir.glob(f'{name}_*[0-9].pth'))[-1:] for name in ('epoch', 'best'))
    weights = {
        path.name: {
            name: value.tolist()
            for name, value in torch.load(path, weights_only=True)['state_dict'].items()
            if isinstance(value, torch.Tensor)
        }
        for path in last + best
    }
    return dict(losses=losses, metrics=metrics, weights=weights)


def index_result(folder: Path) -> dict:
    """What an index holds."""
    index = VideoIndex.open(folder)
    order = np.argsort(index.names)
    return dict(
        names=[index.names[i] for i in order],
        embeddings=np.asarray(index.embeddings)[order].round(5).tolist(),
    )


def kills(folder: Path, count: int) -> None:
    """Kill a training and an indexing at random moments, and start them again."""
    config = make_data(folder, videos=24)
    videos = folder / 'videos'
    tasks: dict[str, tuple[Callable, Callable]] = dict(
        training=(
            lambda out, again: ['train', config, '--work-dir', out, *['--resume'] * again],
            training_result,
        ),
        indexing=(
            lambda out, again: [
                *('search', 'index', videos, out, '--batch-size', 1, '--num-workers', 1),
                *(('--config', config, '--checkpoint', folder / 'training/epoch_4.pth')),
            ],
            index_result,
        ),
    )
    rows = []
    for name, (command, result_of) in tasks.items():
        tool, *arguments = command(folder / name, False)
        begin = time.monotonic()
        code = run(folder / 'log', f'tools/{tool}.py', *arguments)
        assert code == 0, (folder / 'log').read_text()
        seconds, whole = time.monotonic() - begin, result_of(folder / name)
        equal, resumed = dict.fromkeys(whole, 0), 0
        for number in range(count):
            out, log = folder / f'{name}-{number}', folder / f'{name}-{number}.log'
            tool, *arguments = command(out, False)
            process = start(log, f'tools/{tool}.py', *arguments)
            process.join(random.uniform(0, seconds))
            process.kill()
            process.join()
            tool, *arguments = command(out, True)
            if run(log, f'tools/{tool}.py', *arguments):
                print(f'{name}, kill {number}: {log.read_text()[-2000:]}')
                continue
            resumed += 1
            result = result_of(out)
            for key in whole:
                equal[key] += result[key] == whole[key]
        same = ', '.join(f'{key} {value}' for key, value in equal.items())
        rows.append([name, count, resumed, same])
    print_table(['killed', 'kills', 'ran to the end when started again', 'equal'], *rows)


def damage(data: bytes) -> bytes:
    """Damage a file as a disk, a network or an editor does."""
    size, kind = len(data), random.randrange(5)
    at = random.randrange(size)
    if kind == 0:  # cut
        return data[: max(1, int(size * random.uniform(0.07, 0.9)))]
    length = max(1, size // random.randint(4, 20))
    if kind == 1:  # a part is lost
        return data[:at] + data[at + length :]
    if kind == 2:  # a part is zeros
        return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
    changed = bytearray(data)
    for _ in range(random.randint(1, 30)):  # bytes are others, of the header alone or anywhere
        changed[random.randrange(min(size, 256) if kind == 3 else size)] = random.randrange(256)
    return bytes(changed)


def damaged_copies(folder: Path, names: list[str], count: int) -> dict[str, str]:
    """Write damaged copies of files beside them; give what each is a copy of."""
    source = {}
    for number in range(count):
        name = random.choice(names)
        data = (folder / name).read_bytes()
        while (broken := damage(data)) == data:
            pass
        copy = f'damaged{number:03}{Path(name).suffix}'
        (folder / copy).write_bytes(broken)
        source[copy] = name
    return source


def damaged_videos(folder: Path, count: int) -> None:
    """Let all that reads videos read damaged ones among whole ones."""
    config = make_data(folder / 'data')
    videos, ann_file = folder / 'data/videos', folder / 'data/train.json'
    captions = json.loads(ann_file.read_text())
    source = damaged_copies(videos, list(captions), count)
    captions |= {name: ['a square'] for name in source}
    ann_file.write_text(json.dumps(captions))
    config.write_text(f'{config.read_text()}{SKIPPING}')
    commands = dict(
        training=('train.py', config, '--work-dir', folder / 'run', '--no-validate'),
        checking=('data/check_videos.py', ann_file, '--config', config),
        indexing=('search.py', 'index', videos, folder / 'index', '--config', config),
        copying=('data/compress_videos.py', folder / 'data', folder / 'copies'),
    )
    codes, logs = {}, {}
    for name, (tool, *arguments) in commands.items():
        codes[name] = run(folder / f'{name}.log', f'tools/{tool}', *arguments)
        logs[name] = (folder / f'{name}.log').read_text(errors='replace')
    named = {
        name: {video for video in captions if f'/{video}' in log} for name, log in logs.items()
    }
    used = dict(
        # Of these two, what they do not name as left out.
        training={v for v in captions if f'/{v} cannot' not in logs['training']},
        checking={v for v in captions if f'/{v}: ' not in logs['checking']},
        indexing=set(VideoIndex.open(folder / 'index').names),
        copying={path.name for path in (folder / 'copies/videos').iterdir()},
    )
    # And how many they do not leave out, by their own count.
    skipped = re.findall(r'(\d+) of \d+ videos skipped so far', logs['training'])
    last = logs['checking'].splitlines()[-1].replace(',', '')  # N videos read; N cannot be used.
    read, bad = map(int, re.findall(r'\d+', last))
    counts = dict(training=len(captions) - max(map(int, skipped), default=0), checking=read - bad)

    # Here, the log holds the signs of damage in what is used.
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore
    MMLogger.get_current_instance().addHandler(handler)
    inferencer = VoPInferencer(config, device='cpu', show_progress=False)
    encoded = inferencer.encode_videos([videos / name for name in captions])
    used['inference'] = {Path(path).name for path in encoded.paths}
    named['inference'] = {name for name in captions if f'/{name}' in ' '.join(messages)}

    messages.clear()
    test = DATASETS.build(open_config(config).test_dataloader.dataset)
    frames, used['testing'] = {}, set()
    for number, name in enumerate(captions):
        try:
            frames[name] = test[number]['inputs']['imgs'].float()
            used['testing'].add(name)
        except VideoReadError as error:
            messages.append(str(error))
    named['testing'] = {name for name in captions if f'/{name}' in ' '.join(messages)}
    changed = {
        name
        for name, whole in source.items()
        if name in frames and (frames[name] - frames[whole]).abs().mean() > 5
    }

    rows = []
    for name in used:
        silent = len(captions.keys() - used[name] - named[name])
        silent += abs(len(used[name]) - counts.get(name, len(used[name])))
        rows.append(
            [
                *(name, codes.get(name, '-')),
                *(len(source.keys() & kind) for kind in (named[name] - used[name], named[name])),
                len(source.keys() & (used[name] - changed - named[name])),
                len((used[name] & changed) - named[name]),
                *(silent, len(named[name] - source.keys())),
            ]
        )
    heading = ['read by', 'exit code', 'named and left out', 'named', 'not named, same pictures']
    print_table([*heading, 'not named, other pictures', 'neither', 'whole ones named'], *rows)


def annotations(folder: Path, count: int) -> None:
    """Read damaged annotation files, as a training does and as a converter does."""
    captions = {f'video{i}.mp4': [f'"{i}" does what,', f'{i} does'] for i in range(20)}
    lines = ['video,caption', *(f'video{i}.mp4,"{i} does what, it says"' for i in range(20))]
    (folder / 'train.json').write_text(json.dumps(captions, indent=1))
    (folder / 'captions.csv').write_text('\n'.join(lines))
    (folder / 'videos').mkdir()
    for name in captions:
        (folder / 'videos' / name).touch()
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    here = os.getcwd()
    os.chdir(folder)  # where the converter makes data/NAME and its config
    sys.path.insert(0, str(ROOT / 'tools/data'))

    def convert(path: Path) -> None:
        sys.argv = ['custom.py', str(folder / 'videos'), str(path), path.stem]
        runpy.run_path(str(ROOT / 'tools/data/custom.py'))['main']()

    rows = []
    for name, read in dict({'train.json': read_annotations, 'captions.csv': convert}).items():
        outcomes: Counter = Counter()
        for copy in damaged_copies(folder, [name], count // 2):
            try:
                with open(os.devnull, 'w') as null, redirect_stdout(null), redirect_stderr(null):
                    found = read(folder / copy)
                # A changed letter of a caption is not to be told from another caption.
                whole = found is None or found == read(folder / name)
                outcomes['read' if whole else 'read with other captions'] += 1
            except UserError as error:
                outcomes['refused by name' if copy in str(error) else f'unnamed: {error}'] += 1
            except Exception as error:
                outcomes[f'{type(error).__name__}: {error}'] += 1
            (folder / copy).unlink()
        rows.append([name, ', '.join(f'{key} {value}' for key, value in outcomes.items())])
    os.chdir(here)
    print_table(['damaged copies of', 'outcome'], *rows)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory, which takes root."""
    folder.mkdir()
    options = f'size={size}'
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', folder], check=True)


def disks(folder: Path, count: int) -> None:
    """Let the disk be full at random points of what writes, then make room and start again."""
    config = make_data(folder / 'data')
    commands = dict(
        training=('train.py', config, '--work-dir', '{}/run'),
        report=('test.py', config, '--work-dir', '{}/run', '--report', '{}/page'),
        dump=('test.py', config, '--work-dir', '{}/run', '--dump', '{}/dump.pkl'),
        indexing=('search.py', 'index', config.parent / 'videos', '{}/index', '--config', config),
        copying=('data/compress_videos.py', config.parent, '{}/copies'),
    )
    rows = []
    for name, (tool, *arguments) in commands.items():
        (folder / f'{name}-whole').mkdir()
        given = [str(argument).format(folder / f'{name}-whole') for argument in arguments]
        assert not run(folder / 'log', f'tools/{tool}', *given), (folder / 'log').read_text()
        files = [path for path in (folder / f'{name}-whole').rglob('*') if path.is_file()]
        size = sum(4096 * -(-path.stat().st_size // 4096) for path in files)
        outcomes: Counter = Counter()
        for number in range(count):
            log = folder / f'{name}-{number}.log'
            given = max(4096, int(size * random.uniform(0, 0.95)))
            with small_disk(folder / f'{name}-{number}', given) as disk:
                command = f'tools/{tool}', *(str(argument).format(disk) for argument in arguments)
                code = run(log, *command)
                last = log.read_text(errors='replace').strip().splitlines()[-1]
                outcomes[f'exit code {code}'] += 1
                outcomes['named in the last line'] += 'No space left' in last and str(disk) in last
                larger = f'remount,size={10 * size + 2**20}'
                subprocess.run(['mount', '-o', larger, disk], check=True)
                again = run(log, *command, *['--resume'] * (name == 'training'))
                outcomes['done when there was room'] += again == 0
                if again or 'No space left' not in last:
                    print(f'{name}, {given} bytes: exit code {code}, then {again}: {last[-400:]}')
        rows.append([name, f'{size / 1000:,.0f}', *(outcomes_text(outcomes),)])
    print_table(['a disk that is full while', 'kB in total', 'outcome'], *rows)


def outcomes_text(outcomes: Counter) -> str:
    """Counts as text."""
    return ', '.join(f'{key}: {value}' for key, value in sorted(outcomes.items()) if value)


def ranks(folder: Path, count: int) -> None:
    """Kill one of two processes of a training, and resume it."""
    config = make_data(folder)
    rows = []
    for number in range(count):
        out, log = folder / f'run{number}', folder / f'{number}.log'
        command = [ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', out]
        env = {**os.environ, 'PORT': str(random.randint(20000, 30000))}
        with open(log, 'w') as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
        while 'Epoch(train) [1]' not in log.read_text() and process.poll() is None:
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(random.uniform(0, 1))
        [launcher] = children(process.pid)
        os.kill(random.choice(children(launcher)), signal.SIGKILL)
        begin = time.monotonic()
        code = process.wait(300)
        seconds = time.monotonic() - begin
        with open(log, 'a') as file:
            again = subprocess.call([*command, '--resume'], stdout=file, stderr=file, env=env)
        rows.append([number, f'{seconds:.0f}', code, again])
    print_table(['kill', 'seconds until all had ended', 'exit code', 'of resuming'], *rows)


def children(pid: int) -> list[int]:
    """Processes that a process started and that are still there."""
    tasks = Path(f'/proc/{pid}/task').iterdir()
    return [int(child) for task in tasks for child in (task / 'children').read_text().split()]


def resident(pid: int) -> int:
    """Bytes of a process and those that it started, shared pages by their share."""
    total = 0
    with suppress(OSError):
        text = Path(f'/proc/{pid}/smaps_rollup').read_text()
        total += 1024 * int(text.split('\nPss:')[1].split()[0])
        total += sum(map(resident, children(pid)))
    return total


def memory(folder: Path, count: int) -> None:
    """Watch the memory of many steps and of many videos."""
    config = make_data(folder)
    for number in range(12, count):
        name = f'{number % 12:02}.{KINDS[number % len(KINDS)][0]}'
        (folder / f'videos/{number:03}{Path(name).suffix}').hardlink_to(folder / 'videos' / name)
    steps = [f'train_cfg.max_epochs={count // 6}', 'train_cfg.val_interval=1000']
    commands = dict(
        training=('train.py', config, '--work-dir', folder / 'run', '--cfg-options', *steps),
        indexing=('search.py', 'index', folder / 'videos', folder / 'index', '--config', config),
    )
    rows = []
    for name, (tool, *arguments) in commands.items():
        process, seen = start(folder / 'log', f'tools/{tool}', *arguments), []
        while process.is_alive():
            seen.append(resident(process.pid) / 2**20)
            time.sleep(0.1)
        assert not process.exitcode, (folder / 'log').read_text()
        middle, last = seen[len(seen) // 3 : 2 * len(seen) // 3], seen[2 * len(seen) // 3 : -5]
        rows.append([name, count, *(f'{statistics.median(part):.0f}' for part in (middle, last))])
    heading = ['run', 'steps or videos', 'MiB in the middle third', 'MiB in the last third']
    print_table(heading, *rows)


def captions(folder: Path, count: int) -> None:
    """Start a data set of many captions."""
    command = [sys.executable, ROOT / 'benchmarks/annotations.py', '--captions', str(count)]
    subprocess.run([*command, '--videos', str(count // 10)], check=True)


PARTS = dict(
    kills=(kills, 20),
    videos=(damaged_videos, 200),
    annotations=(annotations, 200),
    disks=(disks, 5),
    ranks=(ranks, 3),
    memory=(memory, 300),
    captions=(captions, 1_000_000),
)


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)}')
    parser.add_argument('--count', type=int, help='how many faults (default: as the docs say)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    for name in args.parts or PARTS:
        part, count = PARTS[name]
        random.seed(args.seed)
        print(f'\n{part.__doc__}\n')
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder), args.count or count)


if __name__ == '__main__':
    main()
