"""What does `python -m elastic_jax.launch` print, write and refuse?"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import launches
import pytest

from elastic_jax.errors import UserError
from elastic_jax.launch import machines, runs, submit
from elastic_jax.launch.__main__ import main

SMALL = str(Path(__file__).resolve().parents[1] / "study" / "small.py")
BUCKET = "--workdir=gs://bucket/runs/small"


@pytest.fixture
def command(capsys: pytest.CaptureFixture):
    """Runs the command on the study of the launches; returns its output and its messages."""

    def run(*words: str, code: int = 0, collected: bool = False, members=launches.MEMBERS) -> tuple[str, str]:
        with mock.patch.object(runs, "find", return_value=runs.Found(members, collected)):
            assert main([f"--config={SMALL}", *words]) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return captured.out, captured.err

    return run


JOBSET = ["--backend=jobset", BUCKET, "--image=I", "--topology=v5e:4x4"]

REFUSED = {
    "unknown backend": (["--backend=slrum", BUCKET], ["--backend=slrum: no such backend", "Closest: slurm", "tpu_vm"]),
    "unknown topology": ([*JOBSET[:3], "--topology=v5e:3x3"], ["--topology=v5e:3x3", "Nearest: v5e:2x2"]),
    "unknown device": ([*JOBSET[:3], "--topology=v9:4x4"], ["--topology=v9:4x4: no such device"]),
    "simulated devices": ([*JOBSET[:3], "--topology=cpu:8"], ["--topology=cpu:8", "leave --topology out"]),
    "half a machine": ([*JOBSET[:3], "--topology=h100:9"], ["do not fill machines of 8", "h100:16"]),
    "prefix too long": ([*JOBSET, "--prefix=" + "a" * 27], ["--prefix=aaaa", "at most 26"]),
    "local folder": (["--backend=jobset", "--workdir=runs/x", "--image=I"], ["do not see the disk", "gs://BUCKET/x", "--claim"]),
    "local folder, no claim": (["--backend=tpu_vm", "--workdir=runs/x", "--image=I", "--zone=z"], ["gs://BUCKET/x,."]),
    "claim of a bucket": ([*JOBSET, "--claim=c"], ["--claim=c has no meaning"]),
    "missing image": (["--backend=jobset", BUCKET], ["needs --image", "launch/Dockerfile"]),
    "foreign option": ([*JOBSET, "--partition=gpu"], ["--partition has no meaning for --backend=jobset", "--queue"]),
    "retries of slurm": (["--backend=slurm", "--workdir=/x", "--retries=1"], ["--retries has no meaning"]),
    "negative": ([*JOBSET, "--grace=-1"], ["--grace=-1: expected 1 or more"]),
    "no jobs": ([*JOBSET, "--runs_per_job=0"], ["--runs_per_job=0: expected 1"]),
    "secret value": ([*JOBSET, "--env=HF_TOKEN=hf_123"], ["--env=HF_TOKEN=...", "looks like a secret", "--secret=HF_TOKEN"]),
    "secret reference": ([*JOBSET, "--secret=HF_TOKEN=hf"], ["expected HF_TOKEN=SECRET:KEY"]),
    "secret file": (["--backend=slurm", "--workdir=/x", "--secret=HF_TOKEN=hf"], ["expected HF_TOKEN=/PATH"]),
    "secret of sky": (["--backend=skypilot", BUCKET, "--secret=A=b"], ["expected A=env"]),
    "no pair": ([*JOBSET, "--env=A"], ["--env=A: expected NAME=VALUE"]),
    "pair twice": ([*JOBSET, "--env=A=1", "--env=A=2"], ["A is given twice"]),
    "no name": ([*JOBSET, "--env=a-b=1"], ["--env=a-b=1: expected NAME=VALUE"]),
    "two modes": ([*JOBSET, "--dry_run", "--submit"], ["--dry_run and --submit exclude each other"]),
    "TPU of slurm": (["--backend=slurm", "--workdir=/x", "--topology=v5e:4x4"], ["does not start jobs on TPUs"]),
    "GPU of tpu_vm": (["--backend=tpu_vm", BUCKET, "--image=I", "--zone=z", "--topology=h100:8"], ["only on TPUs"]),
    "topology of local": (["--backend=local", "--workdir=/x", "--topology=h100:8"], ["devices of this machine"]),
    "cpu pods": (["--backend=jobset", BUCKET, "--image=I"], ["needs --cpus"]),
    "two machines of xpk": (["--backend=xpk", BUCKET, "--image=I", "--cluster=c", "--topology=h100:16"], ["--backend=jobset"]),
    "small slice of xpk": (["--backend=xpk", BUCKET, "--image=I", "--cluster=c", "--topology=v5e:2x2"], ["as small as that"]),
    "machine of gcluster": (["--backend=gcluster", BUCKET, "--image=I", "--cluster=c", "--zone=z"], ["needs --compute_type"]),
    "unknown field": ([*JOBSET, "--config.algin.volumes=8"], ["--config.algin.volumes: no such field"]),
    "unknown flag": ([*JOBSET, "--reties=1"], ["--reties=1: no such flag", "--retries"]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_mistakes_are_named_with_what_would_do(command, what):
    words, parts = REFUSED[what]
    out, err = command(*words, code=2)
    assert out == "" and len(err.splitlines()) <= 12
    for part in parts:
        assert part in err


TOOLS = {
    "jobset": ([*JOBSET], "kubectl"),
    "slurm": (["--backend=slurm", "--workdir=/x"], "sbatch, squeue"),
    "skypilot": (["--backend=skypilot", BUCKET], "sky"),
    "tpu_vm": (["--backend=tpu_vm", BUCKET, "--image=I", "--zone=z", "--topology=v5e:2x2"], "gcloud"),
    "xpk": (["--backend=xpk", BUCKET, "--image=I", "--cluster=c", "--topology=v5e:4x4"], "xpk, kubectl"),
}


@pytest.mark.parametrize("backend", TOOLS)
def test_submitting_without_the_tool_says_which(command, backend, monkeypatch, tmp_path):
    words, tools = TOOLS[backend]
    monkeypatch.setenv("PATH", str(tmp_path))
    _, err = command(*words, "--submit", code=2)
    assert f"--submit: {tools} not found" in err and "--dry_run" in err


def test_a_dry_run_prints_what_would_be_written_and_writes_nothing(command, tmp_path):
    words = [
        "--backend=slurm",
        f"--workdir={tmp_path / 'w'}",
        "--config.align.volumes=(16,)",
        f"--out={tmp_path / 'out'}",
    ]
    printed, _ = command(*words, "--dry_run")
    assert not (tmp_path / "out").exists() and not (tmp_path / "w").exists()
    out, _ = command(*words)
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"wave-0.sbatch", "wave-1.sbatch", "wave-2.sbatch", "collect.sbatch", "submit.sh"}
    shown = "\n".join(
        f"==> {tmp_path / 'out' / name} <==\n{written[name]}"
        for name in ("wave-0.sbatch", "wave-1.sbatch", "wave-2.sbatch", "collect.sbatch", "submit.sh")
    )
    assert printed == shown
    assert (
        "'--config.align.volumes=(16,)'" in printed and f"To submit them: bash {tmp_path / 'out' / 'submit.sh'}" in out
    )


def test_status_shows_every_run_and_the_engine_s_own_commands(command, tmp_path):
    out, _ = command(*JOBSET, "--status")
    lines = out.splitlines()
    assert lines[0].split() == ["wave", "state", "updates", "run", "job"]
    assert lines[1].split()[:6] == ["0", "done", "8", "of", "8", "pretrain-s0-1e0a6d3b52c4"]
    assert [line for line in lines if "align-s0" in line and "2 of 4" in line and "ej-align-s0-" in line]
    assert "10 runs, 1 done; 9 jobs in 3 waves to do" in out and "kubectl get jobsets" in out


def test_status_names_the_tasks_of_a_slurm_array(command, tmp_path):
    out, _ = command("--backend=slurm", f"--workdir={tmp_path}", "--status", "--runs_per_job=2")
    (line,) = [line for line in out.splitlines() if "control-s1-" in line]
    assert line.split()[-1].startswith("ej-small-wave-1-") and line.endswith("_1")
    assert "squeue --me --name=ej-small-wave-0-" in out


def test_nothing_is_submitted_of_a_study_that_is_done(command, tmp_path):
    done = tuple(dataclasses.replace(member, done=True) for member in launches.MEMBERS)
    with mock.patch.object(submit, "check_tools"), mock.patch.object(submit, "submit") as submitted:
        out, _ = command("--backend=slurm", f"--workdir={tmp_path}", "--submit", members=done, collected=True)
    assert "Nothing to submit" in out and not submitted.called


def test_submitting_runs_the_script_and_reports_its_failure(command, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for tool in ("sbatch", "squeue"):
        (tmp_path / "bin" / tool).write_text(f"#!/bin/sh\n[ {tool} = squeue ] || exit 3\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    _, err = command("--backend=slurm", f"--workdir={tmp_path / 'w'}", "--submit", code=2)
    assert "submit.sh ended with exit code 3" in err and "the same command continues" in err


def test_a_folder_on_the_disk_of_this_machine_earns_a_warning(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("rootfs / ext4 rw 0 0\nserver:/x /shared nfs4 rw 0 0\nscratch /shared/scratch xfs rw 0 0\n")
    assert "on / (ext4)" in submit.warning("/home/x", "slurm", str(mounts))
    assert "on /shared/scratch (xfs)" in submit.warning("/shared/scratch/x", "slurm", str(mounts))
    assert submit.warning("/shared/x", "slurm", str(mounts)) == ""
    assert submit.warning("/home/x", "local", str(mounts)) == "" == submit.warning("gs://b/x", "slurm", str(mounts))


@pytest.mark.parametrize(
    ("topology", "hosts", "per_host", "tpu", "vms"),
    [
        ("v5e:1x1", 1, 1, "v5litepod-1", 1),
        ("v5e:2x2", 1, 4, "v5litepod-4", 1),
        ("v5e:2x4", 2, 4, "v5litepod-8", 1),
        ("v5e:16x16", 64, 4, "v5litepod-256", 64),
        ("v5p:2x2x1", 1, 4, "v5p-8", 1),
        ("v5p:4x4x4", 16, 4, "v5p-128", 16),
        ("v6e:4x4", 4, 4, "v6e-16", 4),
        ("v4:2x2x2", 2, 4, "v4-16", 2),
    ],
)
def test_a_slice_has_the_machines_that_google_cloud_gives_it(topology, hosts, per_host, tpu, vms):
    found = machines.machine(topology)
    assert (found.hosts, found.per_host, found.tpu_type, found.tpu_vms) == (hosts, per_host, tpu, vms)


def test_slices_agree_with_xpk():
    """Its own table of machines, chips per machine and accelerators."""
    pytest.importorskip("xpk.core.system_characteristics")
    from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics as KNOWN

    from elastic_jax.parallel import topology

    seen = 0
    for chip in ("v4", "v5e", "v5p", "v6e"):
        for shape in topology.slices(chip):
            found = machines.machine(f"{chip}:{'x'.join(map(str, shape))}")
            theirs = KNOWN.get(f"{machines._TPU_NAMES[chip]}-{found.shape}")
            if theirs is None:
                with pytest.raises(UserError, match="xpk has no slice"):
                    _ = found.xpk_flags
            else:
                seen += 1
                ours = (found.hosts, found.per_host, found.gke_accelerator)
                assert ours == (theirs.vms_per_slice, theirs.chips_per_vm, theirs.gke_accelerator), found
                assert found.xpk_flags == [f"--tpu-type={machines._TPU_NAMES[chip]}-{found.shape}"]
    assert seen > 50


def test_runs_are_those_of_the_study_whatever_its_mesh(tmp_path):
    """A mesh of 256 devices is planned here, where there are eight; a run that is done is seen to be."""
    from elastic_jax import config as config_lib
    from elastic_jax.study import Study

    config = config_lib.load(SMALL)
    study = Study(config, tmp_path / "w")
    config.mesh.fsdp, config.mesh.tensor = 64, 4
    found = runs.find(config, str(tmp_path / "w"))
    assert [member.key for member in found.members] == [run.key for run in study.runs]
    assert found.done == 0 and not found.collected
    first = study.runs[0]
    study.workdir.write_run(
        first.key,
        "DONE",
        dict(checkpoints=sorted(first.checkpoints), measured={study.protocol.digest: sorted(first.measures)}),
    )
    again = runs.find(config, str(tmp_path / "w"))
    assert [member.done for member in again.members] == [True, False, False, False, False]
    assert config.mesh.fsdp == 64


def test_a_study_is_collected_when_its_report_is_younger_than_its_runs(tmp_path):
    from elastic_jax import config as config_lib
    from elastic_jax.study import Study

    config = config_lib.load(SMALL)
    study = Study(config, tmp_path)
    for run in study.runs:
        measured = {study.protocol.digest: sorted(run.measures)}
        study.workdir.write_run(run.key, "DONE", dict(checkpoints=sorted(run.checkpoints), measured=measured))
    found = runs.find(config, str(tmp_path))
    assert found.done == 5 and not found.collected
    (tmp_path / "report").mkdir()
    for path in (tmp_path / "measures.parquet", tmp_path / "report" / "index.html"):
        path.touch()
    assert runs.find(config, str(tmp_path)).collected
    later = (tmp_path / "measures.parquet").stat().st_mtime + 10
    os.utime(tmp_path / "runs" / study.runs[-1].key / "DONE", (later, later))
    assert not runs.find(config, str(tmp_path)).collected


def test_help_names_every_backend():
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0


def test_the_command_is_found_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "elastic_jax.launch", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "queued resource per job" in done.stdout
