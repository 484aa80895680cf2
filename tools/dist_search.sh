#!/usr/bin/env bash
# Index on several GPUs: dist_search.sh VIDEO_DIR INDEX GPUS [arguments of
# search.py index]. Several machines: set NNODES, NODE_RANK, MASTER_ADDR and
# PORT on each; INDEX must be in a folder that they share, VIDEO_DIR too.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 VIDEO_DIR INDEX GPUS [arguments of search.py index]" >&2
    exit 2
fi
ROOT="$(cd "$(dirname "$0")/.." && pwd)"
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" \
    python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$ROOT/tools/search.py" index "$1" "$2" --launcher pytorch "${@:4}"
