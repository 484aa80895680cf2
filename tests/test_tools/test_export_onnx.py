"""tools/deployment/export_onnx.py, and a search that imports no torch."""

import json
import re
import sys

import pytest
import torch
from helpers import ROOT, TINY_CLIP, run

from projects.vop.apis import VoPInferencer
from projects.vop.errors import UserError
from projects.vop.search import VideoIndex, update_index

pytestmark = pytest.mark.slow

TEXTS = ['a man cleans a pool', 'Two DOGS &amp; a cat']
# Not an ImportError, which others pass over.
WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, *args):
        if name == 'torch':
            raise RuntimeError('torch is imported')

sys.meta_path.insert(0, NoTorch())
"""


@pytest.fixture(scope='module')
def folder(retrieval_config, video_folder, tmp_path_factory):
    """A folder with a model that travels, and an index of it."""
    folder = tmp_path_factory.mktemp('deployed')
    small = {key: dict(of, layers=1) for key, of in TINY_CLIP.items() if isinstance(of, dict)}
    (folder / 'clip.json').write_text(json.dumps(TINY_CLIP | small))
    config = retrieval_config('vop')
    config.model.clip = dict(name=str(folder / 'clip.json'))
    torch.manual_seed(0)
    inferencer = VoPInferencer(config, None, 'cpu', show_progress=False)
    state = dict(state_dict=inferencer.model.state_dict(keep_vars=False))
    torch.save(state, folder / 'vop.pth')
    torch.save(
        {
            f'{name}.{key}': value
            for name in ('visual', 'text')
            for key, value in getattr(inferencer.towers, name).state_dict().items()
        }
        | {'logit_scale': inferencer.towers.logit_scale},
        folder / 'clip.pt',
    )
    config.model.clip.pretrained = str(folder / 'clip.pt')
    inferencer = VoPInferencer(config, str(folder / 'vop.pth'), 'cpu', show_progress=False)
    inferencer.save_pretrained(folder / 'shared')
    update_index(inferencer, video_folder, folder / 'index', num_workers=0)
    return folder


@pytest.fixture(scope='module')
def printed(folder):
    """What the tool prints, which has written a folder."""
    tool = str(ROOT / 'tools/deployment/export_onnx.py')
    shared = str(folder / 'shared')
    return run(sys.executable, tool, shared, shared, str(folder / 'onnx'), '--int8')


@pytest.mark.parametrize('encoder', ['onnx', 'onnx/text_int8.onnx'])
def test_a_query_without_torch_finds_the_same(folder, printed, encoder, run_tool, capsys):
    index = folder / 'index'
    query = ['query', index, *TEXTS, '--json', '--min-score=-1']
    run_tool('tools/search.py', *query)
    wanted = json.loads(capsys.readouterr().out)
    (folder / 'without').mkdir(exist_ok=True)
    (folder / 'without/sitecustomize.py').write_text(WITHOUT_TORCH)
    found = run(
        *(sys.executable, str(ROOT / 'tools/search.py'), *map(str, query)),
        *('--text-encoder', str(folder / encoder)),
        PYTHONPATH=f'{folder / "without"}:{ROOT}',
    )
    for ours, theirs in zip(json.loads(found[found.index('[') :]), wanted, strict=True):
        scores = [[hit.pop('score') for hit in each['hits']] for each in (ours, theirs)]
        close = 1e-4 if encoder == 'onnx' else 0.05
        assert len(scores[0]) == 5 and scores[0] == pytest.approx(scores[1], abs=close)
        if encoder == 'onnx':
            assert ours == theirs


def test_it_prints_what_was_found(folder, printed):
    for name in ('video', 'text'):
        assert re.search(rf'{name}\.onnx: it differs from torch by \de-0[6-9]; 0\.0\d ', printed)
        assert float(re.search(rf'{name}_int8\.onnx: .* is ([\d.]+)\.$', printed, re.M)[1]) > 0.9
        sizes = [(folder / f'onnx/{name}{kind}.onnx').stat().st_size for kind in ('', '_int8')]
        assert sizes[1] < 0.7 * sizes[0]


def test_faults_are_named(folder, printed, run_tool, tmp_path, capsys):
    query = ['query', folder / 'index', 'a dog', '--text-encoder']
    with pytest.raises(SystemExit):
        run_tool('tools/search.py', *query, folder / 'onnx', '--image', 'a.png')
    assert 'texts alone' in capsys.readouterr().err
    with pytest.raises(UserError, match=r'encoders\.json'):
        run_tool('tools/search.py', *query, tmp_path)
    for path in (folder / 'onnx').iterdir():
        (tmp_path / path.name).symlink_to(path)
    about = json.loads((folder / 'onnx/encoders.json').read_text())
    (tmp_path / 'encoders.json').unlink()
    (tmp_path / 'encoders.json').write_text(json.dumps(about | dict(model_fingerprint='0' * 32)))
    with pytest.raises(UserError, match='another model.*export_onnx'):
        run_tool('tools/search.py', *query, tmp_path)
    assert VideoIndex.open(folder / 'index').load_text_encoder(folder / 'onnx').slots == 69
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file'):
        run_tool('tools/deployment/export_onnx.py', folder / 'shared', 'none', tmp_path / 'file')
