"""Videos that cannot be used are found before a run."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from projects.vop.errors import UserError
from projects.vop.registry import TRANSFORMS

SCRIPT = 'tools/data/check_videos.py'


@TRANSFORMS.register_module()
class ActByName:
    """Acts by the name of the video, as a damaged one lets its decoder act."""

    def __call__(self, results):
        if 'crash' in results['filename']:
            os.kill(os.getpid(), signal.SIGSEGV)
        if 'hang' in results['filename']:
            time.sleep(60)
        return results


@pytest.fixture
def videos(video_folder, tmp_path):
    folder = tmp_path / 'videos'
    folder.mkdir()
    for name in ('a.mp4', 'b.mp4', 'crash.mp4', 'hang.mp4'):
        (folder / name).symlink_to(video_folder / '0.mp4')
    (folder / 'caf\udce9.mp4').write_text('no video')
    (folder / 'gone.mp4').symlink_to('nowhere.mp4')
    (folder / 'notes.txt').write_text('no video either')
    os.mkfifo(folder / 'pipe.mp4')
    return folder


@pytest.fixture
def check(run_tool, capsys, tmp_path, video_folder):
    """Runs the tool with a short pipeline; gives its exit code and what it printed."""
    config = tmp_path / 'config.py'
    pipeline = """[
        dict(type='DecordInit'), dict(type='vop.ActByName'), dict(type='vop.TimeWindow'),
        dict(type='UniformSample', clip_len=2, num_clips=1), dict(type='DecordDecode')]"""
    whole = "dict(type='vop.VideoTextDataset', timeout=3, pipeline={})"

    def run(source, *options, dataset=whole):
        config.write_text(f'train_dataloader = dict(dataset={dataset.format(pipeline)})')
        code = 0
        try:
            run_tool(SCRIPT, source, '--config', config, '--jobs', 2, *options)
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out

    return run


REASONS = {
    'caf\\udce9.mp4': 'Error',
    'crash.mp4': 'its decoder ended the process (signal 11, Segmentation fault)',
    'gone.mp4': 'there is no such file',
    'hang.mp4': 'it took longer than 3 s',
    'pipe.mp4': 'it is not a regular file',
}


@pytest.mark.slow
def test_a_folder(check, videos):
    code, printed = check(videos)
    *lines, last = printed.splitlines()
    assert code == 1 and last == '7 videos read; 5 cannot be used.'
    for name, reason in REASONS.items():
        shown = str(videos / name).replace('\\udce9', '\\xe9')
        assert [line for line in lines if line.startswith(f'{shown}: ') and reason in line]
    for name in ('crash', 'gone', 'hang', 'pipe', 'caf\udce9'):
        (videos / f'{name}.mp4').unlink()
    assert check(videos) == (0, '2 videos read; 0 cannot be used.\n')


@pytest.mark.slow
def test_an_annotation_file(check, videos):
    annotations = {'a': ['one', 'two'], 'pipe.mp4': ['x'], 'none.mp4': ['x']}
    annotations['b.mp4'] = dict(captions=['x'], start=100)
    path = videos.parent / 'train.json'
    path.write_text(json.dumps(annotations))
    code, printed = check(path)
    *lines, last = printed.splitlines()
    assert code == 1 and last == '4 videos read; 3 cannot be used.'
    for name, reason in {'pipe': 'regular', 'none': 'no such', 'b': 'its window'}.items():
        assert [line for line in lines if f'{name}.mp4: ' in line and reason in line]
    with pytest.raises(UserError, match='1 of the 1 videos'):
        path.write_text(json.dumps({'a.mp4': ['x']}))
        check(path, '--videos', videos.parent)
    for source in (videos.parent / 'none.json', videos.parent / 'none'):
        with pytest.raises(UserError, match=source.name):
            check(source)
    assert check(videos, '--jobs', 0)[0] == 2
    with pytest.raises(UserError, match='timeout'):
        check(videos, '--timeout', 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    'wrapper', ["'ConcatDataset', datasets=[{}]", "'RepeatDataset', dataset={}"]
)
def test_data_sets_in_others_and_of_other_classes(check, videos, wrapper):
    for name in ('crash', 'gone', 'hang', 'pipe', 'caf\udce9'):
        (videos / f'{name}.mp4').unlink()
    path = videos.parent / 'train.json'
    path.write_text(json.dumps({'a.mp4': ['x']}))
    part = "dict(type='vop.VideoTextDataset', pipeline={})"
    inside = f'dict(type={wrapper.format(part)})'
    assert check(path, dataset=inside) == (0, '1 videos read; 0 cannot be used.\n')
    assert check(videos, dataset=inside) == (0, '2 videos read; 0 cannot be used.\n')
    other = "dict(type='VideoDataset', pipeline={})"
    assert check(videos, dataset=other)[0] == 0
    with pytest.raises(UserError, match='config.py: train_dataloader.dataset is no vop.Vid.*train'):
        check(path, dataset=other)
    with pytest.raises(UserError, match='config.py: train_dataloader.dataset has no pipeline'):
        check(videos, dataset=f'dict(type={wrapper.format(other)})')


@pytest.mark.slow
def test_it_can_be_stopped(check, videos):
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    code, printed = check(videos, '--timeout', 60)
    assert code == 130 and 'Stopped' in printed
    assert not multiprocessing.active_children()
