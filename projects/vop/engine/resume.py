"""Resuming a training: from which checkpoint, and what became of its settings."""

import ast
import os.path as osp
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop

from ..errors import UserError, warn
from .checkpoint import check_state, is_whole, load_safely

# What of a config makes a training what it is.
COMPARED = (
    *('model', 'data_preprocessor', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
    *('param_scheduler', 'auto_scale_lr', 'custom_hooks', 'val_dataloader', 'val_evaluator'),
    *('default_hooks.checkpoint.save_best', 'default_hooks.checkpoint.rule'),
)
# What only makes it faster, or is compared as the total batch.
IGNORED = re.compile(
    r'(train|val)_dataloader\.(batch_size|num_workers|persistent_workers|pin_memory|timeout'
    r'|prefetch_factor|multiprocessing_context)'
)
SCHEDULE = ('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'train_cfg')


def find_checkpoint(cfg: Config) -> str | None:
    """Find the newest checkpoint in the work dir of a config that can be read.

    That is the one that ``last_checkpoint`` names, wherever the folder is
    now, or else the one that was written last; a warning says so.

    Args:
        cfg (Config): The config, with ``work_dir`` set.

    Returns:
        str, optional: Its path; none if there is none, or none can be read.

    Raises:
        UserError: If the system cannot read a checkpoint: it may well be whole, and another
            process of this run may read it.

    Example:
        >>> find_checkpoint(Config(dict(work_dir='work_dirs/vop_msrvtt')))
        'work_dirs/vop_msrvtt/epoch_5.pth'
    """
    folders = [cfg.work_dir]
    out_dir = (cfg.get('default_hooks', {}).get('checkpoint') or {}).get('out_dir')
    if out_dir:
        folders.append(osp.join(out_dir, osp.basename(osp.abspath(cfg.work_dir))))
    try:
        named = Path(cfg.work_dir, 'last_checkpoint').read_text().strip()
    except (OSError, UnicodeDecodeError):
        named = ''
    if '://' in named:
        return named
    here = [osp.join(folder, osp.basename(named)) for folder in folders if osp.basename(named)]
    latest = [path for path in here if osp.isfile(path)][:1]
    if 'runner_type' in cfg and here and osp.isdir(here[-1]):  # of DeepSpeed or FSDP
        return here[-1]
    others = [
        str(path)
        for folder in folders
        for path in sorted(Path(folder).glob('*.pth'))
        if not path.name.startswith('best_') and str(path) not in latest
    ]
    faults: list[str] = []
    elsewhere = [] if latest or others or not osp.isfile(named) else [named]
    for group in (latest, others, elsewhere):
        found = []
        for path in group:
            try:
                checkpoint = load_safely(path, 'cpu')
            except UserError as error:
                if isinstance(error.__cause__, OSError):
                    raise
                faults.append(str(error))
                continue
            if _is_of_training(checkpoint, cfg):
                meta = checkpoint['meta']
                found.append((str(meta.get('time')), meta['iter'], path))
        if found:
            path = max(found)[-1]
            if path not in latest:
                reason = ' '.join(faults) or f'last_checkpoint names no file of {cfg.work_dir}.'
                warn(f'{reason} This run resumes from {path}, the newest that can be read.')
            return path
    if faults:
        warn(f'{" ".join(faults)} There is no other to resume from.')
    return None


def _is_of_training(checkpoint: Any, cfg: Config) -> bool:
    if not isinstance(checkpoint, dict) or not {'meta', 'message_hub'} <= checkpoint.keys():
        return False
    if (
        not isinstance(checkpoint['meta'], dict)
        or not {'epoch', 'iter'} <= checkpoint['meta'].keys()
    ):
        return False
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    return 'optimizer' in checkpoint or not hook.get('save_optimizer', True)


def prepare_resume(cfg: Config, given: str | None = None) -> str | None:
    """Set the checkpoint that a run resumes from, or that it starts.

    Args:
        cfg (Config): The config; ``resume``, ``load_from`` and the seed are set.
        given (str, optional): A checkpoint, or ``'auto'`` for the newest in the
            work dir, if there is one. Defaults to what the config says.

    Returns:
        str, optional: The checkpoint; none if the run starts from the beginning.

    Raises:
        UserError: If a training cannot be resumed from what is given; the
            message says what it is, and what to take.

    Example:
        >>> prepare_resume(cfg, 'auto')
        'work_dirs/vop_msrvtt/epoch_5.pth'
    """
    if not given and not cfg.get('resume'):
        return None
    path = given or cfg.get('load_from') or 'auto'
    if path == 'auto':
        path = find_checkpoint(cfg)
        if path is None:
            warn(f'There is no checkpoint in {cfg.work_dir}: training starts from the beginning.')
            cfg.resume = False
            return None
    cfg.resume, cfg.load_from = True, path
    if '://' in path or (osp.isdir(path) and 'runner_type' in cfg):
        return path
    cfg.load_from = path = osp.expanduser(path)
    if osp.isdir(path):
        raise UserError(f'{path} is a folder. Name a checkpoint in it, or give it as --work-dir.')
    checkpoint = load_safely(path, 'cpu')
    if not _is_of_training(checkpoint, cfg):
        # epoch_2-HASH.pth, best_t2v_R@1_epoch_2.pth and best_t2v_R@1_epoch_2-HASH.pth
        step = re.search(r'((?:epoch|iter)_\d+)(?:-[0-9a-f]{8})?\.pth$', path)
        full = osp.join(osp.dirname(path), f'{step[1]}.pth') if step else ''
        instead = f'from {full}' if osp.isfile(full) else 'from an epoch_N.pth of its folder'
        raise UserError(
            f'{path} holds only weights, without the state of the training: it cannot be resumed '
            f'from. Resume {instead}, or start a new training from these weights, without '
            f'--resume: --cfg-options load_from={path}'
        )
    seed = checkpoint['meta'].get('seed')
    if seed is not None:
        randomness = cfg.setdefault('randomness', {})
        if randomness.get('seed') not in (None, seed):
            warn(f'The seed {randomness.seed} has no effect: {path} was trained with {seed}.')
        randomness['seed'] = seed  # of the order of the data, too
    return path


class ResumeHook(Hook):
    """Compares the config that was trained with the one that resumes.

    What differs is said in one warning. The learning rate is then that of the
    schedule of the config that resumes, as if it had been so from the start.
    An epoch that was cut off is repeated, which is said, too.

    Args:
        path (str, optional): The checkpoint, for messages; None if the run starts from the
            beginning, which all its processes must do then.

    Raises:
        UserError: If the weights, the optimizer or the kind of loop do not fit, or the processes
            of a run read different checkpoints.

    Example:
        >>> runner.register_hook(ResumeHook('work_dirs/vop_msrvtt/epoch_5.pth'))
    """

    priority = 'VERY_HIGH'  # before EMAHook loads the weights

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.read: tuple = (None, 0, None)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.path is None:  # weights to start from
            return
        meta = checkpoint['meta']
        self.read = self.path, meta['iter'], None
        if is_whole(runner):
            self.read = self.path, meta['iter'], meta.get('time')
            check_state(runner.model, checkpoint, self.path)
        ours, theirs = parse_config(runner.cfg.pretty_text), parse_config(meta.get('cfg', ''))
        changes = []
        if theirs:
            self._refuse_other_kind(ours, theirs)
            world = runner.world_size
            batches = _batch(ours, world), _batch(theirs, meta.get('world_size', world))
            changes = [*_changes(ours, theirs), *_differences('batch_size in total', *batches)]
        schedule = any(key.startswith((*SCHEDULE, 'batch_size')) for key, *_ in changes)
        by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
        length = 0 if by_iter else len(runner.train_dataloader)
        said = [] if theirs else [f'{self.path} does not say with which settings it was trained.']
        if not by_iter and meta['iter'] != meta['epoch'] * length:
            hook = (theirs.get('default_hooks') or {}).get('checkpoint') or {}
            if meta['epoch'] and hook.get('by_epoch', True):
                changes.append(('steps in an epoch', length, f'{meta["iter"] / meta["epoch"]:g}'))
            else:  # MMEngine would count on from there, though it starts the epoch again
                epoch = meta['epoch'] + 1
                where = f'in epoch {epoch}, which is repeated from its start'
                if meta['iter'] == epoch * length and not changes:
                    meta['epoch'], where = epoch, f'the last of epoch {epoch}'
                said.append(f'{self.path} was written at step {meta["iter"]}, {where}.')
            meta['iter'] = meta['epoch'] * length
            schedule = True
        if changes:
            notes = ', '.join(
                f'{key}={_short(new)} (was {_short(old)})' for key, new, old in changes
            )
            said.append(f'{self.path} was trained with other settings. From here on: {notes}.')
        if schedule:
            said.append(self._follow_schedule(runner, checkpoint, length))
        if said:
            warn(' '.join(said))

    def before_train(self, runner) -> None:
        # Each process has looked for the newest checkpoint by itself.
        every = all_gather_object(self.read)
        if len({(step, time) for _, step, time in every}) > 1:
            names = ', '.join(f'{path} (step {step}, {time})' for path, step, time in every)
            raise UserError(
                f'The processes of this run would start from different checkpoints: {names}. '
                'See that all can read the newest, or name one: --resume CHECKPOINT'
            )

    def _refuse_other_kind(self, ours: dict, theirs: dict) -> None:
        for what, kind in (('optimizer', _optimizer), ('loop', _loop)):
            if kind(ours) != kind(theirs):
                self._refuse(f'the {what} {kind(theirs)}, but the config has {kind(ours)}')

    def _refuse(self, difference: str) -> None:
        raise UserError(
            f'{self.path} was trained with {difference}: it cannot be resumed so. Start anew '
            f'from its weights, without --resume: --cfg-options load_from={self.path}'
        )

    def _follow_schedule(self, runner, checkpoint: dict, length: int) -> str:
        """Write into the checkpoint what optimizer and schedule are by the config; say so.

        The optimizer of the runner is still as the config makes it, and its
        schedule at its start: it takes the steps that were trained, in epochs of
        ``length`` steps, or in none.
        """
        optimizer, schedulers = runner.optim_wrapper, runner.param_schedulers or []
        saved = checkpoint.get('optimizer')
        if (
            isinstance(optimizer, OptimWrapperDict)
            or not isinstance(schedulers, list)
            or any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers)
        ):
            return 'But optimizer and schedule stay those of the checkpoint.'
        with warnings.catch_warnings():
            # They miss the steps of the optimizer, which were taken before.
            warnings.simplefilter('ignore')
            for step in range(1, checkpoint['meta']['iter'] + 1):
                for scheduler in schedulers:
                    if not scheduler.by_epoch or (length and step % length == 0):
                        scheduler.step()
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
        if saved:
            new = optimizer.state_dict()
            sizes = [[len(g['params']) for g in s['param_groups']] for s in (new, saved)]
            if sizes[0] != sizes[1]:
                self._refuse(f'groups of {sizes[1]} parameters, and the config makes {sizes[0]}')
            for group, known in zip(new['param_groups'], saved['param_groups']):
                group['params'] = known['params']
            for key in ('param_groups', 'base_param_settings'):
                if key in new:
                    saved[key] = new[key]
        rates = {group['lr'] for group in optimizer.param_groups}
        return f'The learning rate is now {", ".join(f"{rate:.3g}" for rate in sorted(rates))}.'


def _optimizer(cfg: dict) -> Any:
    wrapper = cfg.get('optim_wrapper')
    optimizer = wrapper.get('optimizer') if isinstance(wrapper, dict) else None
    kind = optimizer.get('type') if isinstance(optimizer, dict) else None
    # A class is written as its path.
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind


def _loop(cfg: dict) -> str:
    loop = cfg.get('train_cfg') or {}
    by_iter = 'IterBased' in str(loop.get('type')) or loop.get('by_epoch') is False
    return 'IterBasedTrainLoop' if by_iter else 'EpochBasedTrainLoop'


def _batch(cfg: dict, world_size: int) -> Any:
    size = (cfg.get('train_dataloader') or {}).get('batch_size')
    return size * world_size if isinstance(size, int) else size


def parse_config(text: str) -> dict:
    """Read a config as MMEngine writes it into checkpoints, without running it.

    Args:
        text (str): Assignments of plain values and ``dict(...)``.

    Returns:
        dict: The values; of what is no plain value, its text. Empty if the
        text is something else.

    Example:
        >>> parse_config("model = dict(type='A', sizes=(1, 2))")
        {'model': {'type': 'A', 'sizes': [1, 2]}}
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Call(func=ast.Name(id='dict')):
                parts = [value(part) for part in node.args]
                pairs = {keyword.arg: value(keyword.value) for keyword in node.keywords}
                return {**(parts[0] if parts else {}), **pairs}
            case ast.Dict():
                return {ast.unparse(k): value(v) for k, v in zip(node.keys, node.values) if k}
            case ast.List() | ast.Tuple():
                return [value(item) for item in node.elts]
        try:
            return ast.literal_eval(node)
        except ValueError:
            return ast.unparse(node)

    try:
        return {
            node.targets[0].id: value(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, TypeError, RecursionError):
        return {}


def _changes(ours: dict, theirs: dict) -> Iterator[tuple[str, Any, Any]]:
    for root in COMPARED:
        new, old = _get(ours, root), _get(theirs, root)
        if root.startswith(('val_', 'default_hooks')) and None in (new, old):
            continue  # --no-validate, or left to the default
        for change in _differences(root, new, old):
            if not IGNORED.match(change[0]):
                yield change


def _get(cfg: Any, key: str) -> Any:
    for part in key.split('.'):
        cfg = cfg.get(part) if isinstance(cfg, dict) else None
    return cfg


def _differences(key: str, new: Any, old: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(new, dict) and isinstance(old, dict):
        for part in sorted({*new, *old}, key=str):
            yield from _differences(f'{key}.{part}', new.get(part), old.get(part))
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for number, pair in enumerate(zip(new, old)):
            yield from _differences(f'{key}.{number}', *pair)
    elif new != old:
        yield key, new, old


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
