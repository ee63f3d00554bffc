#!/usr/bin/env bash
# quickstart_tiny: 5 JobSets in 3 waves, then table and report.
#
# usage: bash out/jobset/submit.sh    (stays until the last wave is submitted; the same command continues)
#
# Kubernetes knows no order between jobs. A pod that waited for another would hold its accelerators while it waits, and under
# Kueue its quota, which may be what the other is waiting for. So the next wave is submitted when the one before is complete;
# applying a JobSet that is there changes nothing.
set -euo pipefail

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

kubectl apply --filename=out/jobset/wave-0.yaml
await ej-pretrain-s0-and-1-4651988db7

kubectl apply --filename=out/jobset/wave-1.yaml
await ej-align-s0-and-1-51c568fdd3 ej-control-s0-and-1-a425dd9107

kubectl apply --filename=out/jobset/wave-2.yaml
await ej-perturb-s0-a16-and-1-9da861dd76 ej-perturb-s1-a16-and-1-16fccd6094

kubectl apply --filename=out/jobset/collect.yaml
