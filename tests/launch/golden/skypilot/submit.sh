#!/usr/bin/env bash
# quickstart_tiny: a SkyPilot pipeline of 3 waves, then table and report.
#
# usage: bash out/skypilot/submit.sh    (in the repository: SkyPilot copies it to the machines)
#
# Each job of a wave has a machine of its own; the next wave starts when all of them are done.
# SkyPilot sends usage statistics; that is switched off here.
set -euo pipefail
export SKYPILOT_DISABLE_USAGE_COLLECTION=1

queue=$(sky jobs queue --skip-finished --output=json || true) # it fails where nothing was ever launched
if grep -q '"job_name": "ej-quickstart-tiny-collect-313c2b2fe2"' <<<"$queue"; then
  echo "ej-quickstart-tiny-collect-313c2b2fe2: is running already" >&2
  exit 0
fi
sky jobs launch --yes --detach-run --name=ej-quickstart-tiny-collect-313c2b2fe2 \
  --secret=HF_TOKEN \
  out/skypilot/pipeline.yaml
