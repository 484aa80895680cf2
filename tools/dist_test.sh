#!/usr/bin/env bash
# Test on several GPUs: dist_test.sh CONFIG [CKPT] GPUS [arguments of test.py]
# Without a checkpoint, the model as the config makes it (zero-shot CLIP).
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
. "$(dirname "$0")/launch.sh"
if [[ "${2:-}" =~ ^[0-9]+$ ]]; then
    set -- "$1" '' "${@:2}"
fi
[ $# -ge 3 ] || usage 'CONFIG [CHECKPOINT] GPUS [arguments of test.py]'
launch_dist "$3" test.py "$1" ${2:+"$2"} "${@:4}"
