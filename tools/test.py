"""Test a checkpoint with a config."""

import argparse
import os
import os.path as osp

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from projects.vop.engine import check_data, check_fit, open_config, pin_memory, use_gloo_without_gpu
from projects.vop.errors import UserError, exit_on_user_error
from projects.vop.evaluation import RetrievalMetric
from projects.vop.fileio import check_writable
from projects.vop.models.encoder import fingerprint
from projects.vop.registry import METRICS
from projects.vop.report.render import PAGE, write_page


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
    if args.report_queries < 1:
        parser.error('--report-queries takes a number of 1 or more')
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
    methods = {'vop.DSL': dict(scale=args.dsl), 'vop.QBNorm': dict(bank=args.qb_norm)}
    methods = {kind: given for kind, given in methods.items() if None not in given.values()}
    if methods or args.dump_embeddings is not None or args.report is not None:
        ours = [e for e in evaluators if e.get('type') == 'vop.RetrievalMetric']
        if len(ours) != 1:
            raise UserError(
                '--dsl, --qb-norm, --dump-embeddings and --report need one vop.RetrievalMetric in '
                f'test_evaluator of the config, which has {len(ours)}.'
            )
        rescoring = {method['type']: method for method in ours[0].get('rescoring', ())}
        for kind, given in methods.items():
            rescoring[kind] = dict(rescoring.get(kind, ()), type=kind, **given)
        if methods:
            ours[0].rescoring = list(rescoring.values())
        if args.dump_embeddings is not None:
            ours[0].dump = args.dump_embeddings
        # What is wrong is said before CLIP is opened.
        METRICS.build(dict(ours[0], device='cpu'))
    if args.report is not None:
        check_writable(osp.join(args.report, PAGE))
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
                metric.set_model(fingerprint(model.named_parameters()))


def report(args: argparse.Namespace, runner: Runner, metrics: dict[str, float]) -> None:
    """Write the page that ``--report`` asks for."""
    loader = runner.test_dataloader
    changed = args.cfg_options or {}
    facts = {
        'Config': args.config,
        'Changed': ', '.join(f'{k}={v}' for k, v in changed.items()),
        'Checkpoint': runner.cfg.load_from or 'none',
        'Data set': getattr(loader.dataset, 'ann_file', type(loader.dataset).__name__),
    }
    metric = next(
        metric for metric in runner.test_evaluator.metrics if isinstance(metric, RetrievalMetric)
    )
    name = osp.splitext(osp.basename(args.config))[0]
    write_page(
        args.report,
        f'Text-video retrieval: {name}',
        {k: v for k, v in facts.items() if v},
        metrics,
        metric,
        loader,
        args.report_queries,
    )


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
    metrics = runner.test()
    if args.report is not None and is_main_process():
        report(args, runner, metrics)
    if is_distributed():  # else a process can abort at its exit
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    with exit_on_user_error():
        main()
