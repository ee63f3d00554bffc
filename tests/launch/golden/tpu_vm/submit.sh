#!/usr/bin/env bash
# quickstart_tiny: 9 jobs in 3 waves on TPU VMs (v5litepod-16), then table and report.
#
# usage: bash out/tpu_vm/submit.sh    (stays until the study is done, best in tmux; the same command continues)
#
# Every job asks for a slice of its own and stands in Google Cloud's queue until there is one. The run is a container that
# outlives this script; a slice that is taken away is asked for again, and the run continues from its checkpoint.
set -euo pipefail
export CLOUDSDK_CORE_DISABLE_PROMPTS=1 CLOUDSDK_CORE_DISABLE_USAGE_REPORTING=true
where=(--project=lab --zone=us-west4-a)

# On every machine of a slice, with $name and $only set: the container's exit code, once it has ended.
remote=$(
  cat <<'remote'
set -euo pipefail
if ! sudo docker inspect "$name" >/dev/null 2>&1; then
  HF_TOKEN=$(gcloud secrets versions access latest --secret=hf)
  export HF_TOKEN
  sudo --preserve-env=HF_TOKEN docker run --detach --name "$name" --privileged --net=host --stop-timeout=120 \
    --env='A=b c' \
    --env=HF_TOKEN \
    REGISTRY/elastic_jax:1 \
    python -m elastic_jax.run --config=configs/quickstart.py:tiny '--config.align.objective={'"'"'name'"'"': '"'"'dpo'"'"', '"'"'beta'"'"': 0.1}' --workdir=gs://bucket/runs/quickstart --platform=tpu --distributed=auto --only="$only"
fi
code=$(sudo docker wait "$name")
sudo docker logs --tail=50 "$name"
sudo docker rm "$name" >/dev/null
exit "$code"
remote
)

state() {
  gcloud compute tpus queued-resources describe "$1" "${where[@]}" --format='value(state.state)' 2>/dev/null || true
}

release() {
  gcloud compute tpus queued-resources delete "$1" "${where[@]}" --force --quiet
}

# job NAME RUNS: to its end, through preemptions; other failures are tried 3 times more.
job() {
  local name=$1 only=$2 failures=0
  while :; do
    case $(state "$name") in
      "")
        gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
          --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot
        ;;
      ACTIVE)
        if gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="name=$name only=$only; $remote"; then
          release "$name"
          return 0
        fi
        sleep 60 # a preemption shows after the connection broke
        if [ "$(state "$name")" = ACTIVE ]; then
          failures=$((failures + 1))
          if [ "$failures" -gt 3 ]; then
            echo "$name: failed $failures times; its slice is kept" >&2
            return 1
          fi
        fi
        ;;
      FAILED | SUSPENDED) release "$name" ;;
      *) sleep 60 ;;
    esac
  done
}

# Returns when all jobs of a wave have ended; ends the script when one has failed.
finish() {
  local failed=0 pid
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  [ "$failed" = 0 ] || exit 1
}

# wave 0
pids=()
job ej-pretrain-s1-bb2bdd08fa pretrain-s1-b91f4a7e3d60 & pids+=($!)
finish

# wave 1
pids=()
job ej-align-s0-f83ebf7bf0 align-s0-5f62e7c09ab1 & pids+=($!)
job ej-align-s1-85966034d1 align-s1-e6380fa4c1d7 & pids+=($!)
job ej-control-s0-914517db54 control-s0-94b8f0d7a316 & pids+=($!)
job ej-control-s1-8f91f978e9 control-s1-2d7c05b8e9f4 & pids+=($!)
finish

# wave 2
pids=()
job ej-perturb-s0-a16-65d7f118ce perturb-s0-a16-c7719d04e8f5 & pids+=($!)
job ej-perturb-s0-a32-96a97c53d9 perturb-s0-a32-0b3d58ef62a9 & pids+=($!)
job ej-perturb-s1-a16-2451d8348a perturb-s1-a16-48ce91d7350b & pids+=($!)
job ej-perturb-s1-a32-dc3970a7ef perturb-s1-a32-f05a6b2d87c3 & pids+=($!)
finish

JAX_PLATFORMS=cpu python -m elastic_jax.report --workdir=gs://bucket/runs/quickstart --study=quickstart_tiny
