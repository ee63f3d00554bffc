#!/usr/bin/env bash
# Several processes on this machine work on one study, as they would on several machines.
#
# usage:    launch/local.sh COUNT [--dry-run] -- ARGUMENTS OF elastic_jax.run
# example:  launch/local.sh 2 -- --config=configs/quickstart.py:tiny --workdir=runs/two
#
# Each process sees the devices of XLA_FLAGS or of the machine; the batch is spread over all of them. The output of process 0
# is shown, that of the others goes to WORKDIR.process-N.log.
set -euo pipefail
count=${1:?usage: launch/local.sh COUNT [--dry-run] -- ARGUMENTS}; shift
dry=; [ "${1:-}" = --dry-run ] && { dry=1; shift; }
[ "${1:-}" = -- ] && shift
workdir=runs/local
for word in "$@"; do case $word in --workdir=*) workdir=${word#--workdir=} ;; esac; done
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export ELASTIC_COORDINATOR=127.0.0.1:$port ELASTIC_PROCESS_COUNT=$count
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((id = count - 1; id >= 0; id--)); do
  if [ -n "$dry" ]; then
    echo "ELASTIC_COORDINATOR=$ELASTIC_COORDINATOR ELASTIC_PROCESS_COUNT=$count ELASTIC_PROCESS_ID=$id python -m elastic_jax.run $*"
  elif [ "$id" = 0 ]; then
    ELASTIC_PROCESS_ID=0 python -m elastic_jax.run "$@" & pids+=($!)
  else
    mkdir -p "$(dirname "$workdir")"
    ELASTIC_PROCESS_ID=$id python -m elastic_jax.run "$@" >"$workdir.process-$id.log" 2>&1 & pids+=($!)
  fi
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
