#!/usr/bin/env bash
# quickstart_tiny: 9 JobSets in 3 waves, then table and report.
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
    states=$(kubectl get jobset "$@" --namespace=elastic --no-headers \
      --output=custom-columns=NAME:.metadata.name,STATE:.status.terminalState)
    if grep -q ' Failed *$' <<<"$states"; then
      echo "failed for good:" >&2
      grep ' Failed *$' <<<"$states" >&2
      echo "Look at its log. To try again: kubectl delete jobset NAME --namespace=elastic, and this script." >&2
      exit 1
    fi
    grep -qv ' Completed *$' <<<"$states" || return 0
    sleep 30
  done
}

kubectl apply --filename=out/jobset/wave-0.yaml
await ej-pretrain-s1-bb2bdd08fa

kubectl apply --filename=out/jobset/wave-1.yaml
await ej-align-s0-f83ebf7bf0 ej-align-s1-85966034d1 ej-control-s0-914517db54 ej-control-s1-8f91f978e9

kubectl apply --filename=out/jobset/wave-2.yaml
await ej-perturb-s0-a16-65d7f118ce ej-perturb-s0-a32-96a97c53d9 ej-perturb-s1-a16-2451d8348a ej-perturb-s1-a32-dc3970a7ef

kubectl apply --filename=out/jobset/collect.yaml
