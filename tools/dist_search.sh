#!/usr/bin/env bash
# Index on several GPUs: dist_search.sh VIDEO_DIR INDEX GPUS [arguments of
# search.py index]. Several machines: set NNODES, NODE_RANK, MASTER_ADDR and
# PORT on each; INDEX must be in a folder that they share, VIDEO_DIR too.
. "$(dirname "$0")/launch.sh"
[ $# -ge 3 ] || usage 'VIDEO_DIR INDEX GPUS [arguments of search.py index]'
launch_dist "$3" search.py index "$1" "$2" "${@:4}"
