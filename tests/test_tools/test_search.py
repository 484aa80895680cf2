"""tools/search.py and its launchers."""

import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, in_two_processes
from helpers import run as run_command
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from PIL import Image
from torch.multiprocessing import ProcessExitedException

from projects.vop.apis import VoPInferencer
from projects.vop.errors import UserError
from projects.vop.registry import MODELS, TRANSFORMS
from projects.vop.search import VideoIndex, combine, update_index

pytestmark = pytest.mark.slow

# Ends its process at a video, and notes the others that are encoded.
KILLER = """
import os, signal
from mmcv.transforms import BaseTransform
from projects.vop.search import update
from projects.vop.registry import TRANSFORMS

update.SAVE_VIDEOS = 1

@TRANSFORMS.register_module()
class KillOn(BaseTransform):
    def transform(self, results):
        name = os.path.basename(results['filename'])
        if name == os.environ.get('KILL_ON'):
            os.kill(os.getppid(), signal.SIGKILL)  # the reader's parent
        with open(os.environ['LOG'], 'a') as log:
            log.write(name + ' ')
        return results
"""

# Says what is imported for `info`, and for a query besides torch and open_clip.
IMPORTED = """
import json, runpy, sys

def imported_by(*words):
    before = set(sys.modules)
    sys.argv = [TOOL, *words]
    runpy.run_path(TOOL, run_name='__main__')
    return sorted(sys.modules.keys() - before)

TOOL, index = sys.argv[1:]
info = imported_by('info', index)
import torch, open_clip
print(json.dumps([info, imported_by('query', index, 'a dog', '--min-score=-1')]))
"""


@TRANSFORMS.register_module()
class PressCtrlC(BaseTransform):
    def transform(self, results):
        if results['filename'].endswith('0.mp4'):  # the smallest, so the last
            os.kill(os.getppid(), signal.SIGINT)  # the reader's parent
        return results


@pytest.fixture(scope='module')
def model(retrieval_config, tmp_path_factory):
    """The arguments that name a config and a checkpoint."""
    folder, config = tmp_path_factory.mktemp('model'), retrieval_config()
    config.dump(folder / 'config.py')
    torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), folder / '0.pth')
    return ['--config', str(folder / 'config.py'), '--checkpoint', str(folder / '0.pth')]


@pytest.fixture(scope='module')
def index(model, video_folder, tmp_path_factory):
    """An index of five videos."""
    path = tmp_path_factory.mktemp('tool') / 'index'
    inferencer = VoPInferencer(model[1], model[3], 'cpu', show_progress=False)
    update_index(inferencer, video_folder, path, num_workers=0)
    return path


@pytest.fixture
def printed(run_tool, capsys):
    """Runs the tool; gives what it prints."""

    def run(*arguments):
        run_tool('tools/search.py', *arguments)
        return capsys.readouterr()

    return run


def test_what_is_given_says_what_is_found(printed, index, video_folder):
    clip, texts = video_folder / '3.mp4', ['a dog', 'a cat', 'a house']
    every = ['--min-score', '-1']
    several = json.loads(printed('query', index, *texts, '--json', *every).out)
    opened = VideoIndex.open(index)
    queries = opened.load_inferencer('cpu', show_progress=False).encode_texts(texts)
    for answer, text, hits in zip(several, texts, opened.search(queries, 5), strict=True):
        paths = [str(video_folder / hit.name) for hit in hits]
        expected = [
            dict(video=h.name, path=p, score=h.score, start=0, end=2.5) for h, p in zip(hits, paths)
        ]
        assert answer == dict(text=text, hits=expected)
    title, *lines = printed('query', index, texts[0], '--topk', 2, *every).out.splitlines()
    assert title == texts[0]
    assert [line.split()[2] for line in lines] == [hit['video'] for hit in several[0]['hits'][:2]]
    (alike,) = json.loads(printed('query', index, '--video', clip, '--json').out)
    assert alike['video'] == str(clip) and alike['hits'][0]['video'] == '3.mp4'
    # Texts are ranked for the video, wherever they stand.
    both = printed('query', index, texts[0], '--json', '--video', clip, *texts[1:]).out
    scores = [next(h['score'] for h in a['hits'] if h['video'] == '3.mp4') for a in several]
    ranked = sorted(zip(scores, texts), reverse=True)
    hits = json.loads(both)[0]['hits']
    assert [hit['text'] for hit in hits] == [text for _, text in ranked]
    assert [hit['score'] for hit in hits] == pytest.approx([s for s, _ in ranked], abs=1e-6)
    # Warnings, such as that a text is cut, are not among the answers.
    out, err = printed('query', index, 'dog ' * 2000, '--json', *every)
    assert len(json.loads(out)[0]['hits']) == 5 and 'longer than' in err


def test_moments_are_found_with_their_times(printed, model, video_folder, tmp_path):
    index, args = tmp_path / 'index', ['--num-workers', 0]
    out = printed('index', video_folder, index, '--window', 1, *model, *args).out
    assert '5 videos added' in out and '20 moments of 1 s, one each 0.5 s, in 5 videos' in out
    assert '5 kept' in printed('index', video_folder, index, *args).out
    query = ['query', index, 'a dog', '--min-score', -1, '--topk', 30]
    hits = json.loads(printed(*query, '--json').out)[0]['hits']
    spans = {'0.mp4': set(), '3.mp4': set()}
    for hit in hits:
        spans.setdefault(hit['video'], set()).add((hit['start'], hit['end']))
    assert all(end == min(start + 1, 2.5) and start % 0.5 == 0 for start, end in spans['3.mp4'])
    assert len(spans) == 5 and all(2 <= len(each) <= 3 for each in spans.values())
    lines = printed(*query).out.splitlines()[1:]
    assert len(lines) == len(hits)
    seconds = [f'0:0{round(hit["start"])}-0:0{round(hit["end"])}' for hit in hits]
    assert [line.split()[2:] for line in lines] == [[h['video'], s] for h, s in zip(hits, seconds)]
    out = printed('index', video_folder, index, '--window', 5, '--stride', 5, *args).out
    assert '5 encoded again' in out and '5 moments of 5 s' in out


def test_a_picture_or_a_sum_is_a_query(printed, index, video_folder, tmp_path):
    inferencer = VideoIndex.open(index).load_inferencer('cpu', show_progress=False)
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / 'a.png')
    (alike,) = json.loads(printed('query', index, '--image', tmp_path / 'a.png', '--json').out)
    picture = inferencer.encode_images([tmp_path / 'a.png'])
    best = VideoIndex.open(index).search(picture, 5)[0]
    assert alike['image'] == str(tmp_path / 'a.png')
    assert [hit['video'] for hit in alike['hits']] == [hit.name for hit in best]
    clip = str(video_folder / '3.mp4')
    given = ['a dog', 'a cat', '--video', clip, '--weights', '1', '-0.5', '2']
    (answer,) = json.loads(printed('query', index, *given, '--json').out)
    embeddings = [*inferencer.encode_texts(given[:2]), *inferencer.encode_videos([clip]).embeddings]
    expected = VideoIndex.open(index).search(combine(torch.stack(embeddings), [1, -0.5, 2]), 5)[0]
    assert [hit['score'] for hit in answer['hits']] == pytest.approx([h.score for h in expected])
    assert [part['weight'] for part in answer['parts']] == [1, -0.5, 2]
    title = printed('query', index, *given).out.splitlines()[0]
    assert title == f'1 x a dog + -0.5 x a cat + 2 x {clip}'
    ranked = printed('query', index, *given[:2], '--image', tmp_path / 'a.png').out.splitlines()
    assert ranked[0] == str(tmp_path / 'a.png') and len(ranked) == 3


def test_a_query_says_what_may_be_found(printed, index):
    def videos(*arguments):
        out = printed('query', index, 'a dog', '--json', *arguments)
        return [hit['video'] for hit in json.loads(out.out)[0]['hits']], out.err

    found, said = videos('--min-score', -1)
    assert len(found) == 5 and not said
    assert videos('--min-score', -1, '--path', '[12]*')[0] == [v for v in found if v[0] in '12']
    assert videos('--min-score', -1, '--min-duration', 2, '--max-duration', 3)[0] == found
    with pytest.raises(UserError, match='--path'):
        videos('--min-duration', 3)
    threshold = VideoIndex.open(index).threshold
    found, said = videos()
    assert f'below {threshold:.4f} are left out' in said and '--min-score' in said
    assert len(found) < 5  # one in twenty pairs alone is above
    assert videos('--min-score', 1)[0] == []
    assert 'nothing found' in printed('query', index, 'a dog', '--min-score', 1).out


def test_what_begins_as_an_option_can_be_given(printed, index, video_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(video_folder / '3.mp4', '-d.mp4')
    for given in (['--video', '-d.mp4'], ['--video=-d.mp4']):
        answer = json.loads(printed('query', index, '--json', *given).out)[0]
        assert answer['video'] == '-d.mp4' and answer['hits'][0]['video'] == '3.mp4'
    answers = json.loads(printed('query', index, 'a dog', '--json', '--', '-a', '--b c').out)
    assert [answer['text'] for answer in answers] == ['a dog', '-a', '--b c']


def test_faults_are_named(run_tool, capsys, retrieval_config, index, model, video_folder, tmp_path):
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    damaged, new = shutil.copytree(index, tmp_path / 'damaged'), tmp_path / 'new'
    next(damaged.glob('config-*.json')).write_text('model = (')
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict=MODELS.build(retrieval_config().model).state_dict()), other)
    for at_fault, *arguments in (
        ('what to find', 'query', index),
        ('no words', 'query', index, '  '),
        ('--topk', 'query', index, 'a dog', '--topk', '0'),
        ('2 weights for 1', 'query', index, 'a dog', '--weights', '1', '2'),
        ('need --weights', 'query', index, '--video', 'a.mp4', '--image', 'a.png'),
        ('--stride needs', 'index', video_folder, new, '--stride', '5'),
        ('--window', 'index', video_folder, new, '--window', '0'),
        ('--nonsense', 'query', index, 'a dog', '--nonsense'),
    ):
        with pytest.raises(SystemExit) as stop:
            run_tool('tools/search.py', *arguments)
        assert stop.value.code == 2 and at_fault in capsys.readouterr().err
    for at_fault, *arguments in (
        ('config-', 'query', damaged, 'a dog'),
        ('config-', 'index', video_folder, damaged),
        ('broken.mp4', 'query', index, '--video', tmp_path / 'broken.mp4'),
        ('broken.mp4', 'query', index, '--image', tmp_path / 'broken.mp4'),
        ('stride', 'index', video_folder, new, '--window', '2', '--stride', '3', *model),
        ('nothing is left', 'query', index, 'a', 'a', '--weights', '1', '-1'),
        ('another model', 'query', index, 'a dog', *model[:3], other),
        ('new', 'index', video_folder, new),
        ('new', 'query', new, 'a dog'),
        ('new', 'info', new),
        ('none', 'index', tmp_path / 'none', index),
    ):
        with pytest.raises(UserError, match=at_fault):
            run_tool('tools/search.py', *arguments)
    run_tool('tools/search.py', 'query', index, 'a dog', *model)  # its own may be named


def test_a_wrong_option_does_not_ask_to_delete_the_index(run_tool, index):
    with pytest.raises(UserError, match=r'The model of .* cannot be made: .*promts') as refused:
        run_tool(
            'tools/search.py', 'query', index, 'a dog', '--cfg-options', 'model.visual.promts=[]'
        )
    assert 'damaged' not in str(refused.value) and 'Delete' not in str(refused.value)


def test_a_query_of_texts_imports_neither_mmaction_nor_what_trains(index):
    tool = ROOT / 'tools/search.py'
    printed = run_command(sys.executable, '-c', IMPORTED, tool, index).splitlines()
    assert any('.mp4' in line for line in printed)  # it was answered
    info, query = json.loads(next(line for line in printed if line.startswith('[[')))
    ours = {f'projects.vop.{name}' for name in ('datasets', 'evaluation', 'recognition', 'report')}
    ours |= {f'projects.vop.engine.{name}' for name in ('runner', 'finite', 'checkpoint_hook')}
    ours |= {'projects.vop.search.update', 'projects.vop.damage'}
    hosts = {'mmengine.runner', 'mmengine.hooks', 'mmengine.visualization', 'mmengine.dataset'}
    hosts |= {'mmaction', 'mmcv', 'cv2', 'scipy', 'av', 'decord'}
    assert 'projects.vop.models.retriever' in query
    assert (ours | hosts) & {*info, *query} == set()
    assert {'torch', 'open_clip', 'faiss'} & {*info} == set()


def test_a_query_opens_the_index_once(printed, index, monkeypatch):
    """An update between two looks would be taken for another model."""
    opened, open_it = [], VideoIndex.open
    monkeypatch.setattr(VideoIndex, 'open', lambda path: opened.append(path) or open_it(path))
    printed('query', index, 'a dog')
    assert opened == [index]


def test_an_update_needs_no_model_and_may_be_approximate(printed, index, video_folder, tmp_path):
    """Names need not be text."""
    moved = shutil.copytree(index, tmp_path / 'index')
    videos = shutil.copytree(video_folder, tmp_path / 'videos')
    (videos / '0.mp4').unlink()
    (videos / '1.mp4').write_bytes(b'no video')
    (videos / '2.mp4').rename(videos / os.fsdecode(b'caf\xe9.mp4'))
    (videos / '3.mp4').rename(videos / 'a\n   1   1.0000  b\u202e\x1b[2K.mp4')
    shutil.copy(videos / '4.mp4', videos / '._4.mp4')
    out = printed('index', videos, moved, '--num-workers', 0).out
    for text in ('2 videos added', '3 removed', '1 kept', '1 unreadable', '1.mp4: ', 'failed.json'):
        assert text in out
    out = printed('info', moved).out
    assert f'3 videos of {videos}' in out and '1 videos could not be read' in out
    lines = printed('query', moved, 'a dog', '--min-score', -1).out.splitlines()
    assert len(lines) == 4  # each hit on one, whatever its name
    assert any(line.endswith('caf\\xe9.mp4') for line in lines)
    assert any(line.endswith('a\\n   1   1.0000  b\\u202e\\x1b[2K.mp4') for line in lines)

    inferencer = VideoIndex.open(moved).load_inferencer('cpu', show_progress=False)
    update_index(inferencer, videos, moved, num_workers=0, exact_below=3)
    hits = []
    for how in ((), ('--exact',)):
        out, err = printed('query', moved, 'a dog', '--json', '--min-score', -1, *how)
        hits.append([hit['video'] for hit in json.loads(out)[0]['hits']])
        assert ('IVF' in err) == (not how)
    assert len(hits[0]) == 3 and hits[0] == hits[1]
    assert 'IVF' in printed('info', moved).out


def saved_names(index):
    parts = [np.load(path)['names'].tobytes() for path in index.glob('parts/*/*.npz')]
    return {name for names in parts for name in json.loads(names)}


def test_ctrl_c_keeps_what_is_encoded(printed, run_tool, model, video_folder, tmp_path):
    cfg = Config.fromfile(model[1])
    cfg.test_dataloader.dataset.pipeline.insert(0, dict(type='vop.PressCtrlC'))
    cfg.dump(tmp_path / 'config.py')
    command = ['index', video_folder, tmp_path / 'index', '--batch-size', 1, '--num-workers', 0]
    with pytest.raises(SystemExit) as stop:
        run_tool('tools/search.py', *command, '--config', tmp_path / 'config.py', *model[2:])
    assert stop.value.code == 130
    with pytest.raises(UserError, match='is not finished'):
        VideoIndex.open(tmp_path / 'index')
    assert len(saved_names(tmp_path / 'index')) == 4


def test_two_processes_killed_and_started_again(
    run_tool, model, video_folder, tmp_path, monkeypatch
):
    """What was saved is not encoded again, and all is as from one process."""
    (tmp_path / 'killer.py').write_text(KILLER)
    cfg = Config.fromfile(model[1])
    cfg.custom_imports = dict(imports=['projects.vop', 'killer'])
    cfg.test_dataloader.dataset.pipeline.insert(0, dict(type='vop.KillOn'))
    cfg.dump(tmp_path / 'hooked.py')
    videos, index, log = tmp_path / 'videos', tmp_path / 'index', tmp_path / 'log'
    videos.mkdir()
    for number in range(12):
        shutil.copy(video_folder / f'{number % 5}.mp4', videos / f'{number:02}.mp4')
    largest = sorted(sorted(videos.iterdir()), key=lambda path: -path.stat().st_size)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('LOG', str(log))
    monkeypatch.setenv('KILL_ON', largest[7].name)
    hooked = ['tools/search.py', 'index', videos, index, '--batch-size', 1, '--num-workers', 0]
    hooked += ['--config', tmp_path / 'hooked.py', *model[2:], '--launcher', 'pytorch']
    with pytest.raises(ProcessExitedException, match='SIGKILL'):
        in_two_processes(run_tool, *hooked)
    saved = saved_names(index)
    # Also what the process had finished that was killed.
    assert {largest[place].name for place in (1, 3, 5)} <= saved and len(saved) < 12
    log.unlink()
    monkeypatch.delenv('KILL_ON')
    in_two_processes(
        run_tool, *hooked
    )  # an index does not import a transform that is not registered
    assert sorted(log.read_text().split()) == sorted({path.name for path in largest} - saved)
    inferencer = VoPInferencer(model[1], model[3], 'cpu', show_progress=False)
    update_index(inferencer, videos, tmp_path / 'alone', num_workers=0)
    one, two = VideoIndex.open(tmp_path / 'alone'), VideoIndex.open(index)
    assert one.names == two.names
    assert np.allclose(one.embeddings, two.embeddings, atol=1e-6)


def test_slurm_script(tmp_path, monkeypatch):
    """With a stand-in for ``srun`` that prints what it would start."""
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "$@"')
    (tmp_path / 'srun').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    arguments = ['part', 'job', 'videos', 'index', '--batch-size', '4']
    printed = run_command(ROOT / 'tools/slurm_search.sh', *arguments, GPUS='4')
    assert '-p part --job-name=job --gres=gpu:4 --ntasks=4' in printed
    assert 'tools/search.py index videos index --batch-size 4 --launcher slurm' in printed
    for script in ('dist_search.sh', 'slurm_search.sh'):
        assert run_command(ROOT / 'tools' / script, ok=False).startswith('usage:')
