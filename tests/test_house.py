"""The rules of the house, read from its code."""

import ast
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter

import pytest
from helpers import ROOT

PACKAGE = ROOT / 'projects/vop'
CODE = [
    path
    for folder in (PACKAGE, ROOT / 'tools', ROOT / 'benchmarks', ROOT / 'tests')
    for path in sorted(folder.rglob('*.py'))
]
# What a room may import from, but for what all may: errors, fileio, compat and registry.
BELOW = dict(
    models=set(),
    datasets=set(),
    evaluation=set(),
    engine={'models'},
    recognition={'models'},
    apis={'models', 'engine', 'datasets'},
    report={'evaluation', 'engine'},
    search={'apis', 'engine', 'evaluation'},
)


@cache
def parse(path):
    return ast.parse(path.read_text())


def is_private(name):
    return name.startswith('_') and not name.startswith('__') and name != '_'


@cache
def own_private_names():
    """What our code defines itself: functions, classes, attributes, arguments."""
    # NamedTuple's own methods and os._exit are public, in spite of their names.
    own = {'_replace', '_asdict', '_fields', '_make', '_base_', '_delete_', '_exit'}
    for path in CODE:
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                own.add(getattr(node, 'attr', None) or node.id)
    return own


@pytest.mark.parametrize('path', CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_attributes_of_others_stand_in_compat_alone(path):
    if path == PACKAGE / 'compat.py':
        return
    ours = own_private_names()
    for node in ast.walk(parse(path)):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [alias.name for alias in node.names]
        for name in names:
            assert not is_private(name) or name in ours, f'line {node.lineno}: {name}'


def module_of(path):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in CODE if PACKAGE in path.parents}


def imported(module):
    """Modules of the package that one imports, wherever it does."""
    path = MODULES[module]
    here = module.split('.') if path.name == '__init__.py' else module.split('.')[:-1]
    here = [part for part in here if part]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) + 1 - node.level] + (node.module or '').split('.')
            name = '.'.join(filter(None, base))
            children = [f'{name}.{alias.name}'.strip('.') for alias in node.names]
            found = [child for child in children if child in MODULES]
            yield from found if len(found) == len(children) else [name, *found]


def test_no_import_is_circular():
    graph = {module: {m for m in imported(module) if m} - {module} for module in MODULES if module}
    # A room's __init__ is run before each of its modules, which is no circle.
    for module in list(graph):
        graph[module] -= {module.rpartition('.')[0]}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize('room', BELOW)
def test_imports_run_one_way(room):
    for module in MODULES:
        if module.split('.')[0] == room:
            rooms = {name.split('.')[0] for name in imported(module)} - {room}
            assert rooms & BELOW.keys() <= BELOW[room], module


def classes():
    for module, path in MODULES.items():
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef):
                yield module, node


def test_no_two_classes_share_a_name():
    names = Counter(node.name for _, node in classes())
    assert not [name for name, count in names.items() if count > 1]


def exported():
    """Names in ``__all__`` of the rooms."""
    for module, path in MODULES.items():
        if module and path.name == '__init__.py':
            for node in parse(path).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
                    yield from ast.literal_eval(node.value)


PUBLIC = [node for _, node in classes() if node.name in {*exported(), 'UserError', 'Prompt'}]


@pytest.mark.parametrize('node', PUBLIC, ids=lambda node: node.name)
def test_every_public_class_has_an_example(node):
    assert 'Example:' in (ast.get_docstring(node) or '')


def test_every_room_has_its_tests():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').is_file()}
    assert rooms == set(BELOW)
    for room in rooms:
        assert list((ROOT / 'tests' / f'test_{room}').glob('test_*.py')), room


def test_tests_do_not_import_tests():
    names = {path.stem for path in (ROOT / 'tests').rglob('test_*.py')}
    for path in sorted((ROOT / 'tests').rglob('*.py')):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split('.')[-1] not in names, path
