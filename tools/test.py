"""Test a checkpoint with a config."""

import argparse

from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner

from projects.vop.datasets import explain_data_loader
from projects.vop.engine import (
    add_launcher_arguments,
    build_runner,
    check_data,
    check_launcher,
    check_state,
    merge_options,
    open_config,
    pin_memory,
    tool,
    use_gloo_without_gpu,
    work_dir_of,
    wrap_model,
)
from projects.vop.errors import UserError
from projects.vop.evaluation import RetrievalMetric
from projects.vop.fileio import check_writable, name_full_disk
from projects.vop.models.encoder import weights_fingerprint
from projects.vop.registry import HOOKS, METRICS, RESCORINGS, is_kind


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or its name; METHOD_DATASET need not be a file'
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
    cfg.load_from = args.checkpoint
    cfg.work_dir = work_dir_of(cfg, args.config, args.work_dir)
    merge_options(cfg, args.cfg_options)
    evaluators = metrics_of(cfg)
    if {args.dsl, args.qb_norm, args.dump_embeddings, args.report} != {None}:
        change_metric(evaluators, args, cfg.get('default_scope', 'mmengine'))
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
        check_writable(args.dump)
        evaluators.append(dict(type='vop.DumpPredictions', out_file_path=args.dump))
    if isinstance(cfg.test_evaluator, dict) and 'metrics' in cfg.test_evaluator:
        cfg.test_evaluator.metrics = evaluators
    else:
        cfg.test_evaluator = evaluators
    return cfg


def metrics_of(cfg: Config) -> list[dict]:
    """The metrics of a config, in whichever way it lists them."""
    metrics = cfg.test_evaluator
    if isinstance(metrics, dict):  # an Evaluator, or one metric
        metrics = metrics.get('metrics', metrics)
    return list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]


def change_metric(evaluators: list[dict], args: argparse.Namespace, scope: str | None) -> None:
    """Let the metric rescore and dump as the command line asks."""
    ours = [e for e in evaluators if is_kind(e, 'vop.RetrievalMetric', METRICS, scope)]
    if len(ours) != 1:
        raise UserError(
            '--dsl, --qb-norm, --dump-embeddings and --report need one vop.RetrievalMetric in '
            f'test_evaluator of the config, which has {len(ours)}.'
        )
    [metric] = ours
    rescoring = list(metric.get('rescoring', ()))
    for kind, key, value in (('vop.DSL', 'scale', args.dsl), ('vop.QBNorm', 'bank', args.qb_norm)):
        if value is not None:
            same = [m for m in rescoring if is_kind(m, kind, RESCORINGS, scope)]
            if same:
                same[0][key] = value
            else:
                rescoring.append({'type': kind, key: value})
    metric.rescoring = rescoring
    if args.dump_embeddings is not None:
        metric.dump = args.dump_embeddings
    METRICS.build(dict(metric, device='cpu'))  # what is wrong is said before CLIP is opened


class CheckModel(Hook):
    """Refuses a checkpoint that does not fit, and tells the metric which model is tested."""

    priority = 'VERY_HIGH'  # before others change the checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        check_state(runner.model, checkpoint, runner.cfg.load_from)

    def before_test(self, runner: Runner) -> None:
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, RetrievalMetric):
                metric.set_model(weights_fingerprint(runner.model.named_parameters()))


def main() -> None:
    args = parse_args()
    check_launcher(args.launcher)
    cfg = merge_args(open_config(args.config), args)
    check_data(cfg, 'test')
    use_gloo_without_gpu(cfg)
    # Testing exchanges no gradients, and DistributedDataParallel refuses a
    # model that has none to exchange, such as zero-shot CLIP.
    wrap_model(cfg, dict(type='vop.Unwrapped'))
    pin_memory(cfg)
    with name_full_disk(cfg.work_dir), explain_data_loader():
        runner = build_runner(cfg)
        runner.register_hook(CheckModel())
        runner.test()
    asked = [*runner.test_evaluator.metrics, *runner.hooks]
    lost = [part.lost for part in asked if getattr(part, 'lost', None)]
    if lost:  # the metrics are printed
        raise UserError(' '.join(lost))


if __name__ == '__main__':
    with tool():
        main()
