#!/usr/bin/env bash
# Train with Slurm: slurm_train.sh PARTITION JOB CONFIG [arguments of train.py]
# GPUS (8 in total), GPUS_PER_NODE (8), CPUS_PER_TASK (8) and SRUN_ARGS change it.
. "$(dirname "$0")/launch.sh"
[ $# -ge 3 ] || usage 'PARTITION JOB_NAME CONFIG [arguments of train.py]'
launch_slurm "$1" "$2" train.py "${@:3}"
