"""The package beside others, and its registries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('ours_first', [True, False])
def test_it_lives_beside_another_projects_folder(tmp_path, ours_first):
    other = tmp_path / 'projects' / 'other'
    other.mkdir(parents=True)
    (other / '__init__.py').write_text('')
    paths = [str(ROOT), str(tmp_path)]
    code = 'import projects.other, projects.vop; print(projects.vop.__file__)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths if ours_first else paths[::-1])),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (ROOT / 'projects' / '__init__.py').exists()


def test_its_names_do_not_collide_with_mmaction2s():
    import mmaction.datasets
    import mmaction.evaluation  # noqa: F401

    assert METRICS.get('vop.RetrievalMetric') is not METRICS.get('mmaction.RetrievalMetric')
    assert DATASETS.get('vop.VideoTextDataset') is not DATASETS.get('mmaction.VideoTextDataset')
    assert TRANSFORMS.get('vop.CLIPTokenize') is not TRANSFORMS.get('mmaction.CLIPTokenize')
    assert MODELS.get('vop.RetrievalRecognizer') is not None


def test_mmaction2s_registries_build_its_parts():
    from mmaction.registry import TRANSFORMS as MMACTION_TRANSFORMS

    transform = MMACTION_TRANSFORMS.build(dict(type='vop.CLIPTokenize'))
    assert transform(dict(text='a dog'))['text'].shape == (77,)
