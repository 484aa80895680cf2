"""Train a model from a config."""

import argparse
import os
import os.path as osp

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed

from projects.vop.engine import (
    NothingTrains,
    build_runner,
    check_data,
    open_config,
    pin_memory,
    use_amp,
    use_gloo_without_gpu,
)
from projects.vop.errors import exit_on_user_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file; configs/METHOD_DATASET.py need not be a file')
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
        help='scale the learning rate by the batch size in all, from the one '
        'that the schedule was made for',
    )
    parser.add_argument('--seed', type=int, help='random seed')
    parser.add_argument('--diff-rank-seed', action='store_true', help='another seed on every rank')
    parser.add_argument(
        '--deterministic', action='store_true', help='deterministic algorithms of cuDNN'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, such as optim_wrapper.optimizer.lr=1e-3',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of this run were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Carry the command line over into the config."""
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        # Without validation there is no metric to choose a checkpoint by.
        checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
        if checkpoint is not None:
            checkpoint.save_best = None
    if args.amp:
        if get_device() == 'cpu':
            raise SystemExit(
                "--amp needs a GPU: MMEngine's AmpOptimWrapper "
                'does not run on CPUs. Train without it here.'
            )
        use_amp(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise SystemExit(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config.'
            )
        cfg.auto_scale_lr.enable = True
    randomness = dict(
        seed=args.seed,
        diff_rank_seed=args.diff_rank_seed or None,
        deterministic=args.deterministic or None,
    )
    cfg.randomness = {
        'seed': None,  # drawn, where a config of MMAction2 says none
        **cfg.get('randomness', {}),
        **{k: v for k, v in randomness.items() if v is not None},
    }
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    return cfg


def main() -> None:
    args = parse_args()
    try:
        cfg = merge_args(open_config(args.config), args)
        check_data(cfg, 'train', *([] if args.no_validate else ['val']))
        use_gloo_without_gpu(cfg)
        pin_memory(cfg)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    try:
        runner = build_runner(cfg)
    except NothingTrains as error:
        raise SystemExit(str(error)) from error
    runner.train()
    if is_distributed():  # else a process can abort at its exit
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    with exit_on_user_error():
        main()
