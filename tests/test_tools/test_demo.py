"""The page of tools/demo.py, in a real browser and by what it answers."""

import http.client
import http.server
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import av
import numpy as np
import pytest
import torch
from helpers import free_port
from PIL import Image

from projects.vop.apis import VoPInferencer, Windows
from projects.vop.errors import UserError
from projects.vop.fileio import VIDEO_SUFFIXES
from projects.vop.search import Hit, VideoIndex, combine, update_index

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
ROOT = Path(__file__).resolve().parents[2]
TEXT = 'caption <b>1</b> of ${3} {{value}}'
ODD = 'cats & <b>dogs</b>/2 #1?%41 "é".mp4'


@pytest.fixture(scope='module', autouse=True)
def _gradio():
    """Here, as each process of the tests imports each file, and this takes seconds."""
    pytest.importorskip('gradio')


def load_demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def index(retrieval_config, video_folder, tmp_path_factory) -> VideoIndex:
    folder = tmp_path_factory.mktemp('demo')
    for number in range(5):
        path = folder / 'videos' / (ODD if number == 2 else f'{number}.mp4')
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video_folder / f'{number}.mp4', path)
    inferencer = VoPInferencer(retrieval_config(), device='cpu', show_progress=False)
    # Each lasts 2.5 s, and has three moments.
    update_index(
        inferencer, folder / 'videos', folder / 'index', num_workers=1, windows=Windows(1, 1)
    )
    for name in ('page.html', 'pic.svg', '.hidden.mp4', 'notes.txt', 'later.mp4'):
        (folder / 'videos' / name).write_text('<script>alert(1)</script>')
    return VideoIndex.open(folder / 'index')


@pytest.fixture(scope='module')
def served(index, tmp_path_factory):
    """The page on a server."""
    demo, inferencer = load_demo(), index.load_inferencer('cpu', show_progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GRADIO_TEMP_DIR', str(tmp_path_factory.mktemp('uploads')))
        built = demo.build_page(index, inferencer, topk=3)
        url = demo.serve(built, index, prevent_thread_lock=True, quiet=True)[1]
        yield SimpleNamespace(url=url, inferencer=inferencer, uploads=built.GRADIO_CACHE)
        built.close()


@pytest.fixture
def request_(served):
    """Asks the server; gives status, headers and body."""

    def ask(path, method='GET', body=None, **headers):
        connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        connection.request(method, path, body, headers, encode_chunked=isinstance(body, list))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body

    return ask


@pytest.fixture(scope='module')
def page(index, served):
    """The page in a browser, and the requests it made."""
    if not BROWSER:
        pytest.skip('no Chromium on this machine')
    url, inferencer = served.url, served.inferencer
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        tab, requests = browser.new_page(), []
        tab.set_default_timeout(120_000)  # of a loaded machine
        tab.on('request', lambda request: requests.append(request.url))
        tab.goto(url)
        yield SimpleNamespace(tab=tab, url=url, requests=requests, inferencer=inferencer)
        browser.close()


def ask(tab, text):
    tab.locator('#query').get_by_role('textbox').fill(text)
    tab.get_by_role('button', name='Search', exact=True).click()


def shown_on(tab, count):
    """The text of the page once so many videos can be played."""
    loaded = "[...document.querySelectorAll('video')].filter(v => v.readyState > 1).length"
    tab.wait_for_function(f'{loaded} == {count}')
    return tab.locator('body').inner_text()


@pytest.mark.slow
def test_type_a_query_and_watch_what_was_found(page, index):
    page.tab.get_by_role('checkbox').uncheck()
    ask(page.tab, TEXT)
    shown = shown_on(page.tab, 3)
    hits = index.search(page.inferencer.encode_texts([TEXT]), 3)[0]
    assert f'The 3 best of 15 for "{TEXT}"' in shown
    for rank, (video, hit) in enumerate(zip(page.tab.locator('video').all(), hits), start=1):
        start, end = round(hit.start), round(hit.end)
        assert f'{rank}.\xa0{hit.name}\n0:0{start}-0:0{end}, score {hit.score:.3f}' in shown
        number = index.names.index(hit.name)
        assert video.get_attribute('src') == f'videos/{number}#t={hit.start:g},{hit.end:g}'
        # It really plays, from where the moment begins to where it ends.
        assert video.evaluate('v => v.currentTime') == pytest.approx(hit.start, abs=0.01)
        play = 'v => new Promise(done => { v.onpause = () => done(v.currentTime); v.play() })'
        assert video.evaluate(play) == pytest.approx(hit.end, abs=0.4)
    wide = "[...document.querySelectorAll('#players img')].filter(i => i.naturalWidth == 576)"
    page.tab.wait_for_function(f'{wide}.length == 3')
    assert all(url.startswith((page.url, 'data:', 'blob:')) for url in page.requests)
    # A part of a video is enough to go to its end.
    seek = 'v => new Promise(done => { v.onseeked = () => done(v.currentTime); v.currentTime = 2 })'
    assert page.tab.locator('video').first.evaluate(seek) == pytest.approx(2)


@pytest.mark.slow
def test_what_means_little_is_not_found(page, index, monkeypatch):
    monkeypatch.setattr(index, 'threshold', 2.0)
    page.tab.reload()
    ask(page.tab, TEXT)
    page.tab.get_by_text(f'Nothing found for "{TEXT}": no score is 2.000 or more.').wait_for()
    assert not page.tab.locator('video').count()
    page.tab.get_by_role('checkbox').uncheck()
    ask(page.tab, TEXT)
    shown_on(page.tab, 3)


@pytest.mark.slow
def test_an_upload_finds_videos_like_it(page, index, tmp_path):
    def upload(file):
        page.tab.reload()
        page.tab.locator('input[type=file]').first.set_input_files(file)
        return shown_on(page.tab, 3)

    ask(page.tab, '  ')
    page.tab.get_by_text('Type what you look for').wait_for()
    # Whatever means little for texts: a video is much like itself.
    shown = upload(index.path(ODD))
    video = page.inferencer.encode_videos([index.path(ODD)], num_workers=0).embeddings
    hit = index.search(video, 3)[0][0]
    assert f'1.\xa0{hit.name}\n' in shown and f'score {hit.score:.3f}' in shown
    assert 'for your video:' in shown
    with av.open(str(index.path('3.mp4'))) as container:
        next(container.decode(video=0)).to_image().save(tmp_path / 'frame.png')
    picture = page.inferencer.encode_images([tmp_path / 'frame.png'])
    hit = index.search(picture, 3)[0][0]
    shown = upload(tmp_path / 'frame.png')
    assert f'1.\xa0{hit.name}\n' in shown and f'score {hit.score:.3f}' in shown
    assert 'for your picture:' in shown
    # Both together are one query.
    ask(page.tab, TEXT)
    page.tab.get_by_text(f'for your picture and "{TEXT}"').wait_for()
    both = combine(torch.cat([picture, page.inferencer.encode_texts([TEXT])]), [1, 1])
    hit = index.search(both, 3)[0][0]
    assert f'1.\xa0{hit.name}\n' in shown_on(page.tab, 3)
    assert f'score {hit.score:.3f}' in page.tab.locator('body').inner_text()


@pytest.mark.slow
def test_what_cannot_be_decoded_has_a_player_and_no_strip(page, request_, index, tmp_path):
    """Nor does FFmpeg ask the addresses of what it takes for a list."""
    path = index.path('3.mp4')
    number, kept = index.names.index('3.mp4'), shutil.copy2(path, tmp_path / 'kept')
    (row, *_) = np.flatnonzero(index.moments['video'] == number)
    about, playlist = path.stat(), b'#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:1/a.ts\n'
    strip = request_(f'/strips/{row}.jpg')[2]
    try:
        for head in (b'\0\0\0\1', playlist, kept.read_bytes()[: about.st_size // 8]):
            path.write_bytes(head.ljust(about.st_size, b'\n'))
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
            assert request_(f'/strips/{row}.jpg')[0] == 404
            assert request_(f'/videos/{number}')[0] == 200
        page.tab.reload()
        page.tab.get_by_role('checkbox').uncheck()
        page.tab.get_by_role('spinbutton').fill('15')
        ask(page.tab, TEXT)
        page.tab.wait_for_function("document.querySelectorAll('video').length == 15")
        size = 'i => i.complete && !i.naturalWidth && i.clientHeight'
        page.tab.wait_for_timeout(500)
        assert page.tab.locator(f'img[src="strips/{row}.jpg"]').evaluate(size) == 0
    finally:
        shutil.copy2(kept, path)
    assert request_(f'/strips/{row}.jpg')[2] == strip


@pytest.mark.slow
def test_a_strip_shows_its_moment(request_, index):
    pictures = []
    for row in range(3):
        status, headers, body = request_(f'/strips/{row}.jpg')
        assert (status, headers['Content-Type']) == (200, 'image/jpeg')
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Content-Security-Policy'] == "default-src 'none'; sandbox"
        assert 'private' in headers['Cache-Control'] and len(body) < 100_000
        pictures.append(np.asarray(Image.open(io.BytesIO(body)), float))
        assert pictures[-1].shape == (72, 576, 3)
    # Of eight frames in a second, the first is on screen in the middle of the first cell.
    with av.open(str(index.path(index.names[0]))) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    for row, number in ((0, 0), (1, 8), (2, 16)):
        cell = load_demo().ImageOps.pad(frames[number], (96, 72))
        off = [np.abs(picture[:, :96] - cell).mean() for picture in pictures]
        assert np.argmin(off) == row and off[row] < 20
    assert request_('/strips/0.jpg', 'HEAD')[0] == 200


@pytest.mark.slow
def test_a_program_asks_the_page(served, index, monkeypatch):
    """As docs/search.md says."""
    code = re.search(
        '```\n(from gradio_client .*?)```', (ROOT / 'docs/search.md').read_text(), re.S
    )
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'False')
    monkeypatch.setattr(index, 'threshold', -1.0)
    names = {}
    exec(code[1].replace('http://127.0.0.1:7860', served.url), names)
    client = names['client']
    try:
        hits = index.search(served.inferencer.encode_texts(['a dog']), 5)[0]
        assert names['rows'] == [hit.to_dict() for hit in hits]
        rows = client.predict(TEXT, topk=4, min_score=-1, api_name='/search')
        hits = index.search(served.inferencer.encode_texts([TEXT]), 4)[0]
        assert rows == [hit.to_dict() for hit in hits]
        assert list(rows[0]) == ['video', 'score', 'start', 'end']
        monkeypatch.setattr(index, 'threshold', hits[1].score)
        assert client.predict(TEXT, api_name='/search') == rows[:2]
        for wrong in ((' ', 4), (TEXT, 0), (TEXT, 10**9)):
            with pytest.raises(Exception, match='Give a text with words'):
                client.predict(*wrong, api_name='/search')
    finally:
        client.close()


@pytest.mark.slow
def test_an_indexed_video_is_served_as_video(request_, index):
    for row, name in enumerate(index.names):
        status, headers, body = request_(f'/videos/{row}')
        assert (status, headers['Content-Type']) == (200, 'video/mp4')
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Content-Security-Policy'] == "default-src 'none'; sandbox"
        assert body == index.path(name).read_bytes()
        status, headers, part = request_(f'/videos/{row}', Range='bytes=100-199')
        assert (status, part) == (206, body[100:200])
    assert request_('/videos/0', 'HEAD')[0] == 200


@pytest.mark.slow
def test_nothing_else_is_served(request_, index):
    videos = index.video_dir
    outside = [index.folder / 'index.json', '/etc/passwd', ROOT / 'README.md', 'README.md']
    for path in [*videos.iterdir(), *videos.rglob('*.mp4'), *outside]:
        for route in ('file=', 'file/', 'file=/', 'file=./', 'proxy=', 'file=http://localhost/'):
            status = request_(f'/gradio_api/{route}{quote(os.fspath(path))}')[0]
            assert status in (400, 403, 404), (route, path)
    for row in (len(index), -1, '0.mp4', '../videos/0', '%2e%2e/page.html', '1e0', 10**30):
        assert request_(f'/videos/{row}')[0] in (400, 404), row
        assert request_(f'/strips/{row}.jpg')[0] in (400, 404), row
    assert request_(f'/videos/{len(index.names)}')[0] == 404
    # Gradio would fetch it.
    status, _, body = request_('/gradio_api/file=https://example.com/a.mp4')
    assert status == 403 and b'uploaded' in body


@pytest.mark.slow
def test_what_is_no_longer_the_indexed_video_is_not_served(request_, index, tmp_path):
    number, path = index.names.index('3.mp4'), index.path('3.mp4')
    (row, *_) = np.flatnonzero(index.moments['video'] == number)
    kept, secret = path.rename(tmp_path / 'kept'), tmp_path / 'secret.mp4'
    secret.write_bytes(b'x' * kept.stat().st_size)

    def fill():
        path.write_bytes(secret.read_bytes())

    try:
        for put in (fill, lambda: path.symlink_to(secret), path.mkdir, lambda: os.mkfifo(path)):
            put()
            assert request_(f'/videos/{number}')[0] == 404
            assert request_(f'/strips/{row}.jpg')[0] == 404
            os.rmdir(path) if path.is_dir() else path.unlink()
    finally:
        kept.rename(path)
    assert request_(f'/videos/{number}')[0] == request_(f'/strips/{row}.jpg')[0] == 200


HOSTS = [
    'evil.example',
    'localhost.evil.example',
    '',
    '10.0.0.1',
    '127.0.0.1.evil.example',
    '[::',
    '@',
]


@pytest.mark.slow
@pytest.mark.parametrize(
    'path',
    [
        *('/', '/config', '/videos/0', '/strips/0.jpg', '/gradio_api/info', '/gradio_api/x'),
        '/gradio_api/run/search',
    ],
)
def test_other_hosts_and_pages_are_refused(request_, served, path):
    port = urlsplit(served.url).port
    for host in HOSTS:
        assert request_(path, Host=host)[0] == 400, host
        assert request_(path, Host=f'{host}:{port}')[0] == 400, host
    for origin in (
        'http://evil.example',
        'null',
        'http://localhost:1',
        f'http://localhost:{port}.x',
    ):
        for method in ('GET', 'POST', 'OPTIONS'):
            asked = request_(path, method, b'{}', Origin=origin, Host=f'localhost:{port}')
            assert asked[0] == 403, (method, origin)
    preflight = dict(Origin='http://evil.example', Access_Control_Request_Method='POST')
    headers = request_(path, 'OPTIONS', Host=f'localhost:{port}', **preflight)[1]
    assert 'Access-Control-Allow-Origin' not in headers
    own = f'localhost:{port}'
    assert request_(path, Host=own, Origin=f'http://{own}')[0] in (200, 404, 405)


@pytest.mark.slow
def test_what_is_uploaded_is_small_and_does_not_run(request_, served):
    def upload(name, data, **headers):
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + b'\r\n--b--\r\n'
        headers.setdefault('Content_Type', 'multipart/form-data; boundary=b')
        return request_('/gradio_api/upload', 'POST', body, **headers)

    for name in ('page.html', 'pic.svg', 'clip.mp4'):
        status, _, body = upload(name, b'<script>alert(1)</script>')
        (path,) = json.loads(body)
        assert status == 200 and path.startswith(served.uploads)
        status, headers, _ = request_(f'/gradio_api/file={quote(path)}')
        assert status == 200 and headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Content-Security-Policy'] == "default-src 'none'; sandbox"
        assert 'html' not in headers['Content-Type'] and 'svg' not in headers['Content-Type']
        assert request_(f'/gradio_api/file={quote(path)}/../../../etc/passwd')[0] == 403
    for size in (str(600 << 20), '-1', '1e9'):
        assert upload('clip.mp4', b'', Content_Length=size)[0] in (400, 413)
    assert request_('/gradio_api/queue/join', 'POST', b'x' * (2 << 20))[0] == 413
    for route in ('upload', 'queue/join'):
        answer = request_(f'/gradio_api/{route}', 'POST', [b'x'], Transfer_Encoding='chunked')
        assert answer[0] == 413


@pytest.mark.slow
def test_an_upload_is_what_was_uploaded(request_, served, index):
    """It is neither a file of this machine nor fetched from an address."""

    def search(path):
        upload = dict(path=str(path), meta=dict(_type='gradio.FileData'))
        body = json.dumps(dict(data=['', upload, 1, True])).encode()
        return request_('/gradio_api/run/show', 'POST', body, Content_Type='application/json')

    own = Path(shutil.copy(index.path('0.mp4'), served.uploads))
    assert b'videos/' in search(own)[2]
    for path in (index.path('0.mp4'), '/etc/passwd', ROOT / 'docs/demo.png'):
        assert search(path)[0] == 500
    assert b'Upload it as a file' in search('https://example.com/a.mp4')[2]
    # FFmpeg would ask the address.
    with http.server.HTTPServer(('127.0.0.1', 0), None) as asked:
        line = f'http://127.0.0.1:{asked.server_port}/a.ts'
        playlist = f'#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{line}\n#EXT-X-ENDLIST\n'
        own.write_text(playlist)
        assert b'neither a video nor a picture' in search(own)[2]
        asked.timeout = 0
        asked.handle_timeout = lambda: asked.__dict__.update(quiet=True)
        asked.handle_request()
        assert asked.quiet


@pytest.mark.slow
def test_an_upload_is_a_picture_by_what_it_holds(request_, served, monkeypatch):
    def search(name, data):
        path = Path(served.uploads, name)
        path.write_bytes(data)
        upload = dict(path=str(path), meta=dict(_type='gradio.FileData'))
        body = json.dumps(dict(data=['', upload, 1, True])).encode()
        return request_('/gradio_api/run/show', 'POST', body, Content_Type='application/json')[2]

    for suffix in load_demo().PICTURE_SUFFIXES:
        file = io.BytesIO()
        Image.new('RGB', (40, 30), 'red').save(file, Image.registered_extensions()[suffix])
        for name in (f'a{suffix}', f'b{suffix.upper()}', 'a.mp4'):
            assert b'for your picture' in search(name, file.getvalue())
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(
        file, 'PNG'
    )
    png = file.getvalue()
    assert b'The picture cannot be read' in search('cut.png', png[: len(png) // 2])
    header = png[12:16] + (10**5).to_bytes(4, 'big') * 2 + png[24:29]
    huge = png[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + png[33:]
    assert b'The picture cannot be read' in search('huge.png', huge)
    # Ghostscript would run it.
    assert b'neither a video nor' in search('a.png', b'%!PS-Adobe-3.0 EPSF-3.0\n')
    assert b'The video cannot be read' in search('noise.jpg', bytes(range(128, 256)) * 9)
    for name in ('page.html', 'pic.svg', 'a.eps', 'a.mp4.txt'):
        assert b'Invalid file type' in search(name, png)
    # What ends its decoder does not end the server.
    monkeypatch.setattr(Image, 'open', lambda *_, **__: os.abort())
    assert b'ended the process' in search('a.png', png)


def test_every_kind_of_video_has_a_type():
    assert load_demo().TYPES.keys() == set(VIDEO_SUFFIXES)
    assert all(kind.startswith('video/') for kind in load_demo().TYPES.values())


def test_names_of_this_machine_are_answered():
    demo = load_demo()
    guard = demo.Guard(None, '/uploads', {*demo.LOOPBACK, 'Lab.example'}, numbers=True)
    assert all(map(guard.is_own, ['lab.example:7860', '10.0.0.1', '[::1]:7860', '[fe80::1]']))
    for name in ('evil.example', '10.0.0.1.evil.example', '', ':7860', '(any address of numbers)'):
        assert not guard.is_own(name)


def test_a_request_says_how_long_it_is():
    demo = load_demo()
    guard = demo.Guard(None, '/uploads', {'localhost'}, numbers=False)
    for path, most in (('/gradio_api/upload', 500), ('/gradio_api/queue/join', 1)):
        for said, is_refused in (
            (dict(content_length=most << 20), False),
            (dict(content_length=(most + 1) << 20), True),
            (dict(content_length=1, transfer_encoding='chunked'), True),
            ({}, True),
        ):
            said = {name.replace('_', '-'): str(value) for name, value in said.items()}
            refusal = guard.refuse('POST', path, demo.Headers(dict(host='localhost', **said)))
            assert bool(refusal) == is_refused, (path, said)
            if refusal:
                assert refusal.status_code == 413 and f'at most {most} MB' in str(refusal.body)


@pytest.mark.slow
def test_uploads_are_deleted_also_when_it_is_terminated(run_tool, index, tmp_path, monkeypatch):
    during = []

    def terminate(page):
        try:
            during.extend(tmp_path.iterdir())
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            page.close()

    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path))
    monkeypatch.setattr('gradio.Blocks.block_thread', terminate)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_tool('tools/demo.py', index.folder, '--device', 'cpu', '--port', free_port())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(during) == 1 and not list(tmp_path.iterdir())


def test_names_need_not_be_text_and_videos_may_be_gone(index, monkeypatch):
    demo, name = load_demo(), os.fsdecode(b'caf\xe9.mp4')
    monkeypatch.setattr(index, 'names', [*index.names[1:], name])
    gone = demo.player(index, 1, Hit(name, 0.5, 0, 1, row=14))
    assert '1.&nbsp;caf\\xe9.mp4' in gone and 'no longer there' in gone
    assert '<video' not in gone and '<img' not in gone
    gone.encode()


def test_a_whole_video_plays_from_its_start(index, monkeypatch):
    demo, name = load_demo(), index.names[0]
    monkeypatch.setattr(index, 'window', None)
    player = demo.player(index, 1, Hit(name, 0.5, 0, float('nan'), row=0))
    assert 'src="videos/0"' in player and '<small>score 0.500</small>' in player
    assert demo.read_strip(index.path(name), 0, float('nan')) != demo.read_strip(
        index.path(name), 0, 1
    )


def test_faults_are_named(run_tool, capsys, monkeypatch, tmp_path):
    with pytest.raises(UserError, match='none'):
        run_tool('tools/demo.py', tmp_path / 'none')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit) as stop:
        run_tool('tools/demo.py', tmp_path)
    assert stop.value.code == 2 and '.[demo]' in capsys.readouterr().err
