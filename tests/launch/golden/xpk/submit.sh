#!/usr/bin/env bash
# quickstart_tiny: 9 xpk workloads in 3 waves, then table and report.
#
# usage: bash out/xpk/submit.sh    (stays until the study is done; the same command continues)
#
# Needs kubectl with the credentials of the cluster: xpk asks before it overwrites a workload of the same name, so the script
# looks first. xpk sends usage statistics to Google; that is switched off here, and everywhere by
# `xpk config set send-telemetry false`.
set -euo pipefail
export TELEMETRY_ENABLED=false

# Returns when all of these JobSets are complete: await NAME...
await() {
  local states
  while :; do
    states=$(kubectl get jobset "$@" --no-headers \
      --output=custom-columns=NAME:.metadata.name,STATE:.status.terminalState)
    if grep -q ' Failed *$' <<<"$states"; then
      echo "failed for good:" >&2
      grep ' Failed *$' <<<"$states" >&2
      echo "Look at its log. To try again: kubectl delete jobset NAME, and this script." >&2
      exit 1
    fi
    grep -qv ' Completed *$' <<<"$states" || return 0
    sleep 30
  done
}

# create NAME RUNS
create() {
  kubectl get jobset "$1" >/dev/null 2>&1 && return
  xpk workload create --workload="$1" --cluster=pod \
    --project=lab \
    --zone=us-east5-a \
    --priority=high \
    --tpu-type=v5p-4x4x4 --docker-image=REGISTRY/elastic_jax:1 \
    --env='A=b c' \
    --max-restarts=3 --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=120 \
    --command='python -m elastic_jax.run --config=configs/quickstart.py:tiny '"'"'--config.align.objective={'"'"'"'"'"'"'"'"'name'"'"'"'"'"'"'"'"': '"'"'"'"'"'"'"'"'dpo'"'"'"'"'"'"'"'"', '"'"'"'"'"'"'"'"'beta'"'"'"'"'"'"'"'"': 0.1}'"'"' --workdir=gs://bucket/runs/quickstart --platform=tpu --distributed=auto'" --only=$2"
}

# wave 0
create ej-pretrain-s1-bb2bdd08fa pretrain-s1-b91f4a7e3d60
await ej-pretrain-s1-bb2bdd08fa

# wave 1
create ej-align-s0-f83ebf7bf0 align-s0-5f62e7c09ab1
create ej-align-s1-85966034d1 align-s1-e6380fa4c1d7
create ej-control-s0-914517db54 control-s0-94b8f0d7a316
create ej-control-s1-8f91f978e9 control-s1-2d7c05b8e9f4
await ej-align-s0-f83ebf7bf0 ej-align-s1-85966034d1 ej-control-s0-914517db54 ej-control-s1-8f91f978e9

# wave 2
create ej-perturb-s0-a16-65d7f118ce perturb-s0-a16-c7719d04e8f5
create ej-perturb-s0-a32-96a97c53d9 perturb-s0-a32-0b3d58ef62a9
create ej-perturb-s1-a16-2451d8348a perturb-s1-a16-48ce91d7350b
create ej-perturb-s1-a32-dc3970a7ef perturb-s1-a32-f05a6b2d87c3
await ej-perturb-s0-a16-65d7f118ce ej-perturb-s0-a32-96a97c53d9 ej-perturb-s1-a16-2451d8348a ej-perturb-s1-a32-dc3970a7ef

JAX_PLATFORMS=cpu python -m elastic_jax.report --workdir=gs://bucket/runs/quickstart --study=quickstart_tiny
