"""The package beside others, and its registries."""

import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import sys

import mmaction.datasets
import mmaction.evaluation  # noqa: F401
import pytest
from helpers import ROOT, run
from mmaction.registry import TRANSFORMS as MMACTION_TRANSFORMS
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS

import projects.vop
from projects.vop import cli


@pytest.mark.slow
@pytest.mark.parametrize('ours_first', [True, False])
def test_it_lives_beside_another_projects_folder(tmp_path, ours_first):
    other = tmp_path / 'projects' / 'other'
    other.mkdir(parents=True)
    (other / '__init__.py').write_text('')
    paths = [ROOT, tmp_path] if ours_first else [tmp_path, ROOT]
    code = 'import projects.other, importlib.util; print(importlib.util.find_spec("projects.vop"))'
    found = run(
        sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=os.pathsep.join(map(str, paths))
    )
    assert str(ROOT / 'projects/vop/__init__.py') in found
    assert not (ROOT / 'projects' / '__init__.py').exists()


def test_its_names_do_not_collide_with_mmaction2s():
    assert METRICS.get('vop.RetrievalMetric') is not METRICS.get('mmaction.RetrievalMetric')
    assert DATASETS.get('vop.VideoTextDataset') is not DATASETS.get('mmaction.VideoTextDataset')
    assert TRANSFORMS.get('vop.CLIPTokenize') is not TRANSFORMS.get('mmaction.CLIPTokenize')
    assert MODELS.get('vop.RetrievalRecognizer') is not None


def test_mmaction2s_registries_build_its_parts():
    transform = MMACTION_TRANSFORMS.build(dict(type='vop.CLIPTokenize'))
    assert transform(dict(text='a dog'))['text'].shape == (77,)


def test_each_room_has_the_names_that_it_promises():
    for room in pkgutil.iter_modules(projects.vop.__path__, 'projects.vop.'):
        module = importlib.import_module(room.name)
        for name in getattr(module, '__all__', ()):
            found = getattr(module, name)
            assert inspect.isclass(found) or inspect.isfunction(found), (room.name, name)
        assert not hasattr(module, 'nonsense')


@pytest.mark.slow
def test_a_wheel_works_without_a_checkout(tmp_path):
    """Made from the sdist, and so of what that holds."""
    source = tmp_path / 'source'
    for path in ROOT.glob('[!.]*'):
        if path.name in ('projects', 'configs', 'tools'):
            shutil.copytree(path, source / path.name)
        elif path.is_file():
            shutil.copy(path, source)
    code = f'import setuptools.build_meta as build; build.build_sdist({str(tmp_path)!r})'
    run(sys.executable, '-c', code, cwd=source)
    (sdist,) = tmp_path.glob('*.tar.gz')
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation']
    run(*pip, '--target', tmp_path / 'site', sdist, cwd=tmp_path)
    here = dict(cwd=tmp_path, PYTHONPATH=str(tmp_path / 'site'))
    vop = [sys.executable, tmp_path / 'site/bin/vop']
    where = run(sys.executable, '-c', 'import projects.vop; print(projects.vop.__file__)', **here)
    assert str(tmp_path / 'site') in where
    assert (tmp_path / 'site/projects/.mim/tools/train.py').is_file()  # for MIM
    printed = run(*vop, **here)
    for name in ('train', 'test', 'search', 'data msrvtt', 'analysis count_params', 'dist_train'):
        assert re.search(rf'^  {name} +\S', printed, re.MULTILINE)
    counts = json.loads(run(*vop, 'analysis', 'count_params', 'vop_fp_didemo', '--json', **here))
    assert counts['trained'] == 402_432
    output = run(*vop, 'train', 'vop_fp_didemo', **here, ok=False)
    assert 'annotation file data/didemo/train.json of train_dataloader is missing' in output
    assert 'There is no tool trian' in run(*vop, 'trian', **here, ok=False)


def test_vop_runs_a_tool_and_lists_them_all(monkeypatch, capsys):
    def vop(*words):
        monkeypatch.setattr(sys, 'argv', ['vop', *words])
        monkeypatch.setattr(sys, 'path', [*sys.path])
        cli.main()
        return capsys.readouterr().out

    listed = vop('--help')
    assert listed == vop() and len(listed.splitlines()) == len(cli.find_tools()) + 5
    assert json.loads(vop('analysis', 'count_params', 'vop_msrvtt', '--json'))['trained'] == 122_880
    with pytest.raises(SystemExit) as error:
        vop('trian')
    assert error.value.code == 2 and 'no tool trian' in capsys.readouterr().err
