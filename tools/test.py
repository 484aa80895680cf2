"""Test a checkpoint with a config."""

import argparse
import os
import os.path as osp

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from projects.vop.engine import check_data, check_fit, open_config, pin_memory, use_gloo_without_gpu
from projects.vop.evaluation import RetrievalMetric
from projects.vop.models.encoder import fingerprint
from projects.vop.registry import HOOKS, METRICS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file; configs/METHOD_DATASET.py need not be a file')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='checkpoint file; without it, the model as the config makes it '
        '(zero-shot CLIP, for a config without prompts)',
    )
    parser.add_argument(
        '--work-dir', help='folder of the log and the metrics; work_dirs/CONFIG if not given'
    )
    parser.add_argument(
        '--dump', metavar='FILE.pkl', help='write all predictions (embeddings) to a pickle file'
    )
    parser.add_argument(
        '--dump-embeddings',
        metavar='FILE.pt',
        help='write the embeddings to a file of tensors, which can be the bank of --qb-norm',
    )
    parser.add_argument(
        '--dsl',
        nargs='?',
        type=float,
        const=100.0,
        metavar='LAMBDA',
        help='rank by dual softmax, too, which looks at all queries of the '
        'test set at once (LAMBDA is 100 if not given)',
    )
    parser.add_argument(
        '--qb-norm',
        metavar='BANK.pt',
        help='rank by QB-Norm, too, with a bank of training queries, which '
        '--dump-embeddings writes with --cfg-options '
        'test_dataloader.dataset.ann_file=TRAIN.json',
    )
    parser.add_argument(
        '--report',
        metavar='DIR',
        help='write DIR/index.html, a page with the metrics, the ranks, and '
        'queries with what they find',
    )
    parser.add_argument(
        '--report-queries',
        type=int,
        default=5,
        metavar='N',
        help='queries in the report: N of the worst, N of the best and N at '
        'random, from text to video and from video to text (default: 5)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, such as test_dataloader.batch_size=8',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of this run were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.dump and not args.dump.endswith(('.pkl', '.pickle')):
        parser.error('--dump takes the name of a .pkl file')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Carry the command line over into the config."""
    cfg.launcher = args.launcher
    # Testing exchanges no gradients, and DistributedDataParallel refuses a
    # model that has none to exchange, such as zero-shot CLIP.
    cfg.model_wrapper_cfg = dict(type='vop.Unwrapped')
    cfg.load_from = args.checkpoint
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    fields = dict(dsl=args.dsl, qb_norm=args.qb_norm, dump=args.dump_embeddings)
    fields = {k: v for k, v in fields.items() if v is not None}
    if fields or args.report is not None:
        ours = [e for e in evaluators if e.get('type') == 'vop.RetrievalMetric']
        if len(ours) != 1:
            raise ValueError(
                '--dsl, --qb-norm, --dump-embeddings and --report need one '
                'vop.RetrievalMetric in test_evaluator of the config, which '
                f'has {len(ours)}.'
            )
        ours[0].update(fields)
        # What is wrong is said before CLIP is opened.
        METRICS.build(dict(ours[0], device='cpu'))
    if args.report is not None:
        changed = ', '.join(f'{key}={value}' for key, value in (args.cfg_options or {}).items())
        hook = dict(
            type='vop.ReportHook',
            out_dir=args.report,
            num_queries=args.report_queries,
            facts=dict(Changed=changed),
        )
        HOOKS.build(dict(hook))  # likewise
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    if args.dump:
        cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.dump)]
    return cfg


class NameModel(Hook):
    """Tells the metric which model is tested, once it is loaded."""

    def before_test(self, runner: Runner) -> None:
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, RetrievalMetric):
                try:
                    metric.set_model(fingerprint(model.named_parameters()))
                except ValueError as error:
                    raise SystemExit(str(error)) from error


def main() -> None:
    args = parse_args()
    try:
        cfg = merge_args(open_config(args.config), args)
        check_data(cfg, 'test')
        use_gloo_without_gpu(cfg)
        pin_memory(cfg)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if cfg.load_from is not None and osp.isfile(cfg.load_from):
        check_fit(runner.model, cfg.load_from)
    runner.register_hook(NameModel())
    runner.test()
    if is_distributed():  # else a process can abort at its exit
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
