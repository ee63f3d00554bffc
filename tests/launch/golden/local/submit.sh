#!/usr/bin/env bash
# quickstart_tiny: 10 runs as processes on this machine, 2 at a time.
#
# usage: bash out/local/submit.sh    (in the folder that --config is relative to; the same command continues)
set -euo pipefail
export JAX_PLATFORMS=cpu

# One process for each line; a wave whose processes did not all succeed is the last.
wave() {
  xargs -P 2 -I RUN_KEYS python -m elastic_jax.run --config=configs/quickstart.py:tiny '--config.align.objective={'"'"'name'"'"': '"'"'dpo'"'"', '"'"'beta'"'"': 0.1}' --workdir=/shared/runs/quickstart --only=RUN_KEYS
}

wave <<'runs'
pretrain-s1-b91f4a7e3d60
runs

wave <<'runs'
align-s0-5f62e7c09ab1
align-s1-e6380fa4c1d7
control-s0-94b8f0d7a316
control-s1-2d7c05b8e9f4
runs

wave <<'runs'
perturb-s0-a16-c7719d04e8f5
perturb-s0-a32-0b3d58ef62a9
perturb-s1-a16-48ce91d7350b
perturb-s1-a32-f05a6b2d87c3
runs

python -m elastic_jax.report --workdir=/shared/runs/quickstart --study=quickstart_tiny
