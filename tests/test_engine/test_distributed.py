"""The launcher decides how many processes a run has."""

import os

import pytest
from helpers import ROOT

from projects.vop.engine import check_launcher, open_config
from projects.vop.errors import UserError

TORCHRUN = dict(WORLD_SIZE='2', RANK='1', LOCAL_RANK='1', MASTER_ADDR='a', MASTER_PORT='1')
MPIRUN = dict(
    OMPI_COMM_WORLD_SIZE='2',
    OMPI_COMM_WORLD_RANK='1',
    OMPI_COMM_WORLD_LOCAL_RANK='1',
    MASTER_ADDR='a',
)
# A script of sbatch, a task that srun starts in it, and the shell of salloc on a node.
SBATCH = dict(SLURM_JOB_ID='7', SLURM_NTASKS='2', SLURM_PROCID='0', SLURM_NODELIST='n[1-2]')
SRUN = SBATCH | dict(
    SLURM_PROCID='1', SLURM_LOCALID='1', SLURM_STEP_ID='0', SLURM_STEP_NUM_TASKS='2'
)
SALLOC = SBATCH | dict(SLURM_STEP_ID='4294967290', SLURM_STEP_NUM_TASKS='1')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without what launchers set; put back afterwards."""
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    for name in {*TORCHRUN, *MPIRUN, *SRUN, 'PMI_SIZE'}:
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    'launcher, variables',
    [('pytorch', TORCHRUN), ('mpi', MPIRUN), ('slurm', SRUN), ('slurm', SRUN | TORCHRUN)],
)
def test_the_batch_is_shared_as_the_launcher_says(launcher, variables):
    os.environ.update(variables)
    assert check_launcher(launcher) == 2
    assert [os.environ[name] for name in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK')] == ['2', '1', '1']
    assert open_config(ROOT / 'configs/vop_msrvtt.py').train_dataloader.batch_size == 16


@pytest.mark.parametrize(
    'variables',
    [{}, SBATCH, SALLOC, dict(SLURM_NTASKS='8'), dict(TORCHRUN, WORLD_SIZE='1', RANK='0')],
)
def test_one_process_alone(variables):
    os.environ.update(variables)
    assert check_launcher('none') == 1
    assert os.environ['LOCAL_RANK'] == '0'  # whatever is left over
    assert open_config(ROOT / 'configs/vop_msrvtt.py').train_dataloader.batch_size == 32


@pytest.mark.parametrize(
    'launcher, variables, named',
    [
        # One of several, and not told so.
        ('none', TORCHRUN, ['WORLD_SIZE=2', '--launcher pytorch', 'unset WORLD_SIZE']),
        ('none', dict(WORLD_SIZE='8'), ['WORLD_SIZE=8', 'unset WORLD_SIZE']),
        ('none', MPIRUN, ['OMPI_COMM_WORLD_SIZE=2', '--launcher mpi']),
        ('none', SRUN, ['SLURM_STEP_NUM_TASKS=2', '--launcher slurm']),
        ('none', dict(SLURM_NTASKS='2', SLURM_PROCID='0'), ['SLURM_NTASKS=2']),
        ('none', dict(PMI_SIZE='4'), ['PMI_SIZE=4', 'torchrun']),
        ('none', dict(WORLD_SIZE=''), ["WORLD_SIZE=''", 'unset WORLD_SIZE']),
        # Not started by what is named.
        ('pytorch', {}, ['--launcher pytorch', 'WORLD_SIZE is not set', 'torchrun']),
        ('pytorch', dict(WORLD_SIZE='8'), ['RANK is not set', 'torchrun']),
        ('pytorch', MPIRUN, ['WORLD_SIZE is not set']),
        ('mpi', TORCHRUN, ['OMPI_COMM_WORLD_SIZE is not set', 'mpirun']),
        ('mpi', dict(MPIRUN, MASTER_ADDR=''), ['MASTER_ADDR', 'mpirun']),
        ('slurm', TORCHRUN, ['SLURM_NTASKS is not set', 'srun']),
        ('slurm', SBATCH, ['srun did not start']),
        # Two that disagree.
        ('mpi', MPIRUN | dict(WORLD_SIZE='8'), ['2 processes', 'WORLD_SIZE=8']),
        ('slurm', SRUN | dict(WORLD_SIZE='8'), ['2 processes', 'WORLD_SIZE=8']),
        ('slurm', SALLOC | dict(SLURM_PROCID='1'), ['SLURM_STEP_NUM_TASKS=1']),
        ('pytorch', dict(TORCHRUN, RANK='2'), ['RANK=2', 'WORLD_SIZE=2']),
        ('pytorch', dict(TORCHRUN, WORLD_SIZE='two'), ["WORLD_SIZE='two' is not a number"]),
    ],
)
def test_what_disagrees_is_refused(launcher, variables, named):
    os.environ.update(variables)
    with pytest.raises(UserError) as error:
        check_launcher(launcher)
    for text in named:
        assert text in str(error.value)


@pytest.mark.parametrize(
    'tool, arguments',
    [
        ('train', ['configs/vop_msrvtt.py']),
        ('test', ['configs/vop_msrvtt.py']),
        ('search', ['index', '.', 'index']),
        ('analysis/profile_training', ['configs/vop_msrvtt.py']),
        ('reproduce', ['msrvtt', '--methods', 'vop']),
    ],
)
def test_every_tool_asks(run_tool, tool, arguments):
    os.environ.update(TORCHRUN)
    with pytest.raises(UserError, match='WORLD_SIZE=2'):
        run_tool(f'tools/{tool}.py', *arguments)
