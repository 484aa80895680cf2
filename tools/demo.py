"""A web page to search an index of videos and watch what was found."""

import argparse
import html
import os
from urllib.parse import quote

# Nothing leaves this machine: neither statistics nor questions for updates.
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

from projects.vop.apis import VoPInferencer
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.search import Hit, VideoIndex

with exit_on_user_error():
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("The page needs Gradio: pip install -e '.[demo]'") from error

MOST = 24  # players on the page
GRID = (
    'display: grid; gap: 1em; align-items: end; overflow-wrap: anywhere; '
    'grid-template-columns: repeat(auto-fill, minmax(260px, 1fr))'
)
# All of one height, however tall the video.
PLAYER = 'width: 100%; aspect-ratio: 4 / 3; background: black'


def player(index: VideoIndex, rank: int, hit: Hit) -> str:
    """HTML of a video that was found.

    Not ``gr.Video``: where there is an ffmpeg, that converts whatever browsers
    do not play, which takes minutes, and before Gradio 6.23 wrote the result
    over the original or a video next to it.
    """
    path = index.path(hit.name)
    label = f'{rank}. {hit.name} ({hit.score:.3f})'
    if path.is_file():
        # Relative, for a page behind a proxy.
        source = f'gradio_api/file={quote(os.fsencode(path))}'
        video = f'<video src="{source}" controls preload="metadata" style="{PLAYER}"></video>'
    else:
        video, label = '', f'{label}: no longer there'
    # Names need not be text.
    label = os.fsencode(label).decode('utf-8', 'replace')
    return (
        f'<figure style="margin: 0"><figcaption>{html.escape(label)}</figcaption>{video}</figure>'
    )


def build_page(index: VideoIndex, inferencer: VoPInferencer, topk: int) -> gr.Blocks:
    """Make the page.

    Args:
        index (VideoIndex): What is searched.
        inferencer (VoPInferencer): The model that it was made with.
        topk (int): Videos to show at first.

    Returns:
        gr.Blocks: The page, to be launched.
    """

    def search(text: str, clip: str | None, count: int) -> tuple[str, str]:
        if clip:
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
        # Plain text: a query is not Markdown.
        found = gr.Textbox(show_label=False, container=False, interactive=False, elem_id='found')
        players = gr.HTML(elem_id='players')
        gr.on(
            [button.click, text.submit, clip.upload], search, [text, clip, count], [found, players]
        )
    return page


def serve(page: gr.Blocks, index: VideoIndex, **kwargs) -> tuple:
    """Launch the page with ``kwargs``, and with no file but the videos'."""
    return page.launch(
        allowed_paths=[str(index.video_dir)],
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
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 lets other machines in')
    parser.add_argument('--port', type=int, default=7860)
    args = parser.parse_args()
    if not 1 <= args.topk <= MOST:
        parser.error(f'--topk must be 1 to {MOST}')
    index = VideoIndex.open(args.index)
    inferencer = index.load_inferencer(args.device)
    inferencer.show_progress = False
    page = build_page(index, inferencer, args.topk)
    try:
        _, url, _ = serve(
            page,
            index,
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
