"""Does a study come out of a real Slurm as it comes out of one process?"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import launches
import pytest
import slurm_cluster
import small_studies

from elastic_jax.launch import manifests, options

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=f"no {', '.join(slurm_cluster.missing())} here"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory):
    """The environment of a running cluster."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def test_the_table_is_that_of_one_process_and_nothing_is_done_twice(slurm: dict[str, str], tmp_path: Path) -> None:
    workdir = tmp_path / "w"
    environment = {**slurm, **{k: v for k, v in small_studies.environment().items() if k not in ("PATH", "SLURM_CONF")}}

    def launch(*words: str) -> str:
        done = subprocess.run(
            [
                sys.executable, "-m", "elastic_jax.launch", f"--config={small_studies.CONFIG}", f"--workdir={workdir}",
                "--backend=slurm", f"--python={sys.executable}", *words,
            ],
            env=environment, cwd=small_studies.ROOT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    first = launch("--submit")
    assert "5 runs, 0 done; 5 jobs in 3 waves to do" in first and first.count(": submitted as ") == 4
    assert "which other machines do not see" in first or "ext4" not in Path("/proc/mounts").read_text()
    script = ["bash", str(workdir / "launch" / "slurm" / "submit.sh")]
    again = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=True).stderr
    queue = subprocess.run(
        ["squeue", "--noheader", "--format=%j", "--sort=j"], env=environment, capture_output=True, text=True
    )
    assert again.count(" already") == 4, again
    assert len(set(queue.stdout.split())) == 4  # three arrays and what collects them
    slurm_cluster.wait(environment, 900)

    logs = "\n".join(path.read_text() for path in sorted((workdir / "launch" / "slurm").glob("*.log")))
    assert (workdir / "report" / "index.html").exists(), logs
    alone = small_studies.shell(tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(tmp_path / "alone"))

    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    second = launch("--submit")
    assert "5 runs, 5 done; 0 jobs in 0 waves to do" in second and "Nothing to submit" in second
    assert not subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True).stdout
    changed = {path for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert not [path for path in changed if path.is_relative_to(workdir / "runs")]
    assert launch("--status").count("  done  ") == 5


def test_the_script_for_one_job_tells_its_processes_who_they_are(slurm: dict[str, str], tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        '#!/usr/bin/env bash\necho "$ELASTIC_PROCESS_ID of $ELASTIC_PROCESS_COUNT at $ELASTIC_COORDINATOR: $*"\n'
    )
    stand_in.chmod(0o755)
    environment = {**slurm, "PATH": f"{tmp_path}:{slurm['PATH']}"}
    script = ["sbatch", "--wait", "--ntasks=2", "--ntasks-per-node=2", f"--output={tmp_path / 'log'}"]
    submitted = [*script, str(small_studies.ROOT / "launch" / "slurm.sbatch"), "--config=a b.py"]
    subprocess.run(submitted, env=environment, capture_output=True, timeout=120, check=True)
    lines = sorted((tmp_path / "log").read_text().splitlines())
    assert [line[:6] for line in lines] == ["0 of 2", "1 of 2"]
    assert len({line[6:] for line in lines}) == 1 and lines[0].endswith("-m elastic_jax.run --config=a b.py")


def test_a_run_that_saved_is_queued_again_and_one_that_failed_stops_its_children(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """With a stand-in for the run that ends with 75 the first time, and with 1 for one of the keys."""
    stand_in = tmp_path / "python"
    fails = launches.MEMBERS[7].key
    stand_in.write_text(
        f'#!/usr/bin/env bash\necho "$SLURM_RESTART_COUNT $*"\n[[ $* != *--only={fails}* ]] || exit 1\n'
        '[ -n "$SLURM_RESTART_COUNT" ] || [[ $* == *report* ]] || exit 75\n'
    )
    stand_in.chmod(0o755)
    example = dataclasses.replace(
        launches.EXAMPLES["slurm_cpu"], options=options.Options(python=str(stand_in)), runs_per_job=1
    )
    launch = dataclasses.replace(launches.launch(example), out=str(tmp_path / "out"))
    script = manifests.render(launch, "slurm").write()
    subprocess.run(["bash", str(script)], env=slurm, capture_output=True, timeout=60, check=True)
    slurm_cluster.wait(slurm, 300)
    logs = {path.stem.rsplit("-", 1)[0] + path.stem[-2:]: path.read_text() for path in (tmp_path / "out").glob("*.log")}
    by_wave = [[text for name, text in logs.items() if name.startswith(wave.name)] for wave in launch.waves]
    (only,) = by_wave[0]
    assert only.count("--only=pretrain-s1") == 2 and "\n1 -m elastic_jax.run" in only
    assert (
        len(by_wave[1]) == 4 and sum(text.count("--only=") for text in by_wave[1]) == 7
    )  # three twice, the failing once
    assert by_wave[2] == [] and not any("report" in text for text in logs.values())
