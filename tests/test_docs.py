"""The documentation, held to what it says.

Every command in it is run, in the order of its page and as it stands there, in
a copy of configs/ and tools/ whose CLIP is a tiny one and whose data sets are
small copies in their owners' formats. Python runs in this process.
"""

import copy
import gc
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers import ROOT, SOURCES, TINY_CLIP, WANTED, free_port, save_clip
from mmengine.registry import init_default_scope
from open_clip import get_tokenizer
from torch.distributed.run import get_args_parser

from projects.vop.compat import fresh_instances
from projects.vop.datasets.moving_shapes import write_moving_shapes
from projects.vop.engine import open_config
from projects.vop.engine.parameters import build_without_weights, count_by_part
from projects.vop.paper import TABLE_1
from projects.vop.registry import MODELS

PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
]
# Pages that make the data sets themselves; on others they are there.
FROM_DOWNLOADS = ('README.md', 'docs/data.md')

TRAINS_A_CLIP = ('tests/test_tools/test_quickstart.py', 'test_the_quickstart_compares_four_methods')
DEMO = ('tests/test_tools/test_demo.py', 'test_type_a_query_and_watch_what_was_found')
SLURM = ('tests/test_tools/test_train_and_test.py', 'test_slurm_scripts')
# What is not run here, by its first words, and the test that does.
ELSEWHERE = {
    'bash tools/quickstart.sh': TRAINS_A_CLIP,
    'python tools/data/moving_shapes.py': TRAINS_A_CLIP,
    'tools/slurm_train.sh': SLURM,
    'tools/slurm_test.sh': SLURM,
    'tools/slurm_search.sh': ('tests/test_tools/test_search.py', 'test_slurm_script'),
    'python tools/demo.py': DEMO,  # it serves until it is stopped
    # These come before any test: continuous integration begins with them.
    'bash tools/run_tests.sh': ('.ci/run', 'bash tools/run_tests.sh'),
    'pip install -e': ('tools/env.sh', '-e ".'),
}
# What makes a command light, in place of its own words.
LIGHTER = {
    '--num-workers 4 8 16': '--num-workers 0 1 --steps 1 --warmup 0',
    'tools/reproduce.py': 'tools/reproduce.py --dry-run',
    # As the fixture `home` sets them.
    'epoch_96.pth': 'epoch_1.pth',
    'epoch_192.pth': 'epoch_1.pth',
}


# Reading pages


def read(page):
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page, language):
    """Code blocks of a language, without the margin of a list."""
    found = re.findall(r'^( *)```(\w*)\n(.*?)^ *```$', read(page), re.MULTILINE | re.DOTALL)
    return [
        re.sub(f'^{margin}', '', text, flags=re.MULTILINE)
        for margin, name, text in found
        if name == language
    ]


def prose(page):
    """A page without its code blocks."""
    return re.sub(r'^ *```.*?^ *```$', '', read(page), flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Commands of a page, in its order, each in one line."""
    lines = ''.join(blocks(page, 'shell')).replace('\\\n', ' ').split('\n')
    return [line for line in lines if shlex.split(line, comments=True)]


def elsewhere(command):
    return next((test for words, test in ELSEWHERE.items() if command.startswith(words)), None)


def anchors(page):
    """Names that GitHub gives to the headings of a page."""
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in re.findall(r'^#+ (.+)$', prose(page), re.MULTILINE)
    }


def links(page):
    """Targets of a page's links within the project: a file, an anchor."""
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if not re.match(r'[a-z]+:', target):
            file, _, anchor = target.partition('#')
            yield (ROOT / page).parent / file if file else ROOT / page, anchor


def rows(page):
    """Rows of the tables of a page, as dicts, links and code as text."""
    for table in re.findall(r'(?:^\|.*\n)+', prose(page), re.MULTILINE):
        head, _, *lines = [
            [
                re.sub(r'\[(.*?)\]\(.*?\)', r'\1', cell).strip(' `')
                for cell in line.strip().strip('|').split('|')
            ]
            for line in table.splitlines()
        ]
        yield from ((head, cells) for cells in lines)


# A place to run in


@contextmanager
def new_process(folder, env):
    """What a process finds that is started in a folder."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        with (
            fresh_instances(),
            mock.patch.dict(os.environ, env),
            mock.patch.object(sys, 'path', list(sys.path)),
        ):
            yield
    finally:
        os.chdir(here)
        for name, module in list(sys.modules.items()):
            if (getattr(module, '__file__', '') or '').startswith(str(folder)):
                del sys.modules[name]


class Shell:
    """Runs the commands of a page."""

    def __init__(self, folder):
        self.folder, self.env = folder, {}

    def run(self, command):
        for words, lighter in LIGHTER.items():
            command = command.replace(words, lighter)
        words, env = shlex.split(command, comments=True), dict(self.env)
        assert not set(words) & set('|;&<>'), f'more than a command: {command}'
        while re.match(r'\w+=', words[0]):
            name, _, value = words.pop(0).partition('=')
            env[name] = value
        if words[0] == 'export':
            self.env.update(word.split('=', 1) for word in words[1:])
            return
        if '--amp' in words and not torch.cuda.is_available():
            words.remove('--amp')
        if words[0] == 'python':
            self.run_python(words[1:], env)
        else:
            self.launch(words, env)

    def launch(self, words, env):
        """Runs a launcher, and one of the processes that it asks torch for.

        Two of them are tests/test_tools/test_train_and_test.py's.
        """
        done = subprocess.run(
            words,
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=dict(os.environ, **env, PATH=self.path()),
        )
        assert done.returncode == 0, done.stderr
        module, *arguments = done.stdout.splitlines()[1:]
        assert module == 'torch.distributed.run'
        asked = get_args_parser().parse_args(arguments)
        try:
            self.run_python(
                [asked.training_script, *asked.training_script_args],
                dict(
                    env,
                    RANK='0',
                    LOCAL_RANK='0',
                    WORLD_SIZE='1',
                    MASTER_ADDR=asked.master_addr,
                    MASTER_PORT=free_port(),
                ),
            )
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def path(self):
        return f'{self.folder}/bin:{os.environ["PATH"]}'

    def run_python(self, words, env):
        script = self.folder / words[0]
        with new_process(self.folder, dict(env, PATH=self.path())):
            sys.path.insert(0, str(script.parent))
            with mock.patch.object(sys, 'argv', words):
                try:
                    runpy.run_path(str(script), run_name='__main__')
                except SystemExit as stop:
                    assert not stop.code, f'{" ".join(words)}: {stop.code}'


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def write_clip(folder):
    """A CLIP of 12 layers, as configs want it, and heads as OpenAI's."""
    config = copy.deepcopy(TINY_CLIP)
    config['vision_cfg'].update(layers=12, head_width=64)
    config['text_cfg'].update(layers=12, width=64, heads=1)
    write(folder / 'tiny-clip.json', json.dumps(config))
    save_clip(folder / 'tiny-clip.json', folder / 'downloads/ViT-B-32.pt')


def write_few_moving_shapes(home):
    """MovingShapes with four clips a list, and a CLIP that knows nothing."""
    folder = home / 'data/moving_shapes'
    write_moving_shapes(folder)
    for split in ('train', 'test'):
        lines = (folder / f'{split}_directions.txt').read_text().splitlines()
        write(folder / f'{split}_directions.txt', '\n'.join(lines[:4]))
        captions = json.loads((folder / f'{split}.json').read_text())
        write(folder / f'{split}.json', json.dumps(dict(list(captions.items())[:4])))
    save_clip(home / 'configs/moving_shapes/moving-shapes-clip.json', folder / 'clip.pt')


def replace(path, **words):
    text = path.read_text()
    for old, new in words.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


MSRVTT = {
    'MSRVTT_data.json': json.dumps(
        {
            'sentences': [
                dict(video_id=f'video{i}', caption=f'{i} says {j}')
                for i in range(4)
                for j in range(2)
            ]
        }
    ),
    'MSRVTT_train.9k.csv': 'video_id\nvideo0\nvideo1\n',
    'MSRVTT_train.7k.csv': 'video_id\nvideo0\n',
    'MSRVTT_JSFUSION_test.csv': 'key,vid_key,video_id,sentence\n'
    'ret0,msr2,video2,a man\nret1,msr3,video3,a dog\n',
}


@pytest.fixture(scope='module', autouse=True)
def _what_takes_time():
    """Without it, the runs of this file take twice as long."""
    gc.freeze()  # data sets collect garbage, among all that was imported
    with pytest.MonkeyPatch.context() as patch:
        # Nothing depends on the layout of the configs that are logged.
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **kwargs: (text, True))
        patch.setattr('open_clip.get_tokenizer', cache(get_tokenizer))
        yield
    gc.unfreeze()


@pytest.fixture(scope='module')
def home(tmp_path_factory, write_video):
    """A checkout beside downloads and videos, with all annotation files."""
    home = tmp_path_factory.mktemp('home')
    shutil.copytree(ROOT / 'configs', home / 'configs')
    shutil.copytree(ROOT / 'tools', home / 'tools')
    (home / 'projects').symlink_to(ROOT / 'projects')
    for name in ('python', 'sbatch'):  # stand-ins that print their arguments
        write(home / 'bin' / name, '#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (home / 'bin' / name).chmod(0o755)
    for name, files in dict(SOURCES, msrvtt=MSRVTT).items():
        for file, text in files.items():
            write(home / 'downloads' / name / file, text)
    write_clip(home)
    replace(
        home / 'configs/_base_/models/zero_shot.py',
        **{
            "'ViT-B-32-quickgelu'": repr(str(home / 'tiny-clip.json')),
            "'openai'": repr(str(home / 'downloads/ViT-B-32.pt')),
        },
    )
    replace(
        home / 'configs/_base_/datasets/_video_text.py',
        **{
            '224': '32',
            'num_workers=8': 'num_workers=0',
            'persistent_workers=True': 'persistent_workers=False',
        },
    )

    write_video(home / 'video.mp4', 16, 48, 64)
    names = {
        name: [v if Path(v).suffix else f'{v}.mp4' for split in splits.values() for v in split]
        for name, splits in WANTED.items()
    }
    names['msrvtt'] = [f'video{i}.mp4' for i in range(4)]
    videos = [
        home / 'data' / name / 'videos' / video for name, those in names.items() for video in those
    ]
    videos += [home / f'my_videos/pet{i}.mp4' for i in range(3)]
    videos.append(home / 'clip.mp4')
    for path in videos:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(home / 'video.mp4')
    write(
        home / 'my_captions.csv',
        'video,caption\n' + ''.join(f'pet{i}.mp4,pet {i}\n' for i in range(3)),
    )
    for name in names:
        Shell(home).run(f'python tools/data/{name}.py downloads/{name} --videos data/{name}/videos')
    shutil.copytree(home / 'data/msrvtt', home / 'data/msrvtt_small', symlinks=True)
    write_few_moving_shapes(home)
    replace(
        home / 'configs/mix/_kinetics400_.py',
        **{'persistent_workers=True': 'persistent_workers=False'},
    )
    replace(
        home / 'configs/mix/_moving_shapes_.py',
        **{
            'num_workers=2': 'num_workers=0',
            'max_epochs=96': 'max_epochs=1',
            'interval=24': 'interval=1',
        },
    )
    replace(home / 'configs/moving_shapes/_data_.py', **{'num_workers=2': 'num_workers=0'})
    replace(
        home / 'configs/moving_shapes/_base_.py',
        **{'max_epochs=192': 'max_epochs=1', 'interval=48': 'interval=1'},
    )
    return home


@pytest.fixture(scope='module')
def released(home):
    """The released model's file, of random weights."""
    with new_process(home, {}):
        init_default_scope('mmaction')
        tool = runpy.run_path('tools/convert_modelscope.py')
        cfg = open_config('configs/vop_msrvtt_released.py')
        torch.save(dict(state_dict=tool['layout'](MODELS.build(cfg.model))), 'VoP_msrvtt9k.pth')


@pytest.fixture
def place(home, released, tmp_path):
    """Makes a page's own copy of all this."""

    def make(page):
        shutil.copytree(home, tmp_path / 'place', symlinks=True)
        if page in FROM_DOWNLOADS:
            for path in (tmp_path / 'place/data').glob('*/*.json'):
                path.unlink()
            shutil.rmtree(tmp_path / 'place/data/msrvtt_small')
        return tmp_path / 'place'

    return make


def train_what_is_named(text, home, folder):
    """A page may begin with the checkpoint of another one."""
    for name in re.findall(r'\bwork_dirs/(\w+)/epoch_5.pth', text):
        if (folder / f'work_dirs/{name}').exists():
            continue
        if not (home / f'work_dirs/{name}').exists():
            Shell(home).run(f'python tools/train.py configs/{name}.py')
        shutil.copytree(home / f'work_dirs/{name}', folder / f'work_dirs/{name}')


# Tests


@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)])
def test_commands_run(page, home, place):
    folder = place(page)
    shell = Shell(folder)
    for command in commands(page):
        if elsewhere(command):
            continue
        train_what_is_named(command, home, folder)
        shell.run(command)


def test_commands_that_do_not_run_here_run_elsewhere():
    everything = [c for page in PAGES for c in commands(page)]
    for words, (file, text) in ELSEWHERE.items():
        assert any(command.startswith(words) for command in everything)
        wanted = f'def {text}(' if file.endswith('.py') else text
        assert wanted in (ROOT / file).read_text()


@pytest.mark.parametrize('page', PAGES)
def test_code_says_its_language(page):
    """Else a command could stand there that nothing runs."""
    languages = re.findall(r'^ *```(.*)\n', read(page), re.MULTILINE)
    assert set(languages[::2]) <= {'shell', 'python', 'json', 'bibtex', ''}
    assert set(languages[1::2]) <= {''}
    assert not re.search(
        r'^ *(python|bash|pip|tools/\S+\.sh) ', ''.join(blocks(page, '')), re.MULTILINE
    )


@pytest.mark.parametrize('page', [p for p in PAGES if blocks(p, 'python')])
def test_python_runs(page, home, place):
    """A block goes on where the one before it ended."""
    folder, names = place(page), {}
    for number, code in enumerate(blocks(page, 'python')):
        train_what_is_named(code, home, folder)
        path = folder / f'configs/block_{number}.py'
        path.write_text(code)
        with new_process(folder, {}):
            if re.search('^_base_ = ', code, re.MULTILINE):
                init_default_scope('mmaction')
                cfg = open_config(path)
                assert (
                    build_without_weights(cfg) if 'clip' in cfg.model else MODELS.build(cfg.model)
                )
            else:
                exec(compile(code, path, 'exec'), names)


@pytest.mark.parametrize('page', [p for p in PAGES if blocks(p, 'json')])
def test_json_is_valid(page):
    for text in blocks(page, 'json'):
        json.loads(text)


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        assert path.exists(), path
        if anchor:
            target = str(path.resolve().relative_to(ROOT))
            assert anchor in anchors(target), f'{target}#{anchor}'


def test_every_page_is_linked_from_the_first():
    found = ['README.md']
    for page in found:
        found += {
            str(path.resolve().relative_to(ROOT)) for path, _ in links(page) if path.suffix == '.md'
        } - set(found)
    assert set(found) == set(PAGES)


@pytest.mark.parametrize('page', PAGES)
def test_paths_and_options_exist(page):
    code = ' '.join(re.findall(r'`([^`]+)`', prose(page)))
    for name in re.findall(r'(?<![\w/])(?:configs|tools|projects|tests|docs)/[\w./-]+', code):
        if re.search(r'METHOD|DATASET|NAME|pets', name):
            continue  # which are for the reader to fill in, or made
        path = ROOT / name
        assert path.exists() or name.endswith('.py') and open_config(path)
    known = ''.join(
        path.read_text() for path in (ROOT / 'tools').rglob('*') if path.suffix in ('.py', '.sh')
    )
    for option in re.findall(r'(?<![\w-])--[a-z][\w-]+', code):
        assert f"'{option}'" in known or option in ('--shm-size',), option


def figures(cells):
    return [float(cell) for cell in cells if cell != '-']


def test_figures_of_the_paper_are_its_table():
    """Also the numbers of parameters, which are counted."""
    methods = []
    for page in PAGES:
        if not page.startswith('docs/models/'):
            continue
        for head, (method, trained, *numbers) in rows(page):
            if head[:2] == ['config', 'trained']:
                methods.append(method)
                row = TABLE_1[method]
                assert figures(numbers) == [*(row.t2v or ()), *(row.v2t or ())], method
                assert trained == trained_by(method)
    assert sorted(methods) == sorted(TABLE_1)


@cache
def trained_by(method):
    parts = count_by_part(build_without_weights(open_config(ROOT / f'configs/{method}_msrvtt.py')))
    return f'{sum(part.trained for part in parts.values()):,}'


def test_the_table_of_methods_is_right():
    table = {
        cells[1]: cells for head, cells in rows('README.md') if head[:2] == ['method', 'METHOD']
    }
    assert list(table) == list(TABLE_1)
    for method, (name, _, trained, r1) in table.items():
        row = TABLE_1[method]
        assert (name, trained, float(r1)) == (row.name, trained_by(method), row.t2v[0])


def test_figures_of_moving_shapes_are_those_of_its_page():
    measured = {}
    for head, cells in rows('docs/moving_shapes.md'):
        if head[:3] == ['method', 'trained', 't2v R@1']:
            measured[cells[0]] = [*cells[1:3], cells[5]]
    told = {}
    for page in PAGES:
        for head, (name, *cells) in rows(page):
            if head[0] == 'on MovingShapes':
                told[name] = cells
    assert told == measured
