"""Checkpoints from which a run resumes, at whatever point it was killed."""

import bisect
import glob
import os.path as osp
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine import hooks
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, save_checkpoint

from ..errors import UserError, warn
from ..fileio import write_file
from ..registry import HOOKS
from .checkpoint import load_safely

# What the last part of a metric's name contains, in small letters. MdR and MnR
# are the median and the mean rank of the right item.
LOWER_IS_BETTER = ('loss', 'error', 'mean_rank', 'median_rank')
HIGHER_IS_BETTER = (
    *('r@', 'recall', 'rsum', 'sumr', 'mrr', 'ndcg'),
    *('acc', 'top', 'auc', 'precision', 'map', 'mdice', 'miou'),
)


# What the whole last part is.
RULES = {name: 'less' for name in ('mdr', 'mnr', 'medr', 'meanr')}
RULES |= {name: 'greater' for name in ('r1', 'r5', 'r10')}


def rule_of(metric: str, greater: Iterable[str] = (), less: Iterable[str] = ()) -> str:
    """Tell whether more or less of a metric is better.

    Args:
        metric (str): Its name, such as ``'t2v/MnR'``.
        greater (Iterable[str]): Parts of names of which more is better.
        less (Iterable[str]): Parts of names of which less is better.

    Returns:
        str: ``'greater'`` or ``'less'``.

    Raises:
        UserError: If the name does not tell.

    Example:
        >>> rule_of('t2v/R@1'), rule_of('t2v/MnR')
        ('greater', 'less')
    """
    last = metric.rpartition('/')[2].lower()
    hints = ('less', less), ('greater', greater)
    known = ('less', LOWER_IS_BETTER), ('greater', HIGHER_IS_BETTER)
    for rule, parts in hints:
        if any(part.lower() in last or part == metric for part in parts):
            return rule
    if last in RULES:
        return RULES[last]
    for name in (last, metric.lower()):  # the whole of mAP/overall
        for rule, parts in known:
            if any(part in name for part in parts):
                return rule
    raise UserError(
        f'save_best={metric}: its name does not tell whether more or less of it is better. Set '
        "default_hooks.checkpoint.rule to 'greater' or 'less'."
    )


@HOOKS.register_module()
class CheckpointHook(hooks.CheckpointHook):
    """MMEngine's ``CheckpointHook`` for runs that can be killed at any point.

    A new file is written before an old one goes, and a run that is resumed

    - validates first, where it was killed before that was done;
    - finds its best checkpoint beside the one it resumes from, wherever that
      folder is now. It writes and deletes in its own folder alone: what it
      needs of another one is copied.

    ``tools/train.py`` takes it for MMEngine's in any config.

    Args:
        interval (int): Epochs or iterations from one checkpoint to the next;
            -1 for none. Defaults to -1.
        by_epoch (bool): Whether to count epochs. Defaults to True.
        save_best (str | list[str], optional): Metrics of each of which the best
            checkpoint is kept, or ``'auto'`` for the first metric.
        rule (str | list[str], optional): ``'greater'`` or ``'less'``. Defaults
            to what the metric's name says; see :func:`rule_of`.
        greater_keys (str | Iterable[str]): Parts of names of metrics of which
            more is better.
        less_keys (str | Iterable[str]): The same where less is better.
        **kwargs: See MMEngine's.

    Raises:
        UserError: If there is no such metric, or its name does not tell a
            rule; or if a file cannot be written.

    Example:
        In a config::

            default_hooks = dict(checkpoint=dict(
                type='vop.CheckpointHook', interval=1, save_best='t2v/MnR'))
    """

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        *,
        save_best: str | list[str] | None = None,
        rule: str | list[str] | None = None,
        greater_keys: str | Iterable[str] | None = None,
        less_keys: str | Iterable[str] | None = None,
        **kwargs: Any,
    ) -> None:
        keys = greater_keys, less_keys
        self.hints = [[key] if isinstance(key, str) else key or () for key in keys]
        metrics = [save_best] if isinstance(save_best, str) else save_best or []
        if not metrics:
            rule = None
        elif 'auto' not in metrics:
            rules: list = rule if isinstance(rule, list) else [rule]
            rules = rules * len(metrics) if len(rules) == 1 else rules
            rule = [given or rule_of(metric, *self.hints) for given, metric in zip(rules, metrics)]
        super().__init__(interval, by_epoch, save_best=save_best, rule=rule, **kwargs)
        self.last_ckpt: str | None = None
        self.meta: dict = {}  # of the checkpoint that is being written

    def before_train(self, runner) -> None:
        super().before_train(runner)
        known = runner.message_hub.runtime_info
        here = osp.abspath(self.out_dir)
        if is_main_process():
            for part in (*Path(here).glob('*.pth.part'), Path(here, 'last_checkpoint.part')):
                part.unlink(missing_ok=True)  # left by a kill
        if not runner.iter or '://' in str(self.out_dir):
            return
        loaded = runner.cfg.get('load_from')
        folder = osp.dirname(osp.abspath(loaded)) if loaded else here
        latest = osp.join(here, osp.basename(loaded or known.get('last_ckpt') or ''))
        if folder == here and osp.exists(latest):
            self.last_ckpt = latest
        for key in [key for key in known if key.startswith('best_ckpt')]:
            self._find_best(runner.message_hub, key, folder)
        step = _step(runner)
        if known.get('last_validated') != step and _is_to_validate(runner, step):
            runner.logger.info(f'The metrics of step {step} are missing: it is validated first.')
            runner.val_loop.run()

    def _find_best(self, hub: MessageHub, key: str, folder: str) -> None:
        """Find a best checkpoint of the run that is resumed from ``folder``."""
        name = osp.basename(hub.get_info(key))
        path = osp.join(self.out_dir, name)
        hub.update_info(key, path)
        if folder == osp.abspath(self.out_dir) and osp.exists(path):
            return
        # The checkpoint of the same step holds it, too.
        number = re.search(r'(\d+)\.pth$', name)
        names = [name, self.filename_tmpl.format(int(number[1]))] if number else [name]
        for source in filter(osp.isfile, (osp.join(folder, name) for name in names)):
            if is_main_process():
                checkpoint = load_safely(source, 'cpu')
                for part in ('optimizer', 'param_schedulers'):
                    checkpoint.pop(part, None)
                save_checkpoint(checkpoint, path)
            return
        hub.pop_info(key)
        hub.pop_info(key.replace('ckpt', 'score', 1))
        warn(
            f'The best checkpoint so far, {name}, is not in {folder}: the best of what is '
            'validated from here on will be kept.'
        )

    def after_train_epoch(self, runner) -> None:
        if self.by_epoch and (
            self.every_n_epochs(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_epoch(runner))
        ):
            self._save(runner, runner.epoch + 1, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_iter(runner))
        ):
            self._save(runner, runner.iter + 1, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def after_val_epoch(self, runner, metrics=None) -> None:
        hub = runner.message_hub
        step = runner.epoch if self.by_epoch else runner.iter
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        file = self.filename_tmpl.format(step)
        hub.update_info('last_validated', _step(runner))
        improved = False
        for metric, rule in self._watched(metrics or {}):
            score_key, path_key, score, old = self._recorded(hub, metric)
            if score is None:
                score = self.init_value_map[rule]
            new = metrics[metric]
            if new is None or not self.rule_map[rule](new, score):
                continue
            improved = True
            name = _best_name(metric, file)
            path = self.file_backend.join_path(self.out_dir, name)
            hub.update_info(score_key, new)
            hub.update_info(path_key, path)
            self._write(runner, name, meta, save_optimizer=False, save_param_scheduler=False)
            # Now, not after the next save: one that is killed before it finds
            # the step unvalidated, and no checkpoint is left over.
            if old and old != path:
                self._remove(old)
            runner.logger.info(
                f'The best checkpoint with {new:0.4f} {metric} at step {step} is saved to {name}.'
            )
        # Again, as it now knows the best, and that it was validated.
        if self.last_ckpt is not None and (improved or osp.basename(self.last_ckpt) == file):
            self._save(runner, step, meta)

    def after_train(self, runner) -> None:
        # For MMEngine, which publishes these files.
        hub, best = runner.message_hub, {}
        if self.save_best == ['auto']:
            best['auto'] = hub.runtime_info.get('best_ckpt')
        elif self.save_best:
            best = {metric: self._recorded(hub, metric)[3] for metric in self.save_best}
        self.best_ckpt_path = None
        self.best_ckpt_path_dict = {m: path for m, path in best.items() if _is_to_publish(path)}
        if not _is_to_publish(self.last_ckpt):
            self.last_ckpt = None
        super().after_train(runner)

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        # By the total batch, a run that is resumed is compared with this one.
        checkpoint['meta'].update(self.meta, world_size=runner.world_size)

    def _watched(self, metrics: dict) -> Iterator[tuple[str, str]]:
        """The metrics that a best checkpoint is kept of, and their rules."""
        for metric, rule in zip(self.save_best or (), self.rules if self.save_best else ()):
            if metric == 'auto' and metrics:
                metric = next(iter(metrics))
                rule = rule or rule_of(metric, *self.hints)
            if metric in metrics:
                yield metric, rule
            elif metrics:
                raise UserError(
                    f'save_best={metric} is no metric of val_evaluator, which gives '
                    f'{", ".join(metrics)}.'
                )

    def _recorded(self, hub: MessageHub, metric: str) -> tuple[str, str, Any, str | None]:
        """Where the best of a metric is noted, its score, and its path.

        The note of a single metric does not name it: of another metric, it
        would be compared with what it is not.
        """
        plain, own = ('best_score', 'best_ckpt'), (f'best_score_{metric}', f'best_ckpt_{metric}')
        keys = plain if len(self.save_best or ()) == 1 else own
        for score, path in (keys, plain, own):
            known = hub.runtime_info.get(path)
            if known and osp.basename(known).startswith(_best_name(metric, '')):
                return *keys, hub.get_info(score), known
        return *keys, None, None

    def _save(self, runner, step: int, meta: dict) -> None:
        hub = runner.message_hub
        name = self.filename_tmpl.format(step)
        kept = [*hub.runtime_info.get('keep_ckpt_ids', ())]
        if self.max_keep_ckpts > 0:
            kept += [step] if step not in kept else []
            hub.update_info('keep_ckpt_ids', kept)
        runner.logger.info(f'Saving checkpoint {name}')
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        options = dict(save_optimizer=self.save_optimizer, **self.args)
        self._write(runner, name, meta, save_param_scheduler=self.save_param_scheduler, **options)
        if is_main_process():
            write_file(osp.join(runner.work_dir, 'last_checkpoint'), str(self.last_ckpt))
        # The old ones now, and where this is cut off, in MMEngine's before_train.
        while 0 < self.max_keep_ckpts < len(kept):
            old = self.filename_tmpl.format(kept.pop(0))
            self._remove(self.file_backend.join_path(self.out_dir, old))
            hub.update_info('keep_ckpt_ids', list(kept))

    def _write(self, runner, name: str, meta: dict, **options: Any) -> None:
        self.meta = meta
        place = dict(file_client_args=self.file_client_args, backend_args=self.backend_args)
        # With by_epoch, MMEngine's FlexibleRunner would count the epoch twice.
        runner.save_checkpoint(
            self.out_dir, name, meta=dict(meta), by_epoch=False, **place, **options
        )
        self.meta = {}

    def _remove(self, path: str) -> None:
        if is_main_process():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of DeepSpeed
                self.file_backend.rmtree(path)


def _best_name(metric: str, file: str) -> str:
    return f'best_{metric}_{file}'.replace('/', '_')


def _is_to_publish(path: str | None) -> bool:
    """Whether a checkpoint has no published copy yet, whose name would be another each time."""
    if not path or '://' in path:
        return bool(path)
    file = Path(path)
    copies = file.parent.glob(f'{glob.escape(file.stem)}-????????.pth')
    return file.is_file() and all(copy.stat().st_mtime < file.stat().st_mtime for copy in copies)


def _step(runner) -> int:
    is_by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
    return runner.iter if is_by_iter else runner.epoch


def _is_to_validate(runner, step: int) -> bool:
    """Whether the train loop validates after this step."""
    loop = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    last = loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs
    interval = loop.dynamic_intervals[bisect.bisect(loop.dynamic_milestones, step + 1) - 1]
    return step >= max(loop.val_begin, 1) and (step % interval == 0 or step == last)


def use_checkpoint_hook(cfg: Config) -> None:
    """Let a config that saves checkpoints by MMEngine's hook take :class:`CheckpointHook`.

    Args:
        cfg (Config): The config; subclasses of MMEngine's hook stay as they are.

    Example:
        >>> cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook'))))
        >>> use_checkpoint_hook(cfg)
        >>> cfg.default_hooks.checkpoint.type
        'vop.CheckpointHook'
    """
    default = cfg.setdefault('default_hooks', {})
    default.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))  # as the Runner
    for hook in (default['checkpoint'], *(cfg.get('custom_hooks') or ())):
        if isinstance(hook, dict):
            kind = hook.get('type')
            kind = ROOT_HOOKS.get(kind) if isinstance(kind, str) else kind
            if kind is hooks.CheckpointHook:
                hook['type'] = 'vop.CheckpointHook'
