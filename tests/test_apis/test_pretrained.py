"""Folders in which a trained model travels."""

import base64
import http.server
import json
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from helpers import run
from huggingface_hub import ModelCard

from projects.vop.apis import VoPInferencer
from projects.vop.engine import load_safely, open_config
from projects.vop.errors import UserError

TEXTS = ['a man cleans a pool', 'a dog']


@pytest.fixture(scope='module')
def inferencer(retrieval_config):
    torch.manual_seed(0)
    config = retrieval_config('vop_fp')
    config.model.visual.temporal_layers = 1
    model = VoPInferencer(config, device='cpu', show_progress=False)
    for parameter in model.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)  # as if it were trained
    return model


@pytest.fixture
def folder(inferencer, tmp_path):
    metrics = {'t2v/R@1': 12.5, 't2v/MnR': 3.25, 'v2t/R@1': 50.0}
    about = dict(method='VoP^F+P', data='msrvtt', metrics=metrics, training=dict(epochs=5))
    inferencer.save_pretrained(tmp_path / 'vop', about)
    return tmp_path / 'vop'


def test_what_was_saved_embeds_as_before(inferencer, folder, video_folder):
    videos = [video_folder / '0.mp4', video_folder / '1.mp4']
    wanted = inferencer.encode_texts(TEXTS), inferencer.encode_videos(videos).embeddings
    for opened in (
        VoPInferencer.from_pretrained(folder, device='cpu', show_progress=False),
        VoPInferencer(folder, device='cpu', show_progress=False),
        VoPInferencer(str(folder / 'config.json'), str(folder), 'cpu', show_progress=False),
    ):
        assert opened.model_fingerprint == inferencer.model_fingerprint
        found = opened.encode_texts(TEXTS), opened.encode_videos(videos).embeddings
        assert all(map(torch.equal, found, wanted))


def test_it_holds_what_was_trained_and_no_code(inferencer, folder):
    assert {path.name for path in folder.iterdir()} == {
        'README.md',
        'config.json',
        'model.safetensors',
    }
    trained = {name for name, p in inferencer.model.named_parameters() if p.requires_grad}
    state = load_safely(folder)
    assert trained <= state.keys() and not any('backbone.' in name for name in state)
    assert json.loads((folder / 'config.json').read_text()).keys() == {'model', 'pipeline'}


def test_the_card_says_what_it_is(inferencer, folder):
    card = ModelCard.load(folder / 'README.md')
    assert card.data.library_name == 'mmaction2-vop' and card.data.model_name == 'vop'
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}['t2v/R@1'] == 12.5
    trained = sum(p.numel() for p in inferencer.model.parameters() if p.requires_grad)
    for words in (
        'by VoP^F+P',
        f'{trained:,} parameters'.replace(' ', '\n'),
        '| data set | msrvtt |',
        '| epochs | 5 |',
        '|  | R@1 | MnR |',
        '| t2v | 12.50 | 3.25 |',
        '| v2t | 50.00 |  |',
    ):
        assert words in card.text


def test_another_clip_is_refused_and_the_same_elsewhere_taken(folder, tmp_path, inferencer):
    moved = tmp_path / 'moved.pt'
    moved.write_bytes(Path(inferencer.cfg.model.clip.pretrained).read_bytes())
    same = VoPInferencer.from_pretrained(folder, clip=dict(pretrained=str(moved)), device='cpu')
    assert same.model_fingerprint == inferencer.model_fingerprint
    with pytest.raises(UserError, match='frozen weights differ'):
        VoPInferencer.from_pretrained(folder, clip=dict(pretrained=None), device='cpu')


def test_what_is_damaged_is_named(folder, tmp_path, monkeypatch):
    weights = folder / 'model.safetensors'
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r'model\.safetensors.*damaged'):
        VoPInferencer.from_pretrained(folder)
    (folder / 'config.json').write_text('{')
    with pytest.raises(UserError, match=r'config\.json'):
        open_config(folder)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    for name in (tmp_path / 'none', 'no such/name/at all'):
        with pytest.raises(UserError, match='no folder .*Hub'):
            VoPInferencer.from_pretrained(name)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as is needed here; keeps a/model in a folder."""

    commit = 'a' * 40
    folder: Path

    def do_GET(self):
        path = urlsplit(self.path).path
        if path.startswith('/api/models/a/model/revision'):
            siblings = [dict(rfilename=path.name) for path in self.folder.iterdir()]
            about = dict(id='a/model', sha=self.commit, siblings=siblings, private=False)
            return self.answer(json.dumps(about | dict(tags=[], downloads=0)).encode())
        if path.startswith('/api/models/a/model/tree'):
            files = [(path.name, path.stat().st_size) for path in self.folder.iterdir()]
            tree = [dict(type='file', path=name, size=size, oid='0') for name, size in files]
            return self.answer(json.dumps(tree).encode())
        file = self.folder / Path(path).name
        if path.startswith('/a/model/resolve/') and file.is_file():
            return self.answer(file.read_bytes())
        return self.send_error(404)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        answers = {
            '/api/repos/create': lambda: dict(url=f'http://{self.headers["Host"]}/a/model'),
            '/api/validate-yaml': lambda: dict(errors=[], warnings=[]),
            '/api/models/a/model/preupload/main': lambda: dict(
                files=[
                    dict(path=file['path'], uploadMode='regular', shouldIgnore=False)
                    for file in json.loads(body)['files']
                ]
            ),
            '/api/models/a/model/commit/main': lambda: self.commit_files(body),
        }
        self.answer(json.dumps(answers[urlsplit(self.path).path]()).encode())

    def commit_files(self, lines):
        for line in map(json.loads, lines.splitlines()):
            if line['key'] == 'file':
                content = base64.b64decode(line['value']['content'])
                (self.folder / line['value']['path']).write_bytes(content)
        url = f'http://{self.headers["Host"]}/a/model/commit/{self.commit}'
        return dict(success=True, commitOid=self.commit, commitUrl=url, hookOutput='')

    def answer(self, data):
        self.send_response(200)
        for key, value in {
            'Content-Length': len(data),
            'Content-Type': 'application/json',
            'ETag': f'"{hash(data):x}"',
            'X-Repo-Commit': self.commit,
        }.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.mark.slow
def test_a_model_is_published_and_fetched(folder, tmp_path):
    """Against a stand-in for the Hub, by the command that tools/export.py names."""
    Hub.folder = tmp_path / 'hub'
    Hub.folder.mkdir()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
from projects.vop.apis.pretrained import find_pretrained
print(find_pretrained('a/model'))
try:
    find_pretrained('a/none')
except ValueError as error:
    print(error)
"""
    env = dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=str(tmp_path / 'hf'))
    run(Path(sys.executable).with_name('hf'), 'upload', 'a/model', folder, HF_TOKEN='hf_a', **env)
    assert {file.name for file in Hub.folder.iterdir()} == {file.name for file in folder.iterdir()}
    printed = run(sys.executable, '-c', code, HF_HUB_DISABLE_PROGRESS_BARS='1', **env).splitlines()
    server.shutdown()
    path = next(Path(line) for line in printed if line.startswith(str(tmp_path)))
    assert 'no model a/none can be fetched' in '\n'.join(printed)
    assert {file.name for file in path.iterdir()} == {'config.json', 'model.safetensors'}
    for file in path.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()
