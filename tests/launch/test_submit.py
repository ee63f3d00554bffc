"""Do the scripts order the waves, and does the second submission change nothing? The engines are stand-ins that keep a list."""

import os
import re
import stat
import subprocess
from pathlib import Path

import launches
import pytest

from elastic_jax.launch import manifests

# Every tool writes down how it was called. Jobs are files in $STATE, and complete as soon as they exist.
TOOLS = {
    "kubectl": r"""
case "$1 $2" in
  "apply "*) sed -n 's/^  name: //p' "${2#--filename=}" | while read -r name; do echo Completed >>"$STATE/$name"; done ;;
  "get jobset")
    for word in "${@:3}"; do
      case $word in --*) ;; *) [ -e "$STATE/$word" ] || exit 1; echo "$word   $(head -n 1 "$STATE/$word")" ;; esac
    done ;;
esac""",
    "xpk": 'for word in "$@"; do case $word in --workload=*) echo Completed >>"$STATE/${word#*=}" ;; esac; done',
    "gcluster": 'for word in "$@"; do case $word in --name=*) echo Completed >>"$STATE/${word#*=}" ;; esac; done',
    "sky": """
if [ "$2" = queue ]; then for file in "$STATE"/*; do echo "\\"job_name\\": \\"${file##*/}\\""; done; fi
if [ "$2" = launch ]; then for word in "$@"; do case $word in --name=*) touch "$STATE/${word#*=}" ;; esac; done; fi""",
    "squeue": 'for word in "$@"; do case $word in --name=*) cat "$STATE/${word#*=}" 2>/dev/null || true ;; esac; done',
    "sbatch": r"""
name=$(sed -n 's/^#SBATCH --job-name=//p' "${@: -1}")
echo "$$" >"$STATE/$name"
echo "$$;cluster" """,
    "gcloud": r"""
case "$*" in
  *describe*) cat "$STATE/$5" 2>/dev/null ;;
  *"queued-resources create"*) echo ACTIVE >"$STATE/$5" ;;
  *"queued-resources delete"*) rm "$STATE/$5" ;;
esac""",
    "python": "",
    "sleep": "",
}


@pytest.fixture
def engine(tmp_path: Path):
    """Runs the script of an example and returns the calls of tools, without options, in their order."""
    tools, state, log = tmp_path / "bin", tmp_path / "state", tmp_path / "log"
    for folder in (tools, state):
        folder.mkdir()
    for name, body in TOOLS.items():
        path = tools / name
        # One write of one line, since jobs of a wave run at the same time.
        path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$(echo "{name} $*" | tr "\\n" " ")" >>"$LOG"\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "STATE": str(state), "LOG": str(log)}

    def run(name: str, code: int = 0) -> list[str]:
        example = launches.EXAMPLES[name]
        manifests.Manifest(launches.manifest(name).files, str(tmp_path / "out" / example.backend)).write()
        log.write_text("")
        done = subprocess.run(
            ["bash", f"out/{example.backend}/submit.sh"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        run.err = done.stderr
        return [line.strip() for line in log.read_text().splitlines()]

    run.state = state
    return run


def order(calls: list[str], pattern: str) -> list[str]:
    return [found[1] for call in calls if (found := re.search(pattern, call))]


def waves(name: str) -> list[list[str]]:
    return [[job.name for job in wave.jobs] for wave in launches.launch(launches.EXAMPLES[name]).waves]


def test_jobsets_are_applied_wave_by_wave_and_the_report_last(engine):
    calls = engine("jobset")
    assert order(calls, r"kubectl apply --filename=out/jobset/(\S+)") == [
        "wave-0.yaml", "wave-1.yaml", "wave-2.yaml", "collect.yaml",
    ]  # fmt: skip
    asked = [order([call], r"get jobset (.*?) --")[0].split() for call in calls if "get jobset" in call]
    assert asked == waves("jobset")


def test_a_jobset_that_failed_stops_the_waves(engine):
    engine.state.joinpath(waves("jobset")[1][0]).write_text("Failed\n")
    calls = engine("jobset", code=1)
    assert order(calls, r"--filename=out/jobset/(\S+)") == ["wave-0.yaml", "wave-1.yaml"]
    assert waves("jobset")[1][0] in engine.err and "kubectl delete jobset" in engine.err


@pytest.mark.parametrize(
    ("name", "create"), [("xpk", r"xpk workload create --workload=(\S+)"), ("gcluster", r"job submit --name=(\S+)")]
)
def test_front_ends_create_each_workload_once(engine, name, create):
    first = engine(name)
    assert order(first, create) == [job for wave in waves(name) for job in wave]
    # Nothing of a wave is created before the one before it was seen to be complete.
    for earlier, later in zip(waves(name), waves(name)[1:], strict=False):
        seen = max(i for i, call in enumerate(first) if "--output=" in call and earlier[0] in call)
        assert seen < min(i for i, call in enumerate(first) if re.search(create, call) and later[0] in call)
    assert "elastic_jax.report" in first[-1]
    assert order(engine(name), create) == []


@pytest.mark.parametrize("name", ["slurm", "slurm_cpu"])
def test_slurm_waves_depend_on_the_ones_before(engine, name):
    first = engine(name)
    submitted = [call for call in first if call.startswith("sbatch")]
    files = order(submitted, r"out/slurm/(\S+)$")
    assert files == ["wave-0.sbatch", "wave-1.sbatch", "wave-2.sbatch", "collect.sbatch"]
    ids = [
        engine.state.joinpath(wave.name).read_text().strip() for wave in launches.launch(launches.EXAMPLES[name]).waves
    ]
    assert order(submitted, r"--dependency=afterok:(\d+) ") == ids
    assert "--dependency" not in submitted[0]
    again = engine(name)
    assert not [call for call in again if call.startswith("sbatch")]


def test_a_slurm_wave_that_is_left_depends_on_the_one_that_runs(engine):
    """The first wave is still in the queue, the others were cancelled."""
    engine("slurm")
    first, *others = [wave.name for wave in launches.launch(launches.EXAMPLES["slurm"]).waves]
    for name in others:
        engine.state.joinpath(name).unlink()
    submitted = [call for call in engine("slurm") if call.startswith("sbatch")]
    assert order(submitted, r"out/slurm/(\S+)$") == ["wave-1.sbatch", "wave-2.sbatch"]
    assert order(submitted, r"afterok:(\d+)")[0] == engine.state.joinpath(first).read_text().strip()


@pytest.mark.parametrize("name", ["skypilot", "skypilot_pod"])
def test_a_pipeline_is_launched_once(engine, name):
    assert len([call for call in engine(name) if call.startswith("sky jobs launch")]) == 1
    assert not [call for call in engine(name) if call.startswith("sky jobs launch")]


def test_slices_are_asked_for_used_and_given_back(engine):
    calls = engine("tpu_vm")
    for action in ("queued-resources create", "tpu-vm ssh", "queued-resources delete"):
        done = order(calls, rf"{action} (\S+)")
        assert sorted(done) == sorted(job for wave in waves("tpu_vm") for job in wave)
        places = {job: done.index(job) for job in done}
        for earlier, later in zip(waves("tpu_vm"), waves("tpu_vm")[1:], strict=False):
            assert max(places[job] for job in earlier) < min(places[job] for job in later)
    assert not list(engine.state.iterdir())


def test_local_processes_run_wave_by_wave(engine):
    calls = engine("local")
    launch = launches.launch(launches.EXAMPLES["local"])
    done = order(calls, r"--only=(\S+)")
    assert sorted(done) == sorted(key for wave in launch.waves for job in wave.jobs for key in job.keys)
    place = {key: number for number, key in enumerate(done)}
    for member in launches.MEMBERS:
        if member.parent in place:
            assert place[member.parent] < place[member.key]
    assert "elastic_jax.report" in calls[-1]
    assert all("--config.align.objective={'name': 'dpo', 'beta': 0.1}" in call for call in calls[:-1])
