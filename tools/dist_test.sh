#!/usr/bin/env bash
# Test on several GPUs: dist_test.sh CONFIG [CKPT] GPUS [arguments of test.py]
# Without a checkpoint, the model as the config makes it (zero-shot CLIP).
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
if [[ "${2:-}" =~ ^[0-9]+$ ]]; then
    set -- "$1" '' "${@:2}"
fi
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG [CHECKPOINT] GPUS [arguments of test.py]" >&2
    exit 2
fi
ROOT="$(cd "$(dirname "$0")/.." && pwd)"
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" \
    python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$ROOT/tools/test.py" "$1" ${2:+"$2"} --launcher pytorch "${@:4}"
