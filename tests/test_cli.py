"""What do the commands print, and how do they end?"""

import re
from pathlib import Path

import pytest

from elastic_jax import cli
from elastic_jax.errors import UserError

SMALL = str(Path(__file__).parent / "study" / "small.py")
FLAGS = [f"--config={SMALL}", "--config.pretrain.tokens=1024"]


def guarded(command, argv: list[str]) -> int:
    return cli.guarded(command, cli.parser("About.", "run", config=True, workdir=True), argv)


def test_overrides_and_flags_are_told_apart() -> None:
    seen = []
    words = ["--config=a.py:x=1", "--workdir", "w", "--config.align.optim.lr=1e-5", "--config.name=a=b"]
    assert guarded(seen.append, words) == 0
    (args,) = seen
    assert args.config == "a.py:x=1" and args.workdir == "w"
    assert args.overrides == {"align.optim.lr": "1e-5", "name": "a=b"}


def test_a_mistake_is_its_message_and_exit_code_2(capsys: pytest.CaptureFixture) -> None:
    def fails(args: cli.Arguments) -> None:
        raise UserError("field: wrong.")

    assert guarded(fails, ["--config=a.py", "--workdir=w"]) == 2
    assert capsys.readouterr().err == "error: field: wrong.\n"


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture) -> None:
    def interrupted(args: cli.Arguments) -> None:
        raise KeyboardInterrupt

    assert guarded(interrupted, ["--config=a.py", "--workdir=w"]) == 130
    assert "same command continues" in capsys.readouterr().err


def test_an_error_in_the_code_keeps_its_traceback() -> None:
    def broken(args: cli.Arguments) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(broken, ["--config=a.py", "--workdir=w"])


def test_help_is_printed(capsys: pytest.CaptureFixture) -> None:
    from elastic_jax.run import main

    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "--config.FIELD=VALUE" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "dry_run"])
def test_the_plan_shows_runs_cost_and_memory_and_trains_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from elastic_jax.plan import main as plan
    from elastic_jax.run import main as run

    if command == "plan":
        assert plan(FLAGS) == 0
    else:
        assert run([*FLAGS, f"--workdir={tmp_path / 'w'}", "--dry_run"]) == 0
        assert not list((tmp_path / "w" / "runs").iterdir())
        assert not (tmp_path / "w" / "measures.parquet").exists()
    out = capsys.readouterr().out
    assert re.search(r"plan of small: [\d,]+ parameters, mesh data=8, fsdp=1, tensor=1", out)
    assert re.search(r"pretrain +1 +4 +1\.0k +[\d.]+ [KM]iB +[\d.]+ [KMG]?i?B +0\.\d+", out)
    assert re.search(r"perturb +3 +9 +2\.3k ", out)  # three runs of 3 updates of 8 x 32 tokens
    assert re.search(r"estimated time: \d+:\d\d ", out)
    runs = re.findall(r"(\S+)-[0-9a-f]{12}  (\d+) updates of 8, kept at ([\d, ]+) examples", out)
    assert [(name, int(updates)) for name, updates, _ in runs] == [
        ("pretrain-s0", 4),
        ("control-s0", 3),
        ("align-s0", 4),
        ("perturb-s0-a16", 3),
        ("perturb-s0-a32", 3),
    ]


@pytest.mark.parametrize("flag", ["--platform=gpu", "--distributed=auto"])
def test_a_plan_for_a_topology_takes_no_devices_of_here(flag: str, capsys: pytest.CaptureFixture) -> None:
    from elastic_jax.plan import main as plan

    assert plan([*FLAGS, "--topology=v5e:2x2", flag]) == 2
    assert f"{flag} has no effect with --topology=v5e:2x2" in capsys.readouterr().err


def test_the_jobs_of_a_launch_do_not_inherit_its_platform(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from elastic_jax.launch.__main__ import main as launch

    # sbatch hands over the environment: JAX_PLATFORMS=cpu in it would send every job to the CPU of its machine.
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    flags = [*FLAGS, f"--workdir={tmp_path / 'w'}", "--backend=slurm", "--topology=h100:8", "--dry_run"]
    assert launch(flags) == 0, capsys.readouterr().err
    assert "JAX_PLATFORMS" not in os.environ


def test_only_and_stage_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from elastic_jax.run import main as run

    assert run([*FLAGS, f"--workdir={tmp_path / 'w'}", "--only=x", "--stage=align"]) == 2
    assert capsys.readouterr().err == "error: --only and --stage: give one of them.\n"


@pytest.mark.parametrize("only", [False, True])
def test_out_of_memory_names_the_largest_rows_and_the_cure(
    only: bool, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    from elastic_jax import config
    from elastic_jax.run import main as run
    from elastic_jax.study import Study

    flags = [*FLAGS, f"--workdir={tmp_path / 'w'}"]
    study = Study(config.load(SMALL, {"pretrain.tokens": "1024"}), tmp_path / "w")
    key = next(one.key for one in study.runs if one.stage == "pretrain")
    asked = []

    def full(self: Study, runs: list, *args: object, **kwargs: object) -> None:
        asked.extend(one.key for one in runs)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes.\nmore")

    monkeypatch.setattr(Study, "_train", full)
    assert run([*flags, f"--only={key}"] if only else flags) == 2
    assert asked == ([key] if only else [one.key for one in study.runs])
    message = capsys.readouterr().err
    stages = ["pretrain"] if only else ["pretrain", "align", "perturb"]
    needs = r"{} needs about [\d.]+ [KM]iB of a device \(.+\); largest: (\w[\w ]+ [\d.]+ [KM]iB(, )?)+\."
    lines = [
        r"error: out of device memory\. RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes\.",
        *(needs.format(stage) for stage in stages),
        re.escape(cli.OUT_OF_MEMORY),
    ]
    assert re.fullmatch("\n".join(lines) + "\n", message), message


def test_status_counts_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from elastic_jax.run import main as run
    from elastic_jax.status import main as status

    assert run([*FLAGS, f"--workdir={tmp_path / 'w'}", "--stage=pretrain", "--config.measures.per_octave=1"]) == 0
    spent = r"compiling [\d.]+.* \([\d.]+ s in all"
    assert re.search(f"seconds: .*{spent}", capsys.readouterr().out)
    assert re.search(f"<dt>seconds</dt><dd>.*{spent}", (tmp_path / "w" / "report" / "index.html").read_text())
    assert status([f"--workdir={tmp_path / 'w'}"]) == 0
    out = capsys.readouterr().out
    assert re.search(f"seconds: .*{spent}", out)
    assert re.search(r"done +4 of 4 +updates  pretrain-s0-[0-9a-f]{12}  [\d.]+ s", out)
    assert re.search(r"open +0 of 3 +updates  control-s0", out)
    assert "1 of 5 runs done" in out
