#!/usr/bin/env bash
# Index with Slurm: slurm_search.sh PARTITION JOB VIDEO_DIR INDEX [arguments of
# search.py index]. GPUS (8 in total), GPUS_PER_NODE (8), CPUS_PER_TASK (8) and
# SRUN_ARGS change it.
. "$(dirname "$0")/launch.sh"
[ $# -ge 4 ] || usage 'PARTITION JOB_NAME VIDEO_DIR INDEX [arguments of search.py index]'
launch_slurm "$1" "$2" search.py index "${@:3}"
