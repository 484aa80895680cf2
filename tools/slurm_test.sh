#!/usr/bin/env bash
# Test with Slurm: slurm_test.sh PARTITION JOB CONFIG [CKPT] [arguments]
# GPUS (8 in total), GPUS_PER_NODE (8), CPUS_PER_TASK (8) and SRUN_ARGS change it.
. "$(dirname "$0")/launch.sh"
[ $# -ge 3 ] || usage 'PARTITION JOB_NAME CONFIG [CHECKPOINT] [arguments of test.py]'
launch_slurm "$1" "$2" test.py "${@:3}"
