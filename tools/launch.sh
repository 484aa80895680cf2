# Sourced by dist_*.sh and slurm_*.sh: start a tool in several processes.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

usage() {
    echo "usage: $0 $1" >&2
    exit 2
}

# launch_dist GPUS TOOL [ARGUMENTS]: on this machine, or on several with NNODES,
# NODE_RANK, MASTER_ADDR and PORT set on each.
launch_dist() {
    python -m torch.distributed.run \
        --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$ROOT/tools/$2" "${@:3}" --launcher pytorch
}

# launch_slurm PARTITION JOB_NAME TOOL [ARGUMENTS]: GPUS (8 in total),
# GPUS_PER_NODE (8), CPUS_PER_TASK (8) and SRUN_ARGS change it.
launch_slurm() {
    local gpus=${GPUS:-8} per_node
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    export MASTER_PORT=${MASTER_PORT:-$((12000 + RANDOM % 20000))}
    export WORLD_SIZE=$gpus # the configs divide their batch by it
    srun -p "$1" --job-name="$2" --gres=gpu:"$per_node" \
        --ntasks="$gpus" --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} \
        python -u "$ROOT/tools/$3" "${@:4}" --launcher slurm
}
