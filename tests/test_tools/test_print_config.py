"""tools/analysis/print_config.py."""

import pytest

from projects.vop.errors import UserError

TOOL = 'tools/analysis/print_config.py'


def test_prints_what_can_be_read_again(run_tool, capsys, tmp_path):
    """Also of a config that is not a file."""
    run_tool(TOOL, 'vop_fp_didemo', '--cfg-options', 'train_cfg.max_epochs=7')
    names = {}
    exec(capsys.readouterr().out, names)
    assert names['train_cfg']['max_epochs'] == 7
    assert names['test_dataloader']['dataset']['data_root'] == 'data/didemo'
    assert names['model']['visual']['temporal_layers'] == 4


def test_an_unknown_config_is_named(run_tool):
    with pytest.raises(UserError, match='no config vop_nothing'):
        run_tool(TOOL, 'vop_nothing')
