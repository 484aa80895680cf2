"""Building MMEngine's Runner for training."""

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner


class NothingTrains(ValueError):
    """All of a model is frozen."""


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config that is to train.

    Args:
        cfg (Config): The config.

    Returns:
        Runner: Its runner.

    Raises:
        NothingTrains: If the model has nothing to train.
    """
    message = (
        f'Nothing trains in {cfg.filename}: it has neither prompts nor '
        'adapters, and all of CLIP is frozen. Test it with '
        'tools/test.py.'
    )
    try:
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    except RuntimeError as error:
        # DistributedDataParallel refuses a frozen model itself.
        if 'require a gradient' in str(error):
            raise NothingTrains(message) from error
        raise
    if not any(p.requires_grad for p in runner.model.parameters()):
        raise NothingTrains(message)
    return runner
