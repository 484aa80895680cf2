"""Building MMEngine's runners."""

from mmengine.config import Config
from mmengine.registry import RUNNERS, STRATEGIES
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError
from ..registry import class_of
from .config import check_pixels, fit_pixels, fit_tokenizers
from .distributed import make_work_dir
from .finite import FiniteHook
from .parameters import build_without_weights


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, with a :class:`.FiniteHook`.

    Captions are tokenised for its CLIP.

    Args:
        cfg (Config): The config; ``runner_type`` may name another runner.

    Returns:
        Runner: Its runner.

    Raises:
        UserError: If its work dir cannot be made, or not be written to; if its strategy needs a
            launcher; or if a pipeline has the tokenizer, or a recognizer the mean or deviation,
            of another CLIP.

    Example:
        >>> runner = build_runner(open_config('configs/zero_shot_msrvtt.py'))
        >>> runner.test()
    """
    model = cfg.get('model', {})
    clip = model.get('clip') or (model.get('backbone') or {}).get('clip')  # a recognizer's
    scope = cfg.get('default_scope', 'mmengine')
    if isinstance(clip, dict):
        for split in ('train', 'val', 'test'):
            fit_tokenizers(cfg.get(f'{split}_dataloader'), clip, scope)
            fit_pixels(cfg.get(f'{split}_dataloader'), clip, scope)
    check_pixels(model)
    make_work_dir(cfg)
    strategy = class_of(cfg.get('strategy'), STRATEGIES)
    if cfg.get('launcher', 'none') == 'none' and issubclass(
        strategy, STRATEGIES.get('DDPStrategy')
    ):
        raise UserError(
            f'{strategy.__name__} is for processes of a launcher, of which one will do: '
            '`torchrun --nproc_per_node 1 TOOL ... --launcher pytorch`.'
        )
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if not any(isinstance(hook, FiniteHook) for hook in runner.hooks):
        runner.register_hook(FiniteHook())
    return runner


def build_train_runner(cfg: Config) -> Runner:
    """Build the runner of a config that is to train.

    Args:
        cfg (Config): The config.

    Returns:
        Runner: Its runner.

    Raises:
        UserError: If the model has nothing to train.
    """
    try:
        runner = build_runner(cfg)
    except RuntimeError:
        # DistributedDataParallel refuses a frozen model before we can ask.
        _check_trains(build_without_weights(cfg), cfg)
        raise
    # A FlexibleRunner has the config of its model only, until it runs.
    is_built = isinstance(runner.model, nn.Module)
    _check_trains(runner.model if is_built else build_without_weights(cfg), cfg)
    return runner


def _check_trains(model: nn.Module, cfg: Config) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f'Nothing trains in {cfg.filename}: it has neither prompts nor adapters, and all of '
            'CLIP is frozen. Test it with tools/test.py.'
        )
