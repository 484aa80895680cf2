"""The page of tools/demo.py, in a real browser."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import torch

from projects.vop.apis import VoPInferencer
from projects.vop.search import Hit, VideoIndex, update_index

gr = pytest.importorskip('gradio')
playwright = pytest.importorskip('playwright.sync_api')
BROWSER = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason='no Chromium on this machine')
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
    torch.manual_seed(0)
    inferencer = VoPInferencer(retrieval_config(), device='cpu', show_progress=False)
    update_index(inferencer, folder / 'videos', folder / 'index', num_workers=1)
    return VideoIndex.open(folder / 'index')


@pytest.fixture(scope='module')
def page(index):
    """The page in a browser; ``page.index`` and the requests it made."""
    demo = load_demo()
    inferencer = index.load_inferencer('cpu')
    inferencer.show_progress = False
    built = demo.build_page(index, inferencer, topk=3)
    _, url, _ = demo.serve(
        built, index, server_name='127.0.0.1', prevent_thread_lock=True, quiet=True
    )
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        tab = browser.new_page()
        requests = []
        tab.on('request', lambda request: requests.append(request.url))
        tab.goto(url)
        yield SimpleNamespace(tab=tab, url=url, requests=requests, inferencer=inferencer)
        browser.close()
    built.close()


def ask(tab, text):
    tab.locator('#query').get_by_role('textbox').fill(text)
    tab.get_by_role('button', name='Search', exact=True).click()


def found(tab):
    return tab.locator('#found').get_by_role('textbox').input_value()


@needs_browser
def test_type_a_query_and_watch_what_was_found(page, index):
    text = 'caption <b>1</b> of 3'
    ask(page.tab, text)
    page.tab.wait_for_function("document.querySelectorAll('video').length == 3")
    assert found(page.tab) == f'The 3 best of 5 for "{text}":'
    hits = index.search(page.inferencer.encode_texts([text]), 3)[0]
    shown = page.tab.locator('body').inner_text()
    for rank, hit in enumerate(hits, start=1):
        assert f'{rank}. {hit.name} ({hit.score:.3f})' in shown
    sources = [video.get_attribute('src') for video in page.tab.locator('video').all()]
    for source, hit in zip(sources, hits):
        assert source.endswith(quote(f'/{hit.name}'))
    # They really play, from where they are.
    page.tab.wait_for_function(
        "[...document.querySelectorAll('video')].every(v => v.readyState > 0 && v.duration)"
    )
    assert all(str(index.video_dir) in source for source in sources)
    assert all(url.startswith((page.url, 'data:', 'blob:')) for url in page.requests)


@needs_browser
def test_a_clip_finds_videos_like_it(page, index):
    page.tab.locator('input[type=file]').first.set_input_files(index.path(ODD))
    page.tab.wait_for_function(
        "document.querySelector('#found textarea, #found input').value.includes('your clip')"
    )
    assert found(page.tab) == 'The 3 best of 5 for your clip:'
    shown = page.tab.locator('body').inner_text()
    assert f'1. {ODD} (1.000)' in shown
    page.tab.wait_for_function("document.querySelector('#players video').duration > 0")
    page.tab.reload()


@needs_browser
def test_an_empty_query_says_what_to_do(page):
    page.tab.reload()
    ask(page.tab, '  ')
    page.tab.get_by_text('Type what you look for').wait_for()


@needs_browser
def test_no_other_file_is_served(page, index):
    for path in (index.folder / 'index.json', '/etc/passwd'):
        answer = page.tab.request.get(f'{page.url}gradio_api/file={path}')
        assert answer.status == 403


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


def test_no_index(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['demo.py', str(tmp_path / 'none')])
    with pytest.raises(SystemExit, match='none'):
        load_demo().main()
