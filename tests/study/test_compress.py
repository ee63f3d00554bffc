"""Does the command compress with a checkpoint of a study, and another process give the bytes back?"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_studies

from elastic_jax import compress
from elastic_jax.analysis import compressors, table
from elastic_jax.compressor import studies
from elastic_jax.data import heldout
from elastic_jax.errors import UserError
from elastic_jax.study import points
from elastic_jax.study.workdir import Workdir

ROOT = Path(__file__).resolve().parents[2]


def key(workdir, stage):
    return next(run["run"] for run in Workdir(workdir).study()["runs"] if run["stage"] == stage)


@pytest.fixture(scope="module")
def point(finished):
    return points.find(finished, key(finished, "pretrain"))


@pytest.fixture
def command(finished, tmp_path, capsys):
    """The command in this process, for the pre-training run: its exit code and what it said."""

    def run(*words, file="text", out="out", **given):
        flags = dict(workdir=finished, run=key(finished, "pretrain"), file=tmp_path / file, out=tmp_path / out) | given
        capsys.readouterr()
        code = compress.main([*(f"--{name}={value}" for name, value in flags.items() if value is not None), *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_heldout_text_takes_the_bits_that_were_measured(point, finished):
    """Language modelling is compression: what the measures call bits per token is what the file consists of."""
    data = point.study.data
    rows = small_studies.table(finished)
    for role in ("pretrain", "align"):
        text = heldout.text(data, role)
        lines = text.decode().splitlines()
        assert len(lines) == data.heldout[role].rows
        found = studies.codec_of(point).compress(text)
        assert found.escaped == 0 and found.tokens == sum(len(line.split()) + 1 for line in lines)
        measured = rows[(rows.run == point.run.key) & (rows.updates == point.updates) & (rows.split == role)]
        bits = measured[measured.measure == "bits_per_token"].value.item() * found.tokens
        assert found.bits == pytest.approx(bits, rel=2e-3)
        assert found.words <= bits / 8 * 1.01 + 16


def test_sizes_side_by_side(point):
    found = studies.compare(point).set_index("compressor")
    name = f"{point.run.key}, update {point.updates}"
    assert found.loc[name, "model_bytes"] == 4 * point.study.model.size
    assert {"gzip -9", "xz -9e"} <= set(found.index) and (found.bits_per_byte > 0).all()
    with pytest.raises(UserError, match="held-out texts of 'pretrian'.*pretrain"):
        heldout.text(point.study.data, "pretrian")


def test_a_recorded_config_is_the_one_that_ran(finished, point):
    recorded = json.loads((finished / "study.json").read_text())["studies"]["small"]
    assert point.study.fingerprint == recorded["fingerprint"]
    assert [run.key for run in point.study.runs] == [run["run"] for run in recorded["runs"]]


def test_another_process_gives_the_bytes_back(command, point, tmp_path):
    data = heldout.text(point.study.data) * 4 + b"unheard words \xff\n"
    (tmp_path / "text").write_bytes(data)
    code, said = command("--compare")
    assert code == 0 and "parameters" in said and "gzip -9" in said and "for 15 bytes that are no tokens" in said, said
    arguments = [f"--workdir={point.study.workdir.path}", f"--file={tmp_path / 'out'}", "--decompress"]

    def elsewhere(out, **environ):
        words = [sys.executable, "-m", "elastic_jax.compress", *arguments, f"--out={tmp_path / out}"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        return subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)

    done = elsewhere("back")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == data
    # On a machine with another number of devices it may not be possible. Then it is said, and nothing is written.
    done = elsewhere("other", XLA_FLAGS="--xla_force_host_platform_device_count=1")
    if done.returncode == 0:
        assert (tmp_path / "other").read_bytes() == data
    else:
        assert done.returncode == 2 and "are not those that the file was written with" in done.stderr
        assert not (tmp_path / "other").exists()


def test_another_checkpoint_is_refused(command, finished, tmp_path):
    (tmp_path / "text").write_text("the film was good\n")
    assert command()[0] == 0
    code, said = command("--decompress", file="out", out="back", run=key(finished, "align"))
    assert code == 2 and f"was written with {key(finished, 'pretrain')}, update 8" in said
    assert not (tmp_path / "back").exists()


MISTAKES = {
    "no file": (dict(file="/nowhere/x"), (), "--file=/nowhere/x: no such file"),
    "a folder": (dict(file="."), (), "this is a folder"),
    "there already": (dict(out="."), (), "this file is there already"),
    "no run": (dict(run=None), (), "--run=KEY: which model"),
    "unknown run": (dict(run="pretrain-s9"), (), "no such run in small. Closest: pretrain-s0"),
    "unknown updates": (dict(updates=3), (), "--updates=3: pretrain-s0"),
    "not a number": (dict(updates="last"), (), "--updates"),
    "lanes": (dict(lanes=0), (), "--lanes=0: expected 1 or more"),
    "not ours": ({}, ("--decompress",), "no file that python -m elastic_jax.compress wrote"),
    "ignored": (dict(lanes=3), ("--decompress",), "--lanes has no effect with --decompress"),
    "no study": (dict(study="large"), (), "--study=large: no such study"),
    "no workdir": (dict(workdir="/nowhere/w"), (), "no study here"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said(name, command, tmp_path):
    (tmp_path / "text").write_text("the film was good\n")
    given, words, message = MISTAKES[name]
    try:
        code, said = command(*words, **given)
    except SystemExit as end:  # argparse's own
        assert end.code == 2
        return
    assert code == 2 and message in said and "Traceback" not in said, said


def test_a_run_without_a_checkpoint_and_a_damaged_one(copied, finished, tmp_path):
    run = key(finished, "pretrain")
    weights = next((copied / "runs" / run / "checkpoints").glob("*/params/d/*"))
    weights.write_bytes(np.random.default_rng(0).bytes(weights.stat().st_size))
    with pytest.raises(UserError, match=f"cannot be read.*Run --only={run} first"):
        points.find(copied, run).params()
    (copied / "runs" / run / "DONE").unlink()
    with pytest.raises(UserError, match=f"--run={run}: it has no finished checkpoint"):
        points.find(copied, run)


def test_the_theory_of_a_study_reads_its_training_sets(finished, point, capsys):
    from elastic_jax.theory.__main__ import main

    assert main([f"--workdir={finished}", "--depth=64", "--json"]) == 0
    lengths = next(iter(json.loads(capsys.readouterr().out).values()))
    for role, prepared in point.study.data.train.items():
        deepest = [row for row in lengths if row["set"] == role][-1]
        # Every row is a whole document here: its tokens and <eos>, all of them targets of the loss.
        assert deepest["paths"] == prepared.rows and deepest["eos_mass"] == 1.0
        tokens, mask = (prepared.arrays()[name] for name in ("tokens", "mask"))
        rows = {tuple(row[1:][counted != 0].tolist()) for row, counted in zip(tokens, mask, strict=True)}
        assert deepest["leaves"] == len(rows)


def test_the_report_has_models_beside_other_compressors(finished, point):
    study = table.select(table.load(finished / "measures.parquet"))
    found = compressors.beside_models(study).set_index("compressor")
    text = heldout.text(point.study.data)
    for name, compress_text in compressors.general().items():
        assert (
            found.loc[name, "mean"] == pytest.approx(8 * len(compress_text(text)) / len(text))
            and found.loc[name, "n"] == 0
        )
    coded = studies.codec_of(point).compress(text)
    assert found.loc["model, pre-trained", "mean"] == pytest.approx(coded.bits / len(text), rel=2e-3)
    assert found.loc["model, aligned", "model"] == study.models[0].name and found.loc["model, aligned", "n"] == 1
    page = (finished / "report" / "index.html").read_text()
    assert "Held-out pre-training text, compressed" in page and "model, perturbed" in page
    # A table of an earlier version says nothing about other compressors, and gets no such section.
    without = dataclasses.replace(study, rows=study.rows[study.rows.stage != "data"])
    assert not len(compressors.beside_models(without))
