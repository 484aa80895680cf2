"""A web page to search an index of videos and watch what was found."""

import argparse
import html
import ipaddress
import os
import signal
import socket
import stat
import string
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

# Nothing leaves this machine: neither statistics nor questions for updates.
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

from projects.vop.apis import VoPInferencer
from projects.vop.errors import UserError, exit_on_user_error, shown
from projects.vop.search import Hit, VideoIndex

with exit_on_user_error():
    try:
        import gradio as gr
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.exceptions import HTTPException
        from starlette.middleware import Middleware
        from starlette.requests import Request
        from starlette.responses import FileResponse, PlainTextResponse
        from starlette.routing import Route
    except ImportError as error:
        raise UserError("The page needs Gradio: pip install -e '.[demo]'") from error

MOST = 24  # players on the page
CLIP_MB = 500  # the largest clip that can be uploaded
FORM = 1 << 16  # bytes of the form around it
GRID = (
    'display: grid; gap: 1em; align-items: end; overflow-wrap: anywhere; '
    'grid-template-columns: repeat(auto-fill, minmax(260px, 1fr))'
)
# All of one height, however tall the video.
PLAYER = 'width: 100%; aspect-ratio: 4 / 3; background: black'
# By the suffix, whatever a file holds: no browser takes one for a page.
TYPES = {
    **dict.fromkeys(('.mp4', '.m4v'), 'video/mp4'),
    **dict.fromkeys(('.mpg', '.mpeg', '.vob'), 'video/mpeg'),
    **dict.fromkeys(('.ts', '.mts', '.m2ts'), 'video/mp2t'),
    **{'.avi': 'video/x-msvideo', '.mkv': 'video/x-matroska', '.webm': 'video/webm'},
    **{'.mov': 'video/quicktime', '.flv': 'video/x-flv', '.wmv': 'video/x-ms-wmv'},
    **{'.3gp': 'video/3gpp', '.ogv': 'video/ogg'},
}
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
    """HTML of a video that was found.

    Not ``gr.Video``: where there is an ffmpeg, that converts whatever browsers
    do not play, which takes minutes, and before Gradio 6.23 wrote the result
    over the original or a video next to it.
    """
    label = f'{rank}. {hit.name} ({hit.score:.3f})'
    row = index.names.index(hit.name)
    if is_indexed(index, row):
        # Relative, for a page behind a proxy.
        video = f'<video src="videos/{row}" controls preload="metadata" style="{PLAYER}"></video>'
    else:
        video, label = '', f'{label}: no longer there, or changed since it was indexed'
    caption = html.escape(shown(label))
    return f'<figure style="margin: 0"><figcaption>{caption}</figcaption>{video}</figure>'


def is_indexed(index: VideoIndex, row: int) -> bool:
    """Whether a file is still the video that was indexed, by its size and time of change."""
    name = index.names[row]
    try:
        found = os.stat(index.path(name))
    except (OSError, ValueError):
        return False
    stamp = tuple(index.stamps[row, 1:].tolist())
    is_same = stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == stamp
    return is_same and Path(name).suffix.lower() in TYPES


def files_alone(take):
    """Let a component take what was uploaded, and fetch nothing from an address."""

    async def take_file(path) -> str | None:
        if '://' in str(path):
            raise gr.Error('Upload the clip as a file.')
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

    def search(text: str, clip: str | None, count: int) -> tuple[str, str]:
        if clip:
            if is_text(clip):
                raise gr.Error('The clip is not a video.')
            # A worker reads it, so that no upload can end the server.
            encoded = inferencer.encode_videos([clip], num_workers=1)
            if encoded.failed:
                raise gr.Error(f'The clip cannot be read: {encoded.failed[clip]}')
            query, asked = encoded.embeddings, 'your clip'
        elif text and text.strip():
            query, asked = inferencer.encode_texts([text]), f'"{text.strip()}"'
        else:
            raise gr.Error('Type what you look for, or give a clip.')
        hits = index.search(query, int(count))[0]
        found = f'The {len(hits)} best of {len(index):,} for {asked}:'
        players = ''.join(player(index, rank, hit) for rank, hit in enumerate(hits, start=1))
        return found, f'<div style="{GRID}">{players}</div>'

    day = 24 * 3600  # after which uploads are deleted
    with gr.Blocks(title='Video search', analytics_enabled=False, delete_cache=(day, day)) as page:
        gr.Markdown(f'# Video search\n{len(index):,} videos')
        with gr.Row():
            with gr.Column(scale=3):
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
                    label='Videos to show',
                )
                button = gr.Button('Search', variant='primary')
            clip = gr.Video(
                label='or a clip, to find videos like it', sources=['upload'], height=220, scale=1
            )
        clip.async_move_resource_to_block_cache = files_alone(
            clip.async_move_resource_to_block_cache
        )
        # Plain text: a query is not Markdown.
        found = gr.Textbox(show_label=False, container=False, interactive=False, elem_id='found')
        players = gr.HTML(elem_id='players')
        gr.on(
            [button.click, text.submit, clip.upload], search, [text, clip, count], [found, players]
        )
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
                is_file = scope['path'].startswith(('/videos/', '/gradio_api/file'))
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
        limit = CLIP_MB if path == '/gradio_api/upload' else 1
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
    """Launch the page, with no file but the indexed videos and what was uploaded.

    Args:
        page (gr.Blocks): Of :func:`build_page`.
        index (VideoIndex): What is searched.
        names (Sequence[str]): See :class:`Guard`; those of the loopback address are known.
        numbers (bool): Likewise.
        **kwargs: Of ``gr.Blocks.launch``.
    """

    def video(request: Request) -> FileResponse:
        row = request.path_params['row']
        if not (row < len(index) and is_indexed(index, row)):
            raise HTTPException(404)
        path = index.path(index.names[row])
        return FileResponse(path, media_type=TYPES[path.suffix.lower()])

    guard = Middleware(Guard, uploads=page.GRADIO_CACHE, names={*LOOPBACK, *names}, numbers=numbers)
    return page.launch(
        app_kwargs=dict(routes=[Route('/videos/{row:int}', video)], middleware=[guard]),
        blocked_paths=[str(index.video_dir), str(index.folder)],
        max_file_size=CLIP_MB << 20,
        share=False,
        enable_monitoring=False,
        mcp_server=False,
        run_history=False,
        ssr_mode=False,
        footer_links=[],
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
            _, url, _ = serve(
                page,
                index,
                names,
                is_open,
                server_name=args.host,
                server_port=args.port,
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError as error:
            raise UserError(f'{error} Choose another with --port.') from error
        print(f'The page is at {url} until you press Ctrl-C.', flush=True)
        page.block_thread()


if __name__ == '__main__':
    with exit_on_user_error():
        main()
