"""What all tools share that can run as several processes."""

import argparse
import os
import os.path as osp
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.registry import STRATEGIES

from ..errors import UserError, exit_on_user_error
from ..fileio import file_lock
from ..registry import MODEL_WRAPPERS, class_of

# torch is imported where it is used: no tool needs it for its --help.
if TYPE_CHECKING:
    from torch import nn


@contextmanager
def tool() -> Iterator[None]:
    """Run the ``main`` of a tool: user errors in one line, process group left.

    Example:
        >>> if __name__ == '__main__':
        ...     with tool():
        ...         main()
    """
    with exit_on_user_error():
        try:
            yield
        finally:
            dist = sys.modules.get('torch.distributed')
            if dist and dist.is_initialized():  # else a process can abort at its exit
                dist.destroy_process_group()


class _SetLocalRank(argparse.Action):
    """Passes ``--local_rank`` of older launchers on to MMEngine."""

    def __call__(self, parser, namespace, value, option_string=None) -> None:
        os.environ['LOCAL_RANK'] = str(value)


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and ``--local_rank`` as OpenMMLab's tools have them.

    Args:
        parser (argparse.ArgumentParser): Parser of a tool.
    """
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of this run were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, action=_SetLocalRank)


# How many processes a launcher started, which one this is, and which on its machine.
_LAUNCHED = dict(
    pytorch=('WORLD_SIZE', 'RANK', 'LOCAL_RANK'),
    mpi=('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    slurm=('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
)
# What else MMEngine reads, and how such processes are started.
_NEEDED = dict(
    pytorch=('MASTER_ADDR', 'MASTER_PORT'), mpi=('MASTER_ADDR',), slurm=('SLURM_NODELIST',)
)
_STARTED = dict(
    pytorch='with `torchrun --nproc_per_node N` or tools/dist_*.sh',
    mpi="with Open MPI's `mpirun -x MASTER_ADDR=HOST`, where HOST is the first machine",
    slurm='with `srun` or tools/slurm_*.sh',
)


def check_launcher(launcher: str) -> int:
    """Let the launcher decide how many processes a run has.

    Called before a config is opened: configs share their batch by ``WORLD_SIZE``, which becomes
    what the launcher says, as do ``RANK`` and ``LOCAL_RANK``, which MMEngine reads.

    Args:
        launcher (str): ``--launcher``: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Returns:
        int: The number of processes; 1 for ``'none'``.

    Raises:
        UserError: If the environment disagrees: another launcher started this process as one of
            several, this one did not start it, or a variable is left over from elsewhere.

    Example:
        >>> check_launcher('none')
        1
    """
    if launcher == 'none':
        _check_alone()
        os.environ['LOCAL_RANK'] = '0'  # where MMEngine looks for it; one may be left over
        return 1
    size, rank, local_rank = _LAUNCHED[launcher]
    missing = [name for name in (size, rank, *_NEEDED[launcher]) if not os.environ.get(name)]
    if missing or (launcher == 'slurm' and _in_script_of_sbatch()):
        why = f'{missing[0]} is not set' if missing else 'srun did not start this process'
        raise UserError(
            f'--launcher {launcher}, but {why}: start the processes {_STARTED[launcher]}, or '
            'leave --launcher out for one process alone.'
        )
    world, number = _number(size), _number(rank)
    if not number < world:
        raise UserError(f'{rank}={number}, but {size}={world}: ranks are 0 to {world - 1}.')
    for other in ('WORLD_SIZE', *(['SLURM_STEP_NUM_TASKS'] if launcher == 'slurm' else [])):
        if other in os.environ and _number(other) != world:
            raise UserError(
                f'--launcher {launcher} started {world} processes ({size}), but '
                f'{other}={os.environ[other]}: `unset {other}` if it is left over from elsewhere.'
            )
    local = os.environ.get(local_rank) or '0'
    os.environ.update(WORLD_SIZE=str(world), RANK=str(number), LOCAL_RANK=local)
    return world


def _check_alone() -> None:
    """Refuse to run alone as one of several processes."""
    sizes = dict(mpi='OMPI_COMM_WORLD_SIZE', pytorch='WORLD_SIZE')
    if 'SLURM_PROCID' in os.environ and not _in_script_of_sbatch():
        # A shell in an allocation of several tasks is a step of one.
        step = 'SLURM_STEP_NUM_TASKS'
        sizes = dict(slurm=step if step in os.environ else 'SLURM_NTASKS') | sizes
    for launcher, size in (
        *sizes.items(),
        *(('', name) for name in ('PMI_SIZE', 'MV2_COMM_WORLD_SIZE')),  # MPICH, Intel, MVAPICH
    ):
        if size not in os.environ or _number(size) == 1:
            continue
        how = f'add --launcher {launcher}' if launcher else f'start them {_STARTED["pytorch"]}'
        raise UserError(
            f'{size}={os.environ[size]} says that this is one of several processes, but --launcher '
            f'none (the default) is for one alone: {how} if they are one run, else `unset {size}`.'
        )


def _in_script_of_sbatch() -> bool:
    """Whether this runs in a script of ``sbatch`` itself, where it looks like its first task."""
    return (
        'SLURM_JOB_ID' in os.environ
        and 'SLURM_STEP_ID' not in os.environ
        and os.environ.get('SLURM_PROCID') == '0'
    )


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal() or (name.endswith(('SIZE', 'TASKS')) and int(value) == 0):
        raise UserError(f'{name}={value!r} is not a number of processes: `unset {name}`?')
    return int(value)


def use_gloo_without_gpu(cfg: Config) -> None:
    """Prepare a distributed run on CPUs.

    MMEngine's launcher takes a GPU for granted: it sets the CUDA device and
    wraps the model with ``device_ids=[LOCAL_RANK]``. Without one, this opens
    a gloo process group before the Runner does, and asks for a wrapper
    without device ids. It does nothing where there is a GPU, or one process.

    Args:
        cfg (Config): Config of the run, with ``launcher`` set.

    Raises:
        UserError: If the launcher is one that needs GPUs.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    import torch.distributed as dist
    from mmengine.device import get_device

    if get_device() != 'cpu':
        return
    if cfg.launcher != 'pytorch':
        raise UserError(
            f'There is no GPU here, and launcher '
            f"'{cfg.launcher}' needs one; on CPUs use "
            "'pytorch' (tools/dist_*.sh)."
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    if 'model_wrapper_cfg' not in cfg:
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
        wrap_model(cfg, wrapper)


def wrap_model(cfg: Config, wrapper: dict) -> None:
    """Choose how several processes wrap the model, with any runner.

    Args:
        cfg (Config): Config of the run, with ``launcher`` set.
        wrapper (dict): Config of the wrapper. Strategies of a ``FlexibleRunner`` that
            distribute a model in ways of their own (FSDP, DeepSpeed) keep theirs.

    Example:
        >>> wrap_model(cfg, dict(type='vop.Unwrapped'))
    """
    cfg.model_wrapper_cfg = wrapper
    if cfg.get('runner_type', 'Runner') == 'Runner' or cfg.launcher == 'none':
        return
    strategy = cfg.get('strategy') or dict(type='DDPStrategy')
    if class_of(strategy, STRATEGIES) is STRATEGIES.get('DDPStrategy'):
        cfg.strategy = dict(strategy, model_wrapper=wrapper)


def make_work_dir(cfg: Config) -> None:
    """Make the work dir of a config, or say why it cannot be.

    Raises:
        UserError: If it cannot be made, or not be written to.
    """
    work_dir = cfg.get('work_dir') or 'work_dirs'
    try:
        os.makedirs(work_dir, exist_ok=True)
    except OSError as error:
        raise UserError(
            f'The work dir {work_dir} cannot be made: {error.strerror}. Name another (--work-dir).'
        ) from error
    if not os.access(work_dir, os.W_OK | os.X_OK):
        raise UserError(f'The work dir {work_dir} is read-only. Name another (--work-dir).')


@contextmanager
def lock_work_dir(cfg: Config) -> Iterator[None]:
    """Keep other trainings out of the work dir.

    The main process of a run holds the lock. A process that is killed holds none.

    Args:
        cfg (Config): Config of the run, with ``launcher`` and ``work_dir`` set.

    Raises:
        UserError: If another run has the lock, or the folder cannot be written.

    Example:
        >>> with lock_work_dir(cfg):
        ...     build_train_runner(cfg).train()
    """
    make_work_dir(cfg)
    # Where check_launcher has put it.
    rank = '0' if cfg.get('launcher', 'none') == 'none' else os.environ.get('RANK', '0')
    lock = file_lock(osp.join(cfg.work_dir, '.lock')) if rank == '0' else nullcontext()
    with lock:
        yield


@MODEL_WRAPPERS.register_module()
class Unwrapped:
    """A model wrapper that gives the model back as it is, for testing.

    Testing exchanges no gradients, and DistributedDataParallel refuses a
    model that has none to exchange, such as zero-shot CLIP.

    Example:
        In a config::

            model_wrapper_cfg = dict(type='vop.Unwrapped')
    """

    def __new__(cls, module: 'nn.Module', **kwargs) -> Any:
        return module
