"""Building MMEngine's Runner for training."""

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..errors import UserError
from .parameters import build_without_weights


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config.

    Args:
        cfg (Config): The config; ``runner_type`` may name another runner.

    Returns:
        Runner: Its runner.

    Example:
        >>> runner = build_runner(open_config('configs/zero_shot_msrvtt.py'))
        >>> runner.test()
    """
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def build_train_runner(cfg: Config) -> Runner:
    """Build the runner of a config that is to train.

    Args:
        cfg (Config): The config.

    Returns:
        Runner: Its runner.

    Raises:
        UserError: If the model has nothing to train.
    """
    refusal = UserError(
        f'Nothing trains in {cfg.filename}: it has neither prompts nor adapters, and all of '
        'CLIP is frozen. Test it with tools/test.py.'
    )
    try:
        runner = build_runner(cfg)
    except RuntimeError as error:
        # DistributedDataParallel refuses a frozen model before we can ask.
        if not _trains(build_without_weights(cfg)):
            raise refusal from error
        raise
    if not _trains(runner.model):
        raise refusal
    return runner


def _trains(model) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())
