"""What all tools share that can run as several processes."""

import argparse
import errno
import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..errors import UserError, exit_on_user_error
from ..fileio import file_lock
from ..registry import MODEL_WRAPPERS


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
            if dist.is_initialized():  # else a process can abort at its exit
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
    os.environ.setdefault('LOCAL_RANK', '0')  # where MMEngine's Runner looks for it
    parser.add_argument('--local_rank', '--local-rank', type=int, action=_SetLocalRank)


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
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher != 'pytorch':
        raise UserError(
            f'There is no GPU here, and launcher '
            f"'{cfg.launcher}' needs one; on CPUs use "
            "'pytorch' (tools/dist_*.sh)."
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        {'type': 'MMDistributedDataParallel', 'device_ids': None, 'broadcast_buffers': False},
    )


@contextmanager
def lock_work_dir(cfg: Config) -> Iterator[None]:
    """Keep other trainings out of the work dir, and say that the disk is full.

    The main process of a run holds the lock. A process that is killed holds none.

    Args:
        cfg (Config): Config of the run, with ``launcher`` and ``work_dir`` set.

    Raises:
        UserError: If another run has the lock, if the folder cannot be
            written, or if the disk gets full.

    Example:
        >>> with lock_work_dir(cfg):
        ...     build_train_runner(cfg).train()
    """
    names = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    rank = os.environ.get(names.get(cfg.get('launcher', 'none'), ''), '0')
    lock = file_lock(osp.join(cfg.work_dir, '.lock')) if rank == '0' else nullcontext()
    with lock:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f'{error.filename or cfg.work_dir} cannot be written: {error.strerror}. Make '
                'room; --resume resumes from the last checkpoint.'
            ) from error


@MODEL_WRAPPERS.register_module()
class Unwrapped:
    """A model wrapper that gives the model back as it is, for testing.

    Testing exchanges no gradients, and DistributedDataParallel refuses a
    model that has none to exchange, such as zero-shot CLIP.

    Example:
        In a config::

            model_wrapper_cfg = dict(type='vop.Unwrapped')
    """

    def __new__(cls, module: nn.Module) -> Any:
        return module
