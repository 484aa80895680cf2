"""``tools/test.py --report``, and tests without retrieval, in this process."""

import itertools
import json
import multiprocessing
import os
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from projects.vop.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]

RECOGNITION = """
_base_ = '{root}/configs/_base_/runtime.py'
model = dict(
    type='Recognizer2D',
    backbone=dict(type='MobileNetV2', widen_factor=0.1),
    cls_head=dict(type='TSNHead', num_classes=3, in_channels=1280,
                  average_clips='prob'),
    data_preprocessor=dict(type='ActionDataPreprocessor', mean=[0.] * 3,
                           std=[255.] * 3, format_shape='NCHW'))
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler',
                                              shuffle=False),
    dataset=dict(
        type='VideoDataset', ann_file='{labels}', test_mode=True,
        data_prefix=dict(video='{videos}'),
        pipeline=[
            dict(type='DecordInit'),
            dict(type='UniformSample', clip_len=1, num_clips=2,
                 test_mode=True),
            dict(type='DecordDecode'),
            dict(type='Resize', scale=(32, 32), keep_ratio=False),
            dict(type='FormatShape', input_format='NCHW'),
            dict(type='PackActionInputs')
        ]))
test_evaluator = dict(type='AccMetric')
test_cfg = dict(type='TestLoop')
"""


@pytest.fixture
def run(tmp_path, run_tool):
    """Runs the tool in this process; gives the metrics that it logged."""
    number = itertools.count()

    def run(*arguments):
        work_dir = tmp_path / f'work{next(number)}'
        run_tool('tools/test.py', *arguments, '--work-dir', work_dir)
        (file,) = work_dir.glob('*/*.json')
        return json.loads(file.read_text())

    return run


@pytest.fixture
def retrieval(tmp_path, retrieval_config):
    path = tmp_path / f'{tmp_path.name}.py'
    config = retrieval_config()
    config.test_dataloader.batch_size = 2
    config.dump(path)
    return path


@pytest.fixture
def checkpoint(tmp_path, retrieval_config):
    path = tmp_path / 'prompts.pth'
    model = MODELS.build(retrieval_config().model)
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture
def recognition(tmp_path, video_folder):
    labels = tmp_path / 'labels.txt'
    labels.write_text(
        ''.join(f'{number}.mp4 {label}\n' for number, label in enumerate([0, 1, 1, 2, 1]))
    )
    path = tmp_path / f'{tmp_path.name}.py'
    path.write_text(RECOGNITION.format(root=ROOT, labels=labels, videos=video_folder))
    return path


class Reader(HTMLParser):
    """Collects numbers of the table of metrics, texts and pictures."""

    def __init__(self, path):
        super().__init__()
        self.open, self.metrics, self.texts, self.alts = [], [], [], []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.open.append((tag, attrs.get('class')))
        if tag == 'data' and ('table', 'metrics') in self.open:
            self.metrics.append(float(attrs['value']))

    def handle_startendtag(self, tag, attrs):
        if tag == 'img':
            self.alts.append(dict(attrs)['alt'])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_has_what_was_tested(run, retrieval, checkpoint, video_folder, tmp_path):
    (tmp_path / 'page').mkdir()
    (tmp_path / 'page/index.html').write_text('an older page')
    logged = run(
        retrieval,
        checkpoint,
        '--report',
        tmp_path / 'page',
        '--report-queries',
        2,
        '--dsl',
        '--cfg-options',
        'test_dataloader.batch_size=3',
    )
    assert [path.name for path in (tmp_path / 'page').iterdir()] == ['index.html']
    page = Reader(tmp_path / 'page/index.html')
    assert page.metrics == [
        logged[f'{prefix}{way}/{name}']
        for prefix in ('', 'dsl/')
        for way in ('t2v', 'v2t')
        for name in ('R@1', 'R@5', 'R@10', 'MdR', 'MnR')
    ]
    for text in (
        str(retrieval),
        str(checkpoint),
        str(video_folder / 'test.json'),
        'test_dataloader.batch_size=3',
        '5 videos, 15 captions',
        '2 worst of 15 queries',
        '2 random of 5 queries',
    ):
        assert text in page.texts
    # Five of five videos for each of 6 captions, and one for each of 6 videos.
    assert len(page.alts) == 36
    captions = [text for text in page.texts if text.startswith('caption ')]
    assert len(captions) >= 6 + 6 * 5


@pytest.mark.skipif(torch.cuda.is_available(), reason='CUDA does not go on in forks')
def test_two_processes_write_the_same_page(run, run_tool, retrieval, tmp_path):
    """Five videos, in batches of two, by two processes."""
    run(retrieval, '--report', tmp_path / 'one')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])

    def work(rank):
        os.environ.update(
            RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2', MASTER_PORT=port, MASTER_ADDR='127.0.0.1'
        )
        # Not `run`: the first writes the metrics, maybe after the second ends.
        run_tool(
            'tools/test.py',
            retrieval,
            '--report',
            tmp_path / 'two',
            '--launcher',
            'pytorch',
            '--work-dir',
            tmp_path / 'work',
        )

    processes = [
        multiprocessing.get_context('fork').Process(target=work, args=(rank,)) for rank in '01'
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert 'none' in Reader(tmp_path / 'one/index.html').texts  # checkpoint
    one, two = (
        (tmp_path / name / 'index.html').read_text().split('<main')[1] for name in ('one', 'two')
    )
    assert one == two


@pytest.mark.parametrize(
    'folder, message',
    [
        ('file', 'There can be no folder'),
        ('taken', 'index.html can be written'),
    ],
)
def test_a_page_that_cannot_be_is_an_error_before(run, retrieval, tmp_path, folder, message):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'taken/index.html').mkdir(parents=True)
    with pytest.raises(SystemExit, match=message):
        run(retrieval, '--report', tmp_path / folder)
    assert not list(tmp_path.glob('work*'))


def test_a_number_of_queries_that_shows_none(run, retrieval, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(retrieval, '--report', tmp_path, '--report-queries', 0)
    assert 'takes a number of 1 or more' in capsys.readouterr().err


def test_a_recognizer_is_tested_with_its_checkpoint(run, recognition, tmp_path):
    """It says class 1, whatever it sees; three of five videos are that."""
    model = {}
    exec(recognition.read_text().replace('_base_', 'base'), model)
    model = MODELS.build(model['model'])
    torch.nn.init.zeros_(model.cls_head.fc_cls.weight)
    model.cls_head.fc_cls.bias.data = torch.tensor([0.0, 1.0, 0.0])
    checkpoint = tmp_path / 'recognizer.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    logged = run(recognition, checkpoint, '--dump', tmp_path / 'out.pkl')
    assert logged['acc/top1'] == pytest.approx(0.6)
    assert (tmp_path / 'out.pkl').stat().st_size > 0


@pytest.mark.parametrize('option', [['--dsl'], ['--report', 'page']])
def test_a_recognizer_has_no_retrieval(run, recognition, tmp_path, option):
    if option[1:]:
        option = ['--report', tmp_path / 'page']
    with pytest.raises(
        SystemExit, match='--report need one vop.RetrievalMetric in test_evaluator .* has 0'
    ):
        run(recognition, *option)
    assert not (tmp_path / 'page').exists()
