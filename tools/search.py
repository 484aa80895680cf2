"""Search one's own videos.

    python tools/search.py index VIDEO_DIR INDEX --config C --checkpoint K
    python tools/search.py query INDEX "a man cleans a pool" --topk 5
    python tools/search.py info INDEX

`index` makes the folder INDEX, and brings it up to date when it is run again:
only videos that are new or have changed are encoded then, and config and
checkpoint need not be given. It can be stopped at any time; the same command
resumes.

`query` finds videos. What is given says for what:

    query INDEX "a dog" "a cat"                  videos for each text
    query INDEX --video clip.mp4                 videos like that video
    query INDEX --image dog.jpg                  videos like that picture
    query INDEX "a dog" "a cat" --video clip.mp4 these texts, ranked for it
    query INDEX "a dog" night --weights 1 -0.5   videos for the sum of both

`info` says what an index holds.
"""

import argparse
import json
import math
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.config import Config, DictAction

from projects.vop.engine.distributed import (
    add_launcher_arguments,
    check_launcher,
    tool,
    use_gloo_without_gpu,
)
from projects.vop.errors import UserError, VideoReadError, log_to_stderr, shown
from projects.vop.fileio import is_video, read_json
from projects.vop.search import VideoIndex, combine, open_model
from projects.vop.search.read import clock
from projects.vop.search.store import FAILED, damaged

# What only one command needs is imported there: the others start sooner.
if TYPE_CHECKING:
    from projects.vop.search import Summary


def at_least_one(text: str) -> int:
    """Read a number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be 1 or more, not {text}')
    return int(text)


def seconds(text: str) -> float:
    """Read a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f'must be seconds above 0, not {text}')
    return number


def add_model(parser: argparse.ArgumentParser, why: str) -> None:
    """Add the arguments that name a model."""
    parser.add_argument('--config', help=f'config file, or its name; {why}')
    parser.add_argument(
        '--checkpoint',
        help='checkpoint file of that config; without it, the model as the config makes it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, such as model.clip.pretrained=ViT-B-32.pt',
    )
    parser.add_argument('--device', help='where to compute; a GPU, where there is one')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)

    index = commands.add_parser('index', help='make or update the index of a folder of videos')
    index.add_argument('video_dir', type=Path, metavar='VIDEO_DIR')
    index.add_argument('index', type=Path, metavar='INDEX')
    add_model(index, 'needed only the first time')
    index.add_argument(
        '--window',
        type=seconds,
        metavar='SECONDS',
        help='find moments of so many seconds (default: as the index; else whole videos)',
    )
    index.add_argument(
        '--stride',
        type=seconds,
        metavar='SECONDS',
        help='from the beginning of one moment to the next (default: half of --window)',
    )
    index.add_argument(
        '--batch-size',
        type=at_least_one,
        default=8,
        help='videos or moments encoded at a time (default: %(default)s)',
    )
    index.add_argument(
        '--num-workers',
        type=int,
        help='processes that read videos (default: one per core, 8 at most)',
    )
    add_launcher_arguments(index)

    query = commands.add_parser(
        'query',
        help='find videos for texts or for a video',
        description='Texts alone find videos for each text; --video or --image alone '
        'finds videos like it; with texts, the texts are ranked for it. With --weights all '
        'together are one query.',
    )
    query.add_argument('index', type=Path, metavar='INDEX')
    query.add_argument('texts', nargs='*', metavar='TEXT')
    query.add_argument('--video', metavar='CLIP', help='a video file')
    query.add_argument('--image', metavar='FILE', help='a picture')
    query.add_argument(
        '--weights',
        nargs='+',
        type=float,
        metavar='W',
        help='one for each text, then for --video and --image; below 0 is unlike it',
    )
    query.add_argument('--path', metavar='PATTERN', help="only such videos: 'pets/*.mp4'")
    query.add_argument('--min-duration', type=seconds, metavar='SECONDS', help='of the video')
    query.add_argument('--max-duration', type=seconds, metavar='SECONDS', help='of the video')
    query.add_argument(
        '--min-score',
        type=float,
        metavar='SCORE',
        help='leave out what has a lower score (default: for texts, as measured when the videos '
        'were indexed; else none)',
    )
    query.add_argument(
        '--topk', type=at_least_one, default=5, help='how many to find (default: %(default)s)'
    )
    query.add_argument(
        '--exact',
        action='store_true',
        help='compare with every moment, also where the index is approximate',
    )
    query.add_argument('--json', action='store_true', help='print JSON, for machines')
    query.add_argument(
        '--text-encoder',
        type=Path,
        metavar='FOLDER',
        help="of the index's own model, as tools/deployment/export_onnx.py writes it: texts are "
        'found sooner, as torch is not imported',
    )
    add_model(query, "by default the index's own model; another is refused")

    info = commands.add_parser('info', help='say what an index holds')
    info.add_argument('index', type=Path, metavar='INDEX')

    argv = sys.argv[1:]
    if '--video' in argv[:-1]:
        at = argv.index('--video')
        if is_video(argv[at + 1]):  # which is no option, even if it begins as one
            argv[at : at + 2] = [f'--video={argv[at + 1]}']
    args, more = parser.parse_known_args(argv)
    end = more.index('--') if '--' in more else len(more)
    if args.command == 'query' and not any(each.startswith('-') for each in more[:end]):
        args.texts += more[:end] + more[end + 1 :]  # those after an option
    elif more:
        parser.error(f'unrecognized arguments: {" ".join(more)}')
    if args.command == 'index' and args.stride is not None and args.window is None:
        index.error('--stride needs --window')
    if args.command == 'query':
        given = len(args.texts) + (args.video is not None) + (args.image is not None)
        if not given:
            query.error('say what to find: a text, --video CLIP or --image FILE')
        if args.weights is not None and len(args.weights) != given:
            query.error(f'{len(args.weights)} weights for {given} texts, videos and pictures')
        if args.weights is None and args.video is not None and args.image is not None:
            query.error('--video and --image together need --weights')
        if args.text_encoder is not None:
            others = ('video', 'image', 'config', 'checkpoint', 'cfg_options', 'device')
            for each in others:
                if getattr(args, each) is not None:
                    query.error(
                        f'--text-encoder embeds texts alone, without --{each.replace("_", "-")}'
                    )
        if not all(text.strip() for text in args.texts):
            query.error('a text to find has no words')
    return args


def init_processes(launcher: str) -> None:
    """Join the other processes of this run."""
    check_launcher(launcher)
    if launcher == 'none':
        return
    import torch.distributed as dist
    from mmengine.dist import init_dist

    use_gloo_without_gpu(Config(dict(launcher=launcher)))
    if not dist.is_initialized():
        # They exchange no tensors, and gloo notices at once if one ends, but must wait for the
        # slowest one.
        init_dist(launcher, backend='gloo', timeout=timedelta(days=7))


def named(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the model."""
    return dict(
        device=args.device,
        config=args.config,
        checkpoint=args.checkpoint,
        options=args.cfg_options,
    )


def index(args: argparse.Namespace) -> None:
    """Make or update an index."""
    from mmengine.dist import get_rank

    from projects.vop.search import model_files, update_index

    init_processes(args.launcher)
    first = get_rank() == 0
    files = None if args.config else model_files(args.index)
    inferencer = open_model(files, show_progress=first, **named(args))
    windows = args.window and (args.window, args.stride or args.window / 2)
    try:
        summary = update_index(
            inferencer,
            args.video_dir,
            args.index,
            args.batch_size,
            args.num_workers,
            windows=windows,
        )
    except KeyboardInterrupt as error:
        print('Stopped. What was encoded is saved; the same command resumes.')
        raise SystemExit(130) from error
    if first:
        report(summary, args.index)


def report(summary: 'Summary', path: Path) -> None:
    """Print what an update did."""
    print(
        f'{summary.added:,} videos added, {summary.changed:,} encoded '
        f'again, {summary.removed:,} removed, {summary.kept:,} kept, '
        f'{len(summary.failed):,} unreadable.'
    )
    for name, reason in list(summary.failed.items())[:10]:
        print(f'  {shown(name)}: {reason}')
    if summary.failed:
        print(f'{path / FAILED} lists what cannot be read; it is tried again by each run.')
    print(f'{shown(str(path))}: {shown(str(VideoIndex.open(path)))}')


def query(args: argparse.Namespace) -> None:
    """Print what is found."""
    log_to_stderr()
    index = VideoIndex.open(args.index)
    among = None
    if args.path or args.min_duration or args.max_duration:
        among = index.select(
            args.path or '*', args.min_duration or 0, args.max_duration or math.inf
        )
        if not among.any():
            raise UserError(f'{args.index} has no such video: see --path and the durations.')
    if args.text_encoder is not None:
        inferencer: Any = index.load_text_encoder(args.text_encoder)
    else:
        inferencer = index.load_inferencer(show_progress=False, **named(args))
    asked: list[dict[str, Any]] = [dict(text=text) for text in args.texts]
    embeddings = [inferencer.encode_texts(args.texts)] if args.texts else []
    if args.video is not None:
        encoded = inferencer.encode_videos([args.video])
        if encoded.failed:
            raise VideoReadError(f'{args.video} cannot be read: {encoded.failed[args.video]}')
        asked.append(dict(video=args.video))
        embeddings.append(encoded.embeddings)
    if args.image is not None:
        asked.append(dict(image=args.image))
        embeddings.append(inferencer.encode_images([args.image]))
    queries, min_score = np.concatenate([np.asarray(each) for each in embeddings]), args.min_score
    if args.weights is not None:
        asked = [dict(parts=[dict(each, weight=w) for each, w in zip(asked, args.weights)])]
        queries = combine(queries, args.weights)
    elif len(embeddings) == 2:
        scores = (queries[:-1] @ queries[-1]).tolist()
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        ranked = [dict(text=args.texts[i], score=scores[i]) for i in order]
        print_answers(args.json, [dict(asked[-1], hits=ranked[: args.topk])])
        return
    elif min_score is None and args.texts:
        min_score = index.threshold
        print(
            f'Scores below {min_score:.4f} are left out, which one in twenty pairs of a caption '
            'and a video here exceed; --min-score says otherwise.',
            file=sys.stderr,
        )
    if index.ivf and not args.exact:
        print(index.how, file=sys.stderr)
    score = -math.inf if min_score is None else min_score
    found = index.search(queries, args.topk, args.exact, score, among)
    print_answers(
        args.json,
        [
            dict(each, hits=[dict(hit.to_dict(), path=str(index.path(hit.name))) for hit in hits])
            for each, hits in zip(asked, found)
        ],
        with_times=index.window is not None,
    )


def print_answers(as_json: bool, answers: list[dict[str, Any]], with_times: bool = False) -> None:
    """Print answers for machines or for people."""
    if as_json:
        print(json.dumps(answers, indent=2))
        return
    for answer in answers:
        parts = answer.get('parts', [answer])
        kinds = ('text', 'video', 'image')
        names = [shown(next(part[kind] for kind in kinds if kind in part)) for part in parts]
        weights = [f'{part["weight"]:g} x ' if 'weight' in part else '' for part in parts]
        print(' + '.join(map(str.__add__, weights, names)))
        for place, hit in enumerate(answer['hits'], 1):
            when = f'  {clock(hit["start"])}-{clock(hit["end"])}' if with_times else ''
            print(f'{place:4}  {hit["score"]:7.4f}  {shown(hit.get("video") or hit["text"])}{when}')
        if not answer['hits']:
            print('      nothing found')


def info(args: argparse.Namespace) -> None:
    """Print what an index holds."""
    index = VideoIndex.open(args.index)
    size = sum(path.stat().st_size for path in index.files.values())
    print(shown(str(index)))
    print(
        f'{index.embeddings.shape[1]} numbers per embedding, '
        f'{size / 1e6:,.1f} MB, generation {index.generation}, model '
        f'{index.model_fingerprint[:12]}.'
    )
    failed = args.index / FAILED
    if failed.is_file():
        unreadable = read_json(failed)
        if not isinstance(unreadable, dict):
            raise damaged(failed, 'it is no object')
        if unreadable:
            print(f'{len(unreadable):,} videos could not be read ({failed}).')


def main() -> None:
    """Run a command."""
    args = parse_args()
    dict(index=index, query=query, info=info)[args.command](args)


if __name__ == '__main__':
    with tool():
        main()
