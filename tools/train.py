"""Train a model from a config."""

import argparse
import os

from mmengine.config import Config, DictAction

from projects.vop.datasets import explain_data_loader
from projects.vop.engine import (
    ResumeHook,
    add_launcher_arguments,
    build_train_runner,
    check_amp,
    check_data,
    check_launcher,
    lock_work_dir,
    merge_options,
    open_config,
    pin_memory,
    prepare_resume,
    tool,
    use_amp,
    use_checkpoint_hook,
    use_gloo_without_gpu,
    work_dir_of,
)
from projects.vop.errors import UserError
from projects.vop.fileio import name_full_disk


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or its name; METHOD_DATASET need not be a file'
    )
    parser.add_argument(
        '--work-dir', help='folder of logs and checkpoints; work_dirs/CONFIG if not given'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a value, from the latest one '
        'in the work dir, if there is one',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the total batch size, from the one '
        'that the schedule was made for',
    )
    parser.add_argument('--seed', type=int, help='random seed')
    parser.add_argument('--diff-rank-seed', action='store_true', help='another seed on every rank')
    parser.add_argument(
        '--deterministic', action='store_true', help='use only deterministic algorithms'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, such as optim_wrapper.optimizer.lr=1e-3',
    )
    add_launcher_arguments(parser)
    return parser.parse_args()


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Carry the command line over into the config."""
    cfg.launcher = args.launcher
    cfg.work_dir = work_dir_of(cfg, args.config, args.work_dir)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        # Without validation there is no metric to choose a checkpoint by.
        checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
        if checkpoint is not None:
            checkpoint.save_best = checkpoint.rule = None
    if args.amp:
        check_amp()
        use_amp(cfg)
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise UserError(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config.'
            )
        cfg.auto_scale_lr.enable = True
    given = dict(
        seed=args.seed,
        diff_rank_seed=args.diff_rank_seed or None,
        deterministic=args.deterministic or None,
    )
    cfg.randomness = {
        'seed': None,  # drawn, where a config of MMAction2 names none
        **cfg.get('randomness', {}),
        **{key: value for key, value in given.items() if value is not None},
    }
    merge_options(cfg, args.cfg_options)
    if cfg.randomness.get('deterministic'):
        # cuBLAS is deterministic only with this.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    return cfg


def main() -> None:
    args = parse_args()
    check_launcher(args.launcher)
    cfg = merge_args(open_config(args.config), args)
    check_data(cfg, 'train', *([] if args.no_validate else ['val']))
    use_gloo_without_gpu(cfg)
    pin_memory(cfg)
    use_checkpoint_hook(cfg)
    with lock_work_dir(cfg), name_full_disk(cfg.work_dir), explain_data_loader():
        checkpoint = prepare_resume(cfg, args.resume)
        runner = build_train_runner(cfg)
        runner.register_hook(ResumeHook(checkpoint))
        runner.train()


if __name__ == '__main__':
    with tool():
        main()
