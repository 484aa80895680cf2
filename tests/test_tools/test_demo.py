"""The page of tools/demo.py, in a real browser and by what it answers."""

import http.client
import http.server
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import pytest
from helpers import free_port

from projects.vop.apis import VoPInferencer
from projects.vop.errors import UserError
from projects.vop.fileio import VIDEO_SUFFIXES
from projects.vop.search import Hit, VideoIndex, update_index

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
ROOT = Path(__file__).resolve().parents[2]
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
    update_index(inferencer, folder / 'videos', folder / 'index', num_workers=1)
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
        tab.on('request', lambda request: requests.append(request.url))
        tab.goto(url)
        yield SimpleNamespace(tab=tab, url=url, requests=requests, inferencer=inferencer)
        browser.close()


def ask(tab, text):
    tab.locator('#query').get_by_role('textbox').fill(text)
    tab.get_by_role('button', name='Search', exact=True).click()


@pytest.mark.slow
def test_type_a_query_and_watch_what_was_found(page, index):
    text = 'caption <b>1</b> of 3'
    ask(page.tab, text)
    # They really play, from where they are.
    page.tab.wait_for_function(
        "[...document.querySelectorAll('video')].filter(v => v.duration).length == 3"
    )
    assert text in page.tab.locator('#found').get_by_role('textbox').input_value()
    shown = page.tab.locator('body').inner_text()
    hits = index.search(page.inferencer.encode_texts([text]), 3)[0]
    for rank, (video, hit) in enumerate(zip(page.tab.locator('video').all(), hits), start=1):
        assert f'{rank}. {hit.name} ({hit.score:.3f})' in shown
        assert video.get_attribute('src') == f'videos/{index.names.index(hit.name)}'
    assert all(url.startswith((page.url, 'data:', 'blob:')) for url in page.requests)
    # A part of a video is enough to go to its end.
    seek = 'v => new Promise(done => { v.onseeked = () => done(v.currentTime); v.currentTime = 2 })'
    assert page.tab.locator('video').first.evaluate(seek) == pytest.approx(2)


@pytest.mark.slow
def test_a_clip_finds_videos_like_it(page, index):
    page.tab.reload()
    ask(page.tab, '  ')
    page.tab.get_by_text('Type what you look for').wait_for()
    page.tab.locator('input[type=file]').first.set_input_files(index.path(ODD))
    page.tab.wait_for_function("document.querySelector('#players video')?.duration > 0")
    assert f'1. {ODD} (1.000)' in page.tab.locator('body').inner_text()
    assert 'your clip' in page.tab.locator('#found').get_by_role('textbox').input_value()


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
    for row in (len(index.names), -1, '0.mp4', '../videos/0', '%2e%2e/page.html', '1e0', 10**30):
        assert request_(f'/videos/{row}')[0] in (400, 404), row
    # Gradio would fetch it.
    status, _, body = request_('/gradio_api/file=https://example.com/a.mp4')
    assert status == 403 and b'uploaded' in body


@pytest.mark.slow
def test_what_is_no_longer_the_indexed_video_is_not_served(request_, index, tmp_path):
    row = index.names.index('3.mp4')
    path = index.path('3.mp4')
    kept, secret = path.rename(tmp_path / 'kept'), tmp_path / 'secret.mp4'
    secret.write_bytes(b'x' * kept.stat().st_size)

    def fill():
        path.write_bytes(secret.read_bytes())

    try:
        for put in (fill, lambda: path.symlink_to(secret), path.mkdir, lambda: os.mkfifo(path)):
            put()
            assert request_(f'/videos/{row}')[0] == 404
            os.rmdir(path) if path.is_dir() else path.unlink()
    finally:
        kept.rename(path)
    assert request_(f'/videos/{row}')[0] == 200


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
@pytest.mark.parametrize('path', ['/', '/config', '/videos/0', '/gradio_api/info', '/gradio_api/x'])
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
    assert request_(path, Host=own, Origin=f'http://{own}')[0] in (200, 404)


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
def test_a_clip_is_what_was_uploaded(request_, served, index):
    """It is neither a file of this machine nor fetched from an address."""

    def search(path):
        clip = dict(path=str(path), meta=dict(_type='gradio.FileData'))
        body = json.dumps(dict(data=['', clip, 1])).encode()
        return request_('/gradio_api/run/search', 'POST', body, Content_Type='application/json')

    own = shutil.copy(index.path('0.mp4'), served.uploads)
    assert b'videos/' in search(own)[2]
    for path in (index.path('0.mp4'), '/etc/passwd'):
        assert search(path)[0] == 500
    assert b'Upload the clip as a file' in search('https://example.com/a.mp4')[2]
    # FFmpeg would ask the address.
    with http.server.HTTPServer(('127.0.0.1', 0), None) as asked:
        line = f'http://127.0.0.1:{asked.server_port}/a.ts'
        playlist = f'#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{line}\n#EXT-X-ENDLIST\n'
        Path(own).write_text(playlist)
        assert b'The clip is not a video' in search(own)[2]
        asked.timeout = 0
        asked.handle_timeout = lambda: asked.__dict__.update(quiet=True)
        asked.handle_request()
        assert asked.quiet


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
    player, name = load_demo().player, os.fsdecode(b'caf\xe9.mp4')
    monkeypatch.setattr(index, 'names', [*index.names[1:], name])
    gone = player(index, 1, Hit(name, 0.5))
    assert '1. caf\\xe9.mp4 (0.500): no longer there' in gone
    assert '<video' not in gone
    gone.encode()


def test_faults_are_named(run_tool, capsys, monkeypatch, tmp_path):
    with pytest.raises(UserError, match='none'):
        run_tool('tools/demo.py', tmp_path / 'none')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit) as stop:
        run_tool('tools/demo.py', tmp_path)
    assert stop.value.code == 2 and '.[demo]' in capsys.readouterr().err
