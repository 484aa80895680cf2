"""tools/analysis/get_flops.py."""

import json

import pytest
from helpers import TINY_CLIP

from projects.vop.errors import UserError

TOOL = 'tools/analysis/get_flops.py'
LAYERS, D, MLP = 3, 64, 4 * 64  # of the tiny CLIP's image tower
PATCHES = 4


@pytest.fixture
def count(run_tool, tiny_clip, capsys):
    """Runs the tool on a method with the tiny CLIP; gives its two rows."""

    def count(method, *arguments):
        options = [f'model.clip.name={tiny_clip}', 'model.clip.pretrained=None']
        if method.startswith('vop_f'):
            options.append('model.visual.temporal_layers=1')
        run_tool(TOOL, f'{method}_msrvtt', '--json', *arguments, '--cfg-options', *options)
        return list(json.loads(capsys.readouterr().out).values())

    return count


def layer(tokens, keys, queries):
    """Operations of a layer on a sequence."""
    inputs = D * D * (2 * tokens + queries)
    return inputs + 2 * queries * keys * D + queries * (D * D + 2 * D * MLP)


def plain(frames):
    n = PATCHES + 1
    layers = (LAYERS - 1) * layer(n, n, n) + layer(n, n, 1)  # the last one gives the [CLS] alone
    return frames * (PATCHES * D * 3 * 16 * 16 + layers + D * TINY_CLIP['embed_dim'])


def prompts(length, frames, shared=True):
    """Operations that prompts add."""
    n = PATCHES + 1
    keys_and_values = LAYERS * 2 * length * D * D * (1 if shared else frames)
    return keys_and_values + 2 * length * D * ((LAYERS - 1) * n + 1) * frames


def test_counts_what_is_computed_and_nothing_else(count):
    ours, clip = count('vop', '--num-frames', 4)
    assert clip['video'] == plain(4)
    assert ours['video'] == plain(4) + prompts(8, 4)
    assert ours['caption'] > clip['caption'] > 0
    assert (ours['trained'], clip['trained']) == (LAYERS * 8 * (64 + 48), 0)
    assert ours['parameters'] == clip['parameters'] + ours['trained']


def test_counts_recurrent_layers(count):
    """Of which the CPU's own kernel would tell nothing."""
    ours, clip = count('vop_c', '--num-frames', 4)
    lstm = 4 * 2 * 4 * D * (D + D)
    fc = 4 * 2 * D * 4 * D
    added = LAYERS * (lstm + fc) + prompts(4, 4) + prompts(4, 4, shared=False)
    assert ours['video'] - clip['video'] == added


def test_frames_are_those_of_the_config(count):
    assert count('vop_fp') == count('vop_fp', '--num-frames', 12)
    assert count('zero_shot')[0] == count('zero_shot')[1]


def test_longer_captions_cost_more(count):
    long, short = (count('vop', '--num-tokens', n)[0]['caption'] for n in (60, 32))
    assert long > 1.5 * short


def test_the_table(run_tool, tiny_clip, capsys):
    options = [f'model.clip.name={tiny_clip}', 'model.clip.pretrained=None']
    run_tool(TOOL, 'vop_msrvtt', '--num-frames', 100, '--cfg-options', *options)
    head, ours, clip = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ['trained', 'parameters']
    assert clip.split()[:4] == ['plain', 'CLIP', f'{plain(100) / 1e9:.3f}', '0.002']
    assert ours.split()[-2] == f'{LAYERS * 8 * (64 + 48):,}'


def test_what_cannot_be_counted_is_refused(count, run_tool):
    with pytest.raises(UserError, match='--num-tokens must be 2 to 77, got 78'):
        count('vop', '--num-tokens', 78)
    with pytest.raises(UserError, match='--num-frames must be at least 1'):
        count('vop', '--num-frames', 0)
    with pytest.raises(UserError, match='count_params.py'):
        run_tool(TOOL, 'mix/vop_recognizer_kinetics400')
