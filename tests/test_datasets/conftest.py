"""Tokenizers are built once, as each takes half a second."""

from functools import cache

import open_clip
import pytest


@pytest.fixture(scope='package', autouse=True)
def _each_tokenizer_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('open_clip.get_tokenizer', cache(open_clip.get_tokenizer))
        yield
