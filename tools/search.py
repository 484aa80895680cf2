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
    query INDEX "a dog" "a cat" --video clip.mp4 these texts, ranked for it

`info` says what an index holds.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger

from projects.vop.engine.distributed import (
    add_launcher_arguments,
    check_launcher,
    tool,
    use_gloo_without_gpu,
)
from projects.vop.errors import VideoReadError, shown
from projects.vop.fileio import is_video, read_json
from projects.vop.search.read import FAILED, VideoIndex, check_fields, open_index_model

# What only one command needs is imported there: the others start sooner.
if TYPE_CHECKING:
    from projects.vop.apis import VoPInferencer
    from projects.vop.search import Summary


def at_least_one(text: str) -> int:
    """Read a number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be 1 or more, not {text}')
    return int(text)


def add_model(parser: argparse.ArgumentParser, why: str) -> None:
    """Add the arguments that name a model."""
    parser.add_argument('--config', help=f'config file, or METHOD_DATASET.py of one; {why}')
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
        '--batch-size',
        type=at_least_one,
        default=8,
        help='videos encoded at a time (default: %(default)s)',
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
        description='Texts alone find videos for each text; --video alone '
        'finds videos like it; both together rank the texts for that video.',
    )
    query.add_argument('index', type=Path, metavar='INDEX')
    query.add_argument('texts', nargs='*', metavar='TEXT')
    query.add_argument('--video', metavar='CLIP', help='a video file')
    query.add_argument(
        '--topk', type=at_least_one, default=5, help='how many to find (default: %(default)s)'
    )
    query.add_argument(
        '--exact',
        action='store_true',
        help='compare with every video, also where the index is approximate',
    )
    query.add_argument('--json', action='store_true', help='print JSON, for machines')
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
    if args.command == 'query':
        if not args.texts and args.video is None:
            query.error('say what to find: a text, or --video CLIP')
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
        # They exchange no tensors, and gloo notices at once if one ends.
        init_dist(launcher, backend='gloo')


def open_model(
    args: argparse.Namespace, show_progress: bool, index: VideoIndex | None = None
) -> 'VoPInferencer':
    """The model of the command line, or else of the index, which may be open."""
    if args.config is None:
        if index is None:
            from projects.vop.search.update import model_files

            config, own = model_files(args.index)
        else:
            config, own = index.config_file, index.state_file
        checkpoint = args.checkpoint or str(own)
        return open_index_model(config, checkpoint, args.device, show_progress, args.cfg_options)
    from projects.vop.apis import VoPInferencer
    from projects.vop.engine import merge_options, open_config

    cfg = open_config(args.config)
    merge_options(cfg, args.cfg_options)
    return VoPInferencer(cfg, args.checkpoint, args.device, show_progress)


def index(args: argparse.Namespace) -> None:
    """Make or update an index."""
    import torch.distributed as dist

    from projects.vop.search import update_index

    init_processes(args.launcher)
    first = not dist.is_initialized() or dist.get_rank() == 0
    inferencer = open_model(args, show_progress=first)
    try:
        summary = update_index(
            inferencer, args.video_dir, args.index, args.batch_size, args.num_workers
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
    # What is printed is the answer alone.
    for handler in MMLogger.get_current_instance().handlers:
        if getattr(handler, 'stream', None) is sys.stdout:
            handler.setStream(sys.stderr)
    index = VideoIndex.open(args.index)
    inferencer = open_model(args, False, index)
    index.check_model(inferencer.model_fingerprint)
    if args.video is None:
        asked = [dict(text=text) for text in args.texts]
        embeddings = inferencer.encode_texts(args.texts)
    else:
        asked = [dict(video=args.video)]
        encoded = inferencer.encode_videos([args.video])
        if encoded.failed:
            raise VideoReadError(f'{args.video} cannot be read: {encoded.failed[args.video]}')
        embeddings = encoded.embeddings
    if args.video is not None and args.texts:
        scores = (embeddings @ inferencer.encode_texts(args.texts).T)[0]
        best, order = scores.topk(min(args.topk, len(scores)))
        found = [
            [
                dict(text=args.texts[number], score=score)
                for score, number in zip(best.tolist(), order.tolist())
            ]
        ]
    else:
        found = [
            [dict(video=hit.name, path=str(index.path(hit.name)), score=hit.score) for hit in hits]
            for hits in index.search(embeddings, args.topk, args.exact)
        ]
        if index.ivf and not args.exact:
            print(index.ivf.settings, file=sys.stderr)
    answers = [dict(query, hits=hits) for query, hits in zip(asked, found)]
    if args.json:
        print(json.dumps(answers, indent=2))
    else:
        show(answers)


def show(answers: list[dict[str, Any]]) -> None:
    """Print answers for people."""
    for answer in answers:
        print(shown(answer.get('text') or answer['video']))
        for place, hit in enumerate(answer['hits'], 1):
            what = shown(hit.get('video') or hit['text'])
            print(f'{place:4}  {hit["score"]:7.4f}  {what}')


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
        check_fields(failed, unreadable)
        if unreadable:
            print(f'{len(unreadable):,} videos could not be read ({failed}).')


def main() -> None:
    """Run a command."""
    args = parse_args()
    dict(index=index, query=query, info=info)[args.command](args)


if __name__ == '__main__':
    with tool():
        main()
