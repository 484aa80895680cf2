#!/usr/bin/env bash
# Train on several GPUs: dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
. "$(dirname "$0")/launch.sh"
[ $# -ge 2 ] || usage 'CONFIG GPUS [arguments of train.py]'
launch_dist "$2" train.py "$1" "${@:3}"
