#!/usr/bin/env bash
# quickstart_tiny: 9 jobs in 3 waves, each after the one before it, then table and report.
#
# usage: bash out/slurm/submit.sh    (in the folder that --config is relative to)
#
# A wave that is queued or running is known by its name and not submitted again.
set -euo pipefail

# The id of a wave, submitted or found: submit NAME SCRIPT [OPTIONS OF sbatch]
submit() {
  local name=$1 script=$2 id
  shift 2
  id=$(squeue --me --noheader --name="$name" --format=%F | sort -u | tail -n 1)
  if [ -z "$id" ]; then
    id=$(sbatch --parsable "$@" "$script")
    id=${id%%;*} # a cluster's name may follow
    echo "$name: submitted as $id" >&2
  else
    echo "$name: is job $id already" >&2
  fi
  echo "$id"
}

after=()
id=$(submit ej-quickstart-tiny-wave-0-b0d6cf99ee out/slurm/wave-0.sbatch "${after[@]}")
after=("--dependency=afterok:$id")
id=$(submit ej-quickstart-tiny-wave-1-89eb5c7d2f out/slurm/wave-1.sbatch "${after[@]}")
after=("--dependency=afterok:$id")
id=$(submit ej-quickstart-tiny-wave-2-6c5a3ce45f out/slurm/wave-2.sbatch "${after[@]}")
after=("--dependency=afterok:$id")
submit ej-quickstart-tiny-collect-fc7b13e628 out/slurm/collect.sbatch "${after[@]}" >/dev/null
