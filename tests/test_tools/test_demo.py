"""The page of tools/demo.py, in a real browser."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from projects.vop.apis import VoPInferencer
from projects.vop.errors import UserError
from projects.vop.search import Hit, VideoIndex, update_index

gr = pytest.importorskip('gradio')
playwright = pytest.importorskip('playwright.sync_api')
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
ROOT = Path(__file__).resolve().parents[2]
ODD = 'cats & <b>dogs</b>/2 #1?%41 "é".mp4'


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
    return VideoIndex.open(folder / 'index')


@pytest.fixture(scope='module')
def page(index):
    """The page in a browser, and the requests it made."""
    if not BROWSER:
        pytest.skip('no Chromium on this machine')
    demo, inferencer = load_demo(), index.load_inferencer('cpu', show_progress=False)
    built = demo.build_page(index, inferencer, topk=3)
    url = demo.serve(built, index, prevent_thread_lock=True, quiet=True)[1]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        tab, requests = browser.new_page(), []
        tab.on('request', lambda request: requests.append(request.url))
        tab.goto(url)
        yield SimpleNamespace(tab=tab, url=url, requests=requests, inferencer=inferencer)
        browser.close()
    built.close()


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
        assert video.get_attribute('src').endswith(quote(str(index.path(hit.name))))
    assert all(url.startswith((page.url, 'data:', 'blob:')) for url in page.requests)
    # Nothing else is served.
    for path in (index.folder / 'index.json', '/etc/passwd'):
        assert page.tab.request.get(f'{page.url}gradio_api/file={path}').status == 403


@pytest.mark.slow
def test_a_clip_finds_videos_like_it(page, index):
    page.tab.reload()
    ask(page.tab, '  ')
    page.tab.get_by_text('Type what you look for').wait_for()
    page.tab.locator('input[type=file]').first.set_input_files(index.path(ODD))
    page.tab.wait_for_function("document.querySelector('#players video')?.duration > 0")
    assert f'1. {ODD} (1.000)' in page.tab.locator('body').inner_text()
    assert 'your clip' in page.tab.locator('#found').get_by_role('textbox').input_value()


def test_names_need_not_be_text_and_videos_may_be_gone(index):
    player = load_demo().player
    name = os.fsdecode(b'caf\xe9.mp4')
    gone = player(index, 1, Hit(name, 0.5))
    assert '1. caf\ufffd.mp4 (0.500): no longer there' in gone
    assert '<video' not in gone
    index.path(name).touch()
    shown = player(index, 2, Hit(name, 0.5))
    index.path(name).unlink()
    shown.encode()
    assert 'caf%E9.mp4"' in shown and 'no longer' not in shown


def test_faults_are_named(run_tool, capsys, monkeypatch, tmp_path):
    with pytest.raises(UserError, match='none'):
        run_tool('tools/demo.py', tmp_path / 'none')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit) as stop:
        run_tool('tools/demo.py', tmp_path)
    assert stop.value.code == 2 and '.[demo]' in capsys.readouterr().err
