"""Test a checkpoint with a config."""

import argparse
import os.path as osp

from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner

from projects.vop.datasets import explain_data_loader
from projects.vop.engine import (
    add_launcher_arguments,
    build_runner,
    check_data,
    check_fit,
    merge_options,
    open_config,
    pin_memory,
    tool,
    use_gloo_without_gpu,
    work_dir_of,
)
from projects.vop.errors import UserError
from projects.vop.evaluation import RetrievalMetric
from projects.vop.models.encoder import weights_fingerprint
from projects.vop.registry import HOOKS, METRICS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or configs/METHOD_DATASET.py, which need not be a file'
    )
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
    add_launcher_arguments(parser)
    args = parser.parse_args()
    if args.dump and not args.dump.endswith(('.pkl', '.pickle')):
        parser.error('--dump takes the name of a .pkl file')
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Carry the command line over into the config."""
    cfg.launcher = args.launcher
    # Testing exchanges no gradients, and DistributedDataParallel refuses a
    # model that has none to exchange, such as zero-shot CLIP.
    cfg.model_wrapper_cfg = dict(type='vop.Unwrapped')
    cfg.load_from = args.checkpoint
    cfg.work_dir = work_dir_of(cfg, args.config, args.work_dir)
    merge_options(cfg, args.cfg_options)
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    if {args.dsl, args.qb_norm, args.dump_embeddings, args.report} != {None}:
        change_metric(evaluators, args)
    if args.report is not None:
        changed = ', '.join(f'{key}={value}' for key, value in (args.cfg_options or {}).items())
        hook = dict(
            type='vop.ReportHook',
            out_dir=args.report,
            num_queries=args.report_queries,
            facts=dict(Changed=changed),
        )
        HOOKS.build(dict(hook))  # what is wrong is said before CLIP is opened
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    if args.dump:
        cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.dump)]
    return cfg


def change_metric(evaluators: list[dict], args: argparse.Namespace) -> None:
    """Let the metric rescore and dump as the command line asks."""
    ours = [e for e in evaluators if e.get('type') == 'vop.RetrievalMetric']
    if len(ours) != 1:
        raise UserError(
            '--dsl, --qb-norm, --dump-embeddings and --report need one vop.RetrievalMetric in '
            f'test_evaluator of the config, which has {len(ours)}.'
        )
    [metric] = ours
    rescoring = {method['type']: method for method in metric.get('rescoring', ())}
    for kind, key, value in (('vop.DSL', 'scale', args.dsl), ('vop.QBNorm', 'bank', args.qb_norm)):
        if value is not None:
            rescoring[kind] = {**rescoring.get(kind, {}), 'type': kind, key: value}
    metric.rescoring = list(rescoring.values())
    if args.dump_embeddings is not None:
        metric.dump = args.dump_embeddings
    METRICS.build(dict(metric, device='cpu'))  # what is wrong is said before CLIP is opened


class NameModel(Hook):
    """Tells the metric which model is tested, once it is loaded."""

    def before_test(self, runner: Runner) -> None:
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, RetrievalMetric):
                metric.set_model(weights_fingerprint(runner.model.named_parameters()))


def main() -> None:
    args = parse_args()
    cfg = merge_args(open_config(args.config), args)
    check_data(cfg, 'test')
    use_gloo_without_gpu(cfg)
    pin_memory(cfg)
    runner = build_runner(cfg)
    if cfg.load_from is not None and osp.isfile(cfg.load_from):
        check_fit(runner.model, cfg.load_from)
    runner.register_hook(NameModel())
    with explain_data_loader():
        runner.test()


if __name__ == '__main__':
    with tool():
        main()
