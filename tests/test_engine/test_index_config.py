"""The config of an index; tests/test_search/test_foreign_index.py has what is refused."""

import pytest
from mmengine.config import Config

from projects.vop.engine import plain_config
from projects.vop.engine.index_config import HARMLESS, REGISTRIES


@pytest.mark.parametrize('part', HARMLESS)
def test_what_is_known_by_name_is_registered_so(part):
    """It is not looked up when an index is opened or its fingerprint computed."""
    names = sorted(HARMLESS[part])
    classes = [dict(type=REGISTRIES[part].get(name)) for name in names]
    parts = dict(model=[], pipeline=[]) | {part: classes}
    dataset = dict(pipeline=parts['pipeline'])
    config = Config(dict(model=parts['model'], test_dataloader=dict(dataset=dataset)))
    assert plain_config(config)[part] == [dict(type=name) for name in names]
