"""The documentation, held to what it says.

Every command in it is run, in the order of its page and as it stands there, in
a copy of configs/ and tools/ whose CLIP is a tiny one and whose data sets are
small copies in their owners' formats. Python runs in this process.
"""

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import dedent
from unittest import mock

import pytest
import torch
from helpers import ROOT, SOURCES, TINY_CLIP, WANTED, free_port, released_state, run, save_clip
from mmengine.registry import init_default_scope
from PIL import Image
from pytest import MonkeyPatch
from sphinx.cmd.build import build_main as sphinx_build
from torch.distributed.run import get_args_parser

from projects.vop.compat import fresh_instances
from projects.vop.datasets import moving_shapes
from projects.vop.engine import open_config
from projects.vop.engine.parameters import build_without_weights, count_by_part
from projects.vop.paper import TABLE_1
from projects.vop.registry import MODELS

pytestmark = pytest.mark.usefixtures('read_here')

PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
]
# Pages that make the data sets themselves; on others they are there.
FROM_DOWNLOADS = ('README.md', 'docs/data.md')

# Pages whose Python reads what their commands have written.
PYTHON_AFTER_COMMANDS = ('docs/deployment.md',)

# What is not run here, by its first words, and the file that runs it.
ELSEWHERE = {
    'bash tools/quickstart.sh': 'tests/test_tools/test_quickstart.py',
    'python tools/data/moving_shapes.py': 'tools/quickstart.sh',
    'tools/slurm_train.sh': 'tests/test_tools/test_train_and_test.py',
    'tools/slurm_test.sh': 'tests/test_tools/test_train_and_test.py',
    'tools/slurm_search.sh': 'tests/test_tools/test_search.py',
    'python tools/demo.py': 'tests/test_tools/test_demo.py',  # serves until it is stopped
    # These come before any test: continuous integration begins with them.
    'bash tools/run_tests.sh': '.ci/run',
    'pip install -e': 'tools/env.sh',
}
# Options of other programs.
OF_OTHERS = ('no_deps', 'nproc_per_node', 'override', 'shm_size')
# What makes a command light, in place of its own words.
LIGHTER = {
    '--num-workers 4 8 16': '--num-workers 0 --steps 1 --warmup 0',
    'tools/reproduce.py': 'tools/reproduce.py --dry-run',
    'max_epochs=10': 'max_epochs=2',
    'pth --data': 'pth --data --clips 2',
    r'epoch_\d+\.pth': 'epoch_1.pth',  # as the fixture `home` sets them
}


# Reading pages


def read(page):
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page, language):
    """Code blocks of a language, without the margin of a list."""
    found = re.findall(r'^ *```(\w*)\n(.*?)^ *```$', read(page), re.MULTILINE | re.DOTALL)
    return [dedent(text) for name, text in found if name == language]


def prose(page):
    """A page without its code blocks."""
    return re.sub(r'^ *```.*?^ *```$', '', read(page), flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Commands of a page, in its order, each in one line."""
    lines = ''.join(blocks(page, 'shell')).replace('\\\n', ' ').split('\n')
    return [line for line in lines if shlex.split(line, comments=True)]


def lighter(text, words=LIGHTER):
    for old, new in words.items():
        text = re.sub(old, new, text)
    return text


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
        table = re.sub(r'\[(.*?)\]\(.*?\)', r'\1', table)
        head, _, *lines = (
            [cell.strip(' `') for cell in line.strip('|').split('|')] for line in table.splitlines()
        )
        yield from ((head, cells) for cells in lines)


# A place to run in


@contextmanager
def new_process(folder, argv=(), **env):
    """What a process finds that is started in a folder."""
    try:
        with MonkeyPatch.context() as patch, fresh_instances(), mock.patch.dict(os.environ, env):
            patch.chdir(folder)
            patch.setattr(sys, 'path', list(sys.path))
            patch.setattr(sys, 'argv', list(argv))
            yield
    finally:
        for name, module in list(sys.modules.items()):
            if (getattr(module, '__file__', '') or '').startswith(str(folder)):
                del sys.modules[name]


class Shell:
    """Runs the commands of a page."""

    def __init__(self, folder):
        self.folder = folder
        self.env = dict(PATH=f'{folder}/bin:{os.environ["PATH"]}')

    def run(self, command):
        words, env = shlex.split(lighter(command), comments=True), dict(self.env)
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
        """Runs a launcher, and one of the processes that it asks torch for."""
        output = run(*words, cwd=self.folder, **env)
        module, *arguments = output.splitlines()[1:]
        assert module == 'torch.distributed.run'
        asked = get_args_parser().parse_args(arguments)
        env = dict(env, RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_PORT=free_port())
        env['MASTER_ADDR'] = asked.master_addr
        try:
            self.run_python([asked.training_script, *asked.training_script_args], env)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def run_python(self, words, env):
        script = self.folder / words[0]
        with new_process(self.folder, words, **env):
            sys.path.insert(0, str(script.parent))
            try:
                runpy.run_path(str(script), run_name='__main__')
            except SystemExit as stop:
                assert not stop.code, f'{" ".join(words)}: {stop.code}'


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def write_clip(folder):
    """A CLIP of 12 layers, as configs want it, and heads as OpenAI's."""
    config = dict(TINY_CLIP)
    config['vision_cfg'] = config['vision_cfg'] | dict(layers=12, head_width=64)
    config['text_cfg'] = config['text_cfg'] | dict(layers=12, width=64, heads=1)
    write(folder / 'tiny-clip.json', json.dumps(config))
    save_clip(folder / 'tiny-clip.json', folder / 'downloads/ViT-B-32.pt')


# What makes all configs small: an epoch, no workers, tiny frames.
SMALLER = {
    r'max_epochs=\d+': 'max_epochs=1',
    r'interval=\d+': 'interval=1',
    r'num_workers=\d+': 'num_workers=0',
    'persistent_workers=True': 'persistent_workers=False',
    r'\b224\b': '32',
}


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
    for name, files in SOURCES.items():
        for file, text in files.items():
            write(home / 'downloads' / name / file, text)
    write_clip(home)
    own_clip = {
        "'ViT-B-32-quickgelu'": repr(str(home / 'tiny-clip.json')),
        "'openai'": repr(str(home / 'downloads/ViT-B-32.pt')),
    }
    for config in (home / 'configs').rglob('*.py'):
        config.write_text(lighter(config.read_text(), {**SMALLER, **own_clip}))

    write_video(home / 'video.mp4', 16, 48, 64)
    Image.new('RGB', (64, 48), 'green').save(home / 'dog.jpg')
    videos = ['clip.mp4', *(f'my_videos/pet{i}.mp4' for i in range(3))]
    for name, splits in WANTED.items():
        each = {video for split in splits.values() for video in split}
        videos += [f'data/{name}/videos/{v if Path(v).suffix else v + ".mp4"}' for v in each]
    for video in videos:
        (home / video).parent.mkdir(parents=True, exist_ok=True)
        (home / video).symlink_to(home / 'video.mp4')
    write(home / 'my_captions.csv', 'video,caption\npet0.mp4,a\npet1.mp4,b\npet2.mp4,c\n')
    for name in WANTED:
        Shell(home).run(f'python tools/data/{name}.py downloads/{name} --videos data/{name}/videos')
    shutil.copytree(home / 'data/msrvtt', home / 'data/msrvtt_small', symlinks=True)
    folder = home / 'data/moving_shapes'
    few = moving_shapes.scenes()[:2]
    with mock.patch.object(moving_shapes, 'scenes', lambda: few):
        moving_shapes.write_moving_shapes(folder)
    save_clip(home / 'configs/moving_shapes/moving-shapes-clip.json', folder / 'clip.pt')
    torch.save(dict(state_dict=released_state(12, 64, 64)), home / 'VoP_msrvtt9k.pth')
    return home


@pytest.fixture
def place(home, tmp_path):
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
        source, target = (place / f'work_dirs/{name}' for place in (home, folder))
        if not target.exists():
            if not source.exists():
                Shell(home).run(f'python tools/train.py configs/{name}.py')
            shutil.copytree(source, target)


# Tests


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)])
def test_commands_run(page, home, place):
    folder = place(page)
    shell = Shell(folder)
    for command in commands(page):
        if not command.startswith(tuple(ELSEWHERE)):
            train_what_is_named(command, home, folder)
            shell.run(command)
    if page in PYTHON_AFTER_COMMANDS:
        run_python(page, home, folder)


def test_commands_that_do_not_run_here_run_elsewhere():
    everything = [c for page in PAGES for c in commands(page)]
    for words, file in ELSEWHERE.items():
        assert any(command.startswith(words) for command in everything)
        assert re.search(r'[\w.-]+$', words)[0] in (ROOT / file).read_text()


@pytest.mark.parametrize('page', PAGES)
def test_code_says_its_language(page):
    """Else a command could stand there that nothing runs."""
    for text in blocks(page, 'json'):
        json.loads(text)
    languages = re.findall(r'^ *```(.*)\n', read(page), re.MULTILINE)
    assert set(languages[::2]) <= {'shell', 'python', 'json', 'bibtex', ''}
    assert set(languages[1::2]) <= {''}
    command = r'^ *(python|bash|pip|tools/\S+\.sh) '
    assert not re.search(command, ''.join(blocks(page, '')), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', [p for p in PAGES if blocks(p, 'python') and p not in PYTHON_AFTER_COMMANDS]
)
def test_python_runs(page, home, place):
    run_python(page, home, place(page))


def run_python(page, home, folder):
    """A block goes on where the one before it ended."""
    names = {}
    for number, code in enumerate(blocks(page, 'python')):
        train_what_is_named(code, home, folder)
        path = folder / f'configs/block_{number}.py'
        path.write_text(lighter(code))
        with new_process(folder):
            if re.search('^_base_ = ', code, re.MULTILINE):
                init_default_scope('mmaction')
                cfg = open_config(path)
                build = (
                    build_without_weights
                    if 'clip' in cfg.model
                    else lambda c: MODELS.build(c.model)
                )
                assert build(cfg)
            else:
                exec(compile(path.read_text(), path, 'exec'), names)


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
    assert set(found) >= set(PAGES)


@pytest.mark.parametrize('page', PAGES)
def test_paths_and_options_exist(page):
    code = ' '.join(re.findall(r'`([^`]+)`', prose(page)))
    for name in re.findall(r'(?<![\w/])(?:configs|tools|projects|tests|docs)/[\w./-]+', code):
        if re.search(r'METHOD|DATASET|NAME|pets', name):
            continue  # which are for the reader to fill in, or made
        path = ROOT / name
        assert path.exists() or name.endswith('.py') and open_config(path)
    for option in re.findall(r'(?<![\w-])--[a-z][\w-]+', code):
        name = option[2:].replace('-', '_')  # of which a tool may make the option
        assert re.search(rf"'{option}'|\b{name}=\(", every_tool()) or name in OF_OTHERS, option


@cache
def every_tool():
    files = [file for folder in ('tools', 'benchmarks') for file in (ROOT / folder).rglob('*')]
    files += [ROOT / 'projects/vop/engine/distributed.py']  # --launcher
    return ''.join(file.read_text() for file in files if file.suffix in ('.py', '.sh'))


@pytest.mark.slow
def test_figures_of_the_paper_are_its_table():
    """Also the numbers of parameters, which are counted."""
    methods = []
    for page in PAGES:
        for head, (method, trained, *numbers) in rows(page):
            if page.startswith('docs/models/') and head[:2] == ['config', 'trained']:
                methods.append(method)
                row = TABLE_1[method]
                told = [float(number) for number in numbers if number != '-']
                assert told == [*(row.t2v or ()), *(row.v2t or ())], method
                assert trained == trained_by(method)
    assert sorted(methods) == sorted(TABLE_1)
    table = {
        cells[1]: cells for head, cells in rows('README.md') if head[:2] == ['method', 'METHOD']
    }
    assert list(table) == list(TABLE_1)
    for method, (name, _, trained, r1) in table.items():
        row = TABLE_1[method]
        assert (name, trained, float(r1)) == (row.name, trained_by(method), row.t2v[0])


@cache
def trained_by(method):
    parts = count_by_part(build_without_weights(open_config(ROOT / f'configs/{method}_msrvtt.py')))
    return f'{sum(part.trained for part in parts.values()):,}'


def test_figures_of_moving_shapes_are_those_of_its_page():
    measured = {
        name: [*cells[:2], cells[4]]
        for head, (name, *cells) in rows('docs/moving_shapes.md')
        if head[:3] == ['method', 'trained', 't2v R@1']
    }
    told = {
        name: cells
        for page in PAGES
        for head, (name, *cells) in rows(page)
        if head[0] == 'on MovingShapes'
    }
    assert told == measured


# The documentation as a site


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The site, made without a warning."""
    folder = tmp_path_factory.mktemp('site')
    with MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of Sphinx, that extensions use what will change
        patch.setattr(sys, 'path', list(sys.path))
        build = ['-qW', '--keep-going', '-d', f'{folder}/doctrees', '-c', f'{ROOT}/docs']
        assert sphinx_build([*build, str(ROOT), f'{folder}/html']) == 0
    return folder / 'html'


@pytest.mark.slow
def test_the_site_has_every_page_in_the_order_of_the_list(site):
    first = (site / 'README.html').read_text()
    shown = re.findall(r'<a class="reference internal" href="([^"#]+)">', first)
    listed = [path.resolve() for path, _ in links('docs/README.md') if path.suffix == '.md']
    names = [str(path.relative_to(ROOT).with_suffix('.html')) for path in listed]
    names = [name for name in dict.fromkeys(names) if name != 'README.html']
    assert [name for name in shown if name in names][: len(names)] == names
    for page in PAGES:
        html = (site / page).with_suffix('.html').read_text()
        assert not re.search(r'<(script|img|iframe)[^>]+src="(https?:)?//', html)
        assert not re.search(r'<link[^>]+href="(https?:)?//', html)
    assert 'url=README.html' in (site / 'index.html').read_text()


@pytest.mark.slow
def test_the_site_describes_every_public_name(site):
    """Also those of packages that import them when they are asked for."""
    for init in sorted((ROOT / 'projects/vop').glob('*/__init__.py')):
        room = init.parent.name
        html = (site / f'docs/api/{room}.html').read_text()
        names = importlib.import_module(f'projects.vop.{room}').__all__
        assert names and not [n for n in names if f'id="projects.vop.{room}.{n}"' not in html]
    assert '<msub>' in (site / 'docs/api/models.html').read_text()  # a formula
