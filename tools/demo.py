"""A web page to search an index of videos and watch what was found."""

import argparse
import asyncio
import html
import io
import ipaddress
import math
import os
import signal
import socket
import stat
import string
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

# Nothing leaves this machine: neither statistics nor questions for updates.
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

from projects.vop.apis import VoPInferencer
from projects.vop.apis.reader import PICTURES
from projects.vop.errors import UserError, exit_on_user_error, reason_or_raise, shown
from projects.vop.fileio import as_file
from projects.vop.isolation import Isolated
from projects.vop.search import Hit, VideoIndex, combine
from projects.vop.search.read import clock

with exit_on_user_error():
    try:
        import gradio as gr
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
        from starlette.requests import Request
        from starlette.responses import FileResponse, PlainTextResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise UserError("The page needs Gradio: pip install -e '.[demo]'") from error

MOST = 24  # players on the page
ROWS = 1000  # of an answer to a program
UPLOAD_MB = 500  # the largest file that can be uploaded
FORM = 1 << 16  # bytes of the form around it
CELLS, CELL = 6, (96, 72)  # the small pictures of a strip
SECONDS = 20  # that reading a strip or a picture may take
# Players and strips are of one height, however tall the video.
CSS = f"""
#players .html-container {{ padding: 0 }}
.hits {{ display: grid; gap: 1.5em 1em }}
.hits {{ grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)) }}
.hits figure {{ margin: 0; overflow-wrap: anywhere }}
.hits video, .hits img {{ display: block; width: 100%; background: black }}
.hits video {{ aspect-ratio: 4 / 3 }}
.hits img {{ aspect-ratio: {CELLS * CELL[0]} / {CELL[1]} }}
"""
# By the suffix, whatever a file holds: no browser takes one for a page.
TYPES = {
    **dict.fromkeys(('.mp4', '.m4v'), 'video/mp4'),
    **dict.fromkeys(('.mpg', '.mpeg', '.vob'), 'video/mpeg'),
    **dict.fromkeys(('.ts', '.mts', '.m2ts'), 'video/mp2t'),
    **{'.avi': 'video/x-msvideo', '.mkv': 'video/x-matroska', '.webm': 'video/webm'},
    **{'.mov': 'video/quicktime', '.flv': 'video/x-flv', '.wmv': 'video/x-ms-wmv'},
    **{'.3gp': 'video/3gpp', '.ogv': 'video/ogg'},
}
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp')
LOOPBACK = ('localhost', '127.0.0.1', '::1')
HEADERS = {
    'X-Content-Type-Options': 'nosniff',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Referrer-Policy': 'no-referrer',
}
# Gradio's page has scripts in its HTML; nothing comes from, or goes to, elsewhere.
PAGE = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
FILE = "default-src 'none'; sandbox"


def player(index: VideoIndex, rank: int, hit: Hit) -> str:
    """HTML of a moment that was found.

    Not ``gr.Video``: where there is an ffmpeg, that converts whatever browsers
    do not play, which takes minutes, and before Gradio 6.23 wrote the result
    over the original or a video next to it.
    """
    video = index.moments['video'][hit.row]
    about, part, watch = f'score {hit.score:.3f}', '', ''
    if index.window is not None:
        about = f'{clock(hit.start)}-{clock(hit.end)}, {about}'
        part = f'#t={hit.start:g},{hit.end:g}'  # where it starts, and pauses
    if is_indexed(index, video):
        # Relative, for a page behind a proxy. Where there is no strip, alt="" shows nothing.
        watch = (
            f'<video src="videos/{video}{part}" controls preload="metadata"></video>'
            f'<img src="strips/{hit.row}.jpg" alt="">'
        )
    else:
        about = 'no longer there, or changed since it was indexed'
    caption = f'{rank}.&nbsp;{html.escape(shown(hit.name))}<br><small>{about}</small>'
    return f'<figure>{watch}<figcaption>{caption}</figcaption></figure>'


def is_indexed(index: VideoIndex, video: int) -> bool:
    """Whether a file is still the video that was indexed, by its size and time of change."""
    name = index.names[video]
    try:
        found = os.stat(index.path(name))
    except (OSError, ValueError):
        return False
    stamp = tuple(index.stamps[video].tolist())
    is_same = stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == stamp
    return is_same and Path(name).suffix.lower() in TYPES


def read_strip(path: str, start: float, end: float) -> bytes:
    """Make a JPEG of small pictures of a moment, side by side; see :class:`.Isolated`."""
    import decord  # which gets in the way of OpenCV's PNG, so only in a process of its own

    from projects.vop.datasets.transforms import frame_times

    if is_text(path):
        raise ValueError('it is text')
    decord.logging.set_level(decord.logging.QUIET)  # what is wrong was said when it was indexed
    reader = decord.VideoReader(as_file(path), num_threads=1)
    opened = dict(video_reader=reader, total_frames=len(reader), avg_fps=reader.get_avg_fps())
    times, duration = frame_times(dict(opened, filename=path))
    end = duration if math.isnan(end) else end
    middles = start + (np.arange(CELLS) + 0.5) / CELLS * (end - start)
    numbers = (np.searchsorted(times, middles, 'right') - 1).clip(0, len(times) - 1)
    strip = Image.new('RGB', (CELLS * CELL[0], CELL[1]))
    for place, frame in enumerate(reader.get_batch(numbers).asnumpy()):
        strip.paste(ImageOps.pad(Image.fromarray(frame), CELL), (place * CELL[0], 0))
    file = io.BytesIO()
    strip.save(file, 'JPEG')
    return file.getvalue()


def is_picture(path: str) -> bool:
    """Whether a file is a picture, which is decoded to know that it can be."""
    try:
        with Image.open(path, formats=PICTURES) as picture:
            picture.load()
    except UnidentifiedImageError:
        return False
    return True


def files_alone(take):
    """Let a component take what was uploaded, and fetch nothing from an address."""

    async def take_file(path) -> str | None:
        if '://' in str(path):
            raise gr.Error('Upload it as a file.')
        return await take(path)

    return take_file


def is_text(path: str) -> bool:
    """Whether a file begins as text: FFmpeg asks the addresses of a list that it takes for one."""
    with open(path, 'rb') as file:
        head = file.read(4)
    return not head.strip(string.printable.encode()) and head not in (b'RIFF', b'OggS')


def build_page(index: VideoIndex, inferencer: VoPInferencer, topk: int) -> gr.Blocks:
    """Make the page.

    Args:
        index (VideoIndex): What is searched.
        inferencer (VoPInferencer): The model that it was made with.
        topk (int): Videos to show at first.

    Returns:
        gr.Blocks: The page, to be served.
    """

    def search(text: str, topk: int = 10, min_score: float | None = None) -> list[dict[str, Any]]:
        """Find moments for a text: the best first, none below min_score (null: as measured)."""
        if not text.strip() or topk not in range(1, ROWS + 1):
            raise gr.Error(f'Give a text with words, and topk from 1 to {ROWS:,}.')
        score = index.threshold if min_score is None else min_score
        hits = index.search(inferencer.encode_texts([text]), topk, min_score=score)[0]
        return [dict(hit.to_dict(), video=shown(hit.name)) for hit in hits]

    def encode(upload: str) -> tuple[torch.Tensor, str]:
        # Read in processes of their own, so that no upload can end the server.
        with closing(Isolated(is_picture, SECONDS)) as checked:
            try:
                if checked(upload):
                    return inferencer.encode_images([upload]), 'your picture'
            except Exception as error:
                reason = reason_or_raise(error, upload)
                raise gr.Error(f'The picture cannot be read: {reason}') from error
        if is_text(upload):
            raise gr.Error('What you uploaded is neither a video nor a picture.')
        encoded = inferencer.encode_videos([upload], num_workers=1)
        if encoded.failed:
            raise gr.Error(f'The video cannot be read: {encoded.failed[upload]}')
        return encoded.embeddings, 'your video'

    def show(text: str, upload: str | None, count: int, is_strict: bool) -> str:
        parts = [encode(upload)] if upload else []
        if text.strip():
            parts.append((inferencer.encode_texts([text]), f'"{text.strip()}"'))
        if not parts:
            raise gr.Error('Type what you look for, or upload a video or a picture.')
        query, asked = parts[0][0], ' and '.join(name for _, name in parts)
        if len(parts) == 2:
            query = combine(torch.cat([each for each, _ in parts]), [1, 1])
        least = -math.inf if upload or not is_strict else index.threshold
        hits = index.search(query, int(count), min_score=least)[0]
        found = f'The {len(hits)} best of {len(index):,} for {asked}:'
        if not hits:
            found = f'Nothing found for {asked}: no score is {least:.3f} or more.'
        players = ''.join(player(index, rank, hit) for rank, hit in enumerate(hits, start=1))
        return f'<p id="found">{html.escape(found)}</p><div class="hits">{players}</div>'

    day = 24 * 3600  # after which uploads are deleted
    with gr.Blocks(title='Video search', analytics_enabled=False, delete_cache=(day, day)) as page:
        windows = '' if index.window is None else f'{len(index):,} moments in '
        gr.Markdown(f'# Video search\n{windows}{len(index.names):,} videos')
        with gr.Row(equal_height=True):
            with gr.Column(scale=2):
                text = gr.Textbox(
                    label='What do you look for?',
                    placeholder='a man cleans a pool',
                    autofocus=True,
                    elem_id='query',
                )
                count = gr.Slider(
                    1,
                    min(MOST, max(2, len(index))),
                    value=min(topk, len(index)),
                    step=1,
                    label='How many to show',
                )
                leave_out = f'Leave out scores of texts below {index.threshold:.3f}'
                is_strict = gr.Checkbox(True, label=leave_out)
                button = gr.Button('Search', variant='primary')
            upload = gr.File(
                label='and / or a video or picture',
                file_types=[*TYPES, *PICTURE_SUFFIXES],
                scale=1,
            )
        upload.async_move_resource_to_block_cache = files_alone(
            upload.async_move_resource_to_block_cache
        )
        players = gr.HTML(elem_id='players')
        gr.on(
            [button.click, text.submit, upload.upload],
            show,
            [text, upload, count, is_strict],
            players,
            api_visibility='undocumented',
        )
        gr.api(search, api_name='search')
    return page


class Guard:
    """Lets in what shows this page, and tells a browser what it gets.

    A page of another address may not ask here (``Origin``), nor under this one's
    name (``Host``, which DNS rebinding cannot change), and no file runs as a page.

    Args:
        app (Callable): The application, as of ASGI.
        uploads (str): The folder of what was uploaded.
        names (set[str]): Names of this machine in addresses.
        numbers (bool): Answer under any address of numbers, too, which is safe as it stands for
            no other machine.
    """

    def __init__(self, app: Callable, uploads: str, names: set[str], numbers: bool) -> None:
        self.app, self.uploads = app, f'/gradio_api/file={uploads}/'
        self.names, self.numbers = {name.lower() for name in names}, numbers

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answer, or refuse to."""
        if scope['type'] != 'http':  # the page opens no socket
            if scope['type'] == 'lifespan':
                await self.app(scope, receive, send)
            return

        async def send_marked(message: dict) -> None:
            if message['type'] == 'http.response.start':
                is_file = scope['path'].startswith(('/videos/', '/strips/', '/gradio_api/file'))
                policy = {'Content-Security-Policy': FILE if is_file else PAGE}
                MutableHeaders(scope=message).update(HEADERS | policy)
            await send(message)

        refusal = self.refuse(scope['method'], scope['path'], Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_marked)

    def refuse(self, method: str, path: str, headers: Headers) -> PlainTextResponse | None:
        """Make the answer to a request that is not let in."""
        host, origin = headers.get('host', '').lower(), headers.get('origin')
        if not self.is_own(host):
            return PlainTextResponse('Not a name of this page. See --allow-host.', 400)
        if origin is not None and origin.partition('://')[2].lower() != host:
            return PlainTextResponse('Another page may not ask here.', 403)
        if path.startswith('/gradio_api/file') and not path.startswith(self.uploads):
            return PlainTextResponse('Only what was uploaded is served here.', 403)
        limit = UPLOAD_MB if path == '/gradio_api/upload' else 1
        size = headers.get('content-length', '')
        # A body in chunks is of any length, whatever else is said.
        is_said = size.isdecimal() and 'transfer-encoding' not in headers
        if method == 'POST' and not (is_said and int(size) <= (limit << 20) + FORM):
            return PlainTextResponse(
                f'The request must have a Content-Length of at most {limit} MB.', 413
            )
        return None

    def is_own(self, host: str) -> bool:
        """Whether a ``Host`` is a name of this machine."""
        with suppress(ValueError):  # of what is no name and no number
            name = urlsplit(f'//{host}').hostname
            return name in self.names or (self.numbers and bool(ipaddress.ip_address(name)))
        return False


def serve(
    page: gr.Blocks,
    index: VideoIndex,
    names: Sequence[str] = (),
    numbers: bool = False,
    **kwargs,
) -> tuple:
    """Launch the page, with nothing but the indexed videos, their strips and what was uploaded.

    Args:
        page (gr.Blocks): Of :func:`build_page`.
        index (VideoIndex): What is searched.
        names (Sequence[str]): See :class:`Guard`; those of the loopback address are known.
        numbers (bool): Likewise.
        **kwargs: Of ``gr.Blocks.launch``.
    """
    strip_of = Isolated(read_strip, SECONDS)
    threads = ThreadPoolExecutor(2)  # each has a process that reads

    def path_of(video: int) -> Path:
        if not (video < len(index.names) and is_indexed(index, video)):
            raise HTTPException(404)
        return index.path(index.names[video])

    def video(request: Request) -> FileResponse:
        path = path_of(request.path_params['video'])
        return FileResponse(path, media_type=TYPES[path.suffix.lower()])

    async def strip(request: Request) -> Response:
        row = request.path_params['row']
        if row >= len(index):
            raise HTTPException(404)
        video, start, end = index.moments[row].tolist()
        path = os.fspath(path_of(video))
        reading = threads.submit(strip_of, path, start, end)
        try:
            jpeg = await asyncio.wrap_future(reading)
        except Exception as error:
            reason_or_raise(error, path)
            raise HTTPException(404) from error
        return Response(jpeg, 200, {'Cache-Control': 'private, max-age=60'}, 'image/jpeg')

    routes = [Route('/videos/{video:int}', video), Route('/strips/{row:int}.jpg', strip)]
    guard = Middleware(Guard, uploads=page.GRADIO_CACHE, names={*LOOPBACK, *names}, numbers=numbers)
    return page.launch(
        app_kwargs=dict(routes=routes, middleware=[guard]),
        blocked_paths=[str(index.video_dir), str(index.folder)],
        max_file_size=UPLOAD_MB << 20,
        share=False,
        enable_monitoring=False,
        mcp_server=False,
        run_history=False,
        ssr_mode=False,
        footer_links=[],
        css=CSS,
        theme=gr.themes.Default(
            font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']
        ),
        **kwargs,
    )


def main() -> None:
    """Serve the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('index', help='made by `tools/search.py index`')
    parser.add_argument('--device', help='a GPU where there is one, if not given')
    parser.add_argument(
        '--topk', type=int, default=6, help=f'videos to show at first, {MOST} at most'
    )
    parser.add_argument(
        '--host', default='127.0.0.1', help='where to listen; 0.0.0.0 lets other machines in'
    )
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument(
        '--allow-host',
        nargs='+',
        default=[],
        metavar='NAME',
        help='other names by which browsers know this machine, such as that of a proxy',
    )
    args = parser.parse_args()
    if not 1 <= args.topk <= MOST:
        parser.error(f'--topk must be 1 to {MOST}')
    index = VideoIndex.open(args.index)
    inferencer = index.load_inferencer(args.device)
    inferencer.show_progress = False
    names = [args.host, *args.allow_host]
    is_open = args.host not in LOOPBACK
    if is_open:
        names += [socket.gethostname(), socket.getfqdn()]
    # Only an exception lets the uploads be deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(dir=os.environ.get('GRADIO_TEMP_DIR')) as uploads:
        os.environ['GRADIO_TEMP_DIR'] = os.path.realpath(uploads)
        page = build_page(index, inferencer, args.topk)
        try:
            where = dict(server_name=args.host, server_port=args.port)
            started = serve(
                page, index, names, is_open, prevent_thread_lock=True, quiet=True, **where
            )
        except OSError as error:
            raise UserError(f'{error} Choose another with --port.') from error
        print(f'The page is at {started[1]} until you press Ctrl-C.', flush=True)
        page.block_thread()


if __name__ == '__main__':
    with exit_on_user_error():
        main()
