"""Print a config as the tools read it, with all that it inherits."""

import argparse

from mmengine.config import DictAction

from projects.vop.engine import merge_options, open_config
from projects.vop.errors import exit_on_user_error


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or its name')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = parser.parse_args()
    cfg = open_config(args.config)
    merge_options(cfg, args.cfg_options)
    print(cfg.pretty_text)


if __name__ == '__main__':
    with exit_on_user_error():
        main()
