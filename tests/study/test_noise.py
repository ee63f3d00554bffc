"""Is noise as large as the perturbation beside it, measured as it is, resumed to the bit, and the same on several devices?"""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import small_studies
import test_tree
from conftest import once  # type: ignore[attr-defined]

from elastic_jax import config as config_lib
from elastic_jax.errors import UserError
from elastic_jax.models import displacement
from elastic_jax.study import Study, _needed, noise, planning
from elastic_jax.study.workdir import Workdir

NOISE = {"noise.draws": 2}
NAMES = ["noise-s0-a16-d1", "noise-s0-a16-d2", "noise-s0-a32-d1", "noise-s0-a32-d2"]


def open_study(workdir: Path, **more) -> Study:
    with small_studies.on_devices(1):
        return Study(small_studies.load("", {**NOISE, **more}), workdir)


@pytest.fixture(scope="session")
def noisy(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """The finished small study with noise on top of it; only to be read."""

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder)
        with small_studies.watched() as trained:
            small_studies.run(folder, overrides=NOISE)
        assert trained == []

    return once(tmp_path_factory, "noisy", make)


def test_noise_stands_beside_every_perturbation_of_an_aligned_model():
    plain, found = test_tree.runs(), test_tree.runs(NOISE)
    assert {name: run.identity for name, run in found.items() if not run.draw} == {
        n: r.identity for n, r in plain.items()
    }
    assert [name for name in found if name not in plain] == NAMES
    run = found["noise-s0-a16-d2"]
    assert run.parent is found["perturb-s0-a16"] and run.requires == (run.parent,)
    assert (run.stage, run.arm, run.draw, run.align_volume, run.measures) == ("noise", "noise", 2, 16, {1, 3})
    assert not run.trains and run.parent.trains and run.describe()["draw"] == 2
    assert len({found[name].identity for name in NAMES}) == 4
    more = test_tree.runs({"noise.draws": 3, "perturb.volumes": (8, 16, 24)})
    assert {name: more[name].identity for name in NAMES} == {name: found[name].identity for name in NAMES}
    other = test_tree.runs({**NOISE, "perturb.optim.lr": 0.01})
    assert other["noise-s0-a16-d1"].identity != found["noise-s0-a16-d1"].identity
    assert {run.name for run in _needed(list(found.values()), "noise")} == {
        *NAMES, "perturb-s0-a16", "perturb-s0-a32", "align-s0", "pretrain-s0",
    }  # fmt: skip


def test_a_schedule_that_decays_has_noise_for_every_volume():
    found = test_tree.runs({"noise.draws": 1}, argument="decay")
    names = [name for name, run in found.items() if run.draw]
    assert len(names) == 4 and all(found[name].measures == found[name].parent.checkpoints for name in names)


def test_a_perturbation_without_an_update_has_none():
    found = test_tree.runs({**NOISE, "perturb.volumes": (4, 16), "perturb.last_batch": "drop"})
    assert found["noise-s0-a16-d1"].measures == {2}


def test_noise_is_as_large_as_the_perturbation_and_measured_as_it_is(noisy: Path):
    study = open_study(noisy)
    run = next(run for run in study.runs if run.name == "noise-s0-a32-d1")
    perturbed, aligned = run.parent, run.parent.parent
    start, base = study.params_at(aligned, 4), study.params_at(aligned.parent, 8)
    rows = study.workdir.rows(run.key)
    assert sorted(set(rows.updates)) == [1, 3]
    trained = study.workdir.rows(perturbed.key)
    for updates in (1, 3):
        end = study.params_at(perturbed, updates)
        lengths = displacement.distances(study.model, start, end, study.mesh)
        moved = displacement.displaced(study.model, start, lengths, noise.direction_key(run), study.mesh)
        for before, after, there in zip(*map(jax.tree.leaves, (start, end, moved)), strict=True):
            assert np.linalg.norm(there - before) == pytest.approx(np.linalg.norm(after - before), rel=1e-5)
        here, beside = rows[rows.updates == updates], trained[trained.updates == updates]
        wanted = {
            (r["measure"], r["split"]): r["value"]
            for r in study.protocol.measure(moved, base, 0)
            if r["measure"] != "sample"
        }
        own = {(m, s): v for m, s, v in zip(here.measure, here.split, here.value, strict=True) if m != "sample"}
        change = own.pop(("weight_change", "perturb")), own.pop(("weight_change", "noise"))
        assert change[0] == pytest.approx(change[1], rel=1e-6) and change[0] == pytest.approx(
            displacement.total(lengths)
        )
        assert own.pop(("weight_norm", "align")) == pytest.approx(
            np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(start)))
        )
        assert own == wanted
        assert {*zip(here.measure, here.split, strict=True)} >= {*zip(beside.measure, beside.split, strict=True)}
        assert set(here.tokens) == set(beside.tokens) and set(here.examples) == set(beside.examples)
    table = small_studies.table(noisy)
    part = table[table.arm == "noise"]
    assert set(part.stage) == {"noise"} and set(part.method) == {"sft"} and set(part.perturb_volume) == {8, 24}
    assert all(status.done for status in study.status())


def test_directions_depend_on_seed_and_draw_alone(noisy: Path):
    runs = {run.name: run for run in open_study(noisy).runs}
    data = {name: tuple(np.asarray(jax.random.key_data(noise.direction_key(runs[name])))) for name in NAMES}
    assert data["noise-s0-a16-d1"] == data["noise-s0-a32-d1"] != data["noise-s0-a16-d2"]
    other = dataclasses.replace(runs["noise-s0-a16-d1"], seed=1)
    assert tuple(np.asarray(jax.random.key_data(noise.direction_key(other)))) not in data.values()


def test_stopped_and_continued_it_ends_with_the_same_bits(copied: Path, noisy: Path):
    with small_studies.stopping(Workdir, "add_rows", 4, after=False):  # one run is done, one half
        small_studies.run(copied, overrides=NOISE)
    with small_studies.watched() as trained:
        small_studies.run(copied, overrides=NOISE)
    assert trained == []
    small_studies.assert_same(small_studies.table(copied), small_studies.table(noisy))


@pytest.mark.slow  # tests/models/test_displacement.py has the part that is its own by default
def test_on_several_devices_it_is_the_same_noise(noisy: Path, tmp_path: Path):
    workdir = Path(shutil.copytree(noisy, tmp_path / "w"))
    for folder in (workdir / "runs").glob("noise-*"):
        shutil.rmtree(folder)
    with small_studies.watched() as trained:
        small_studies.run(workdir, overrides={**NOISE, "mesh.data": 2, "mesh.fsdp": 2}, devices=4)
    assert trained == []
    small_studies.assert_close(small_studies.table(workdir), small_studies.table(noisy))


def test_a_damaged_perturbation_is_repaired_first(noisy: Path, tmp_path: Path, caplog):
    workdir = Path(shutil.copytree(noisy, tmp_path / "w"))
    study = open_study(workdir)
    run = next(run for run in study.runs if run.name == "noise-s0-a16-d1")
    shutil.rmtree(workdir / "runs" / run.key)
    arrays = max(
        (workdir / "runs" / run.parent.key / "checkpoints" / "3").rglob("*"),
        key=lambda p: p.is_file() and p.stat().st_size,
    )
    arrays.write_bytes(arrays.read_bytes()[:10])
    small_studies.run(workdir, overrides=NOISE)
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(noisy))


def test_it_is_planned_and_named_with_the_others():
    config, runs = small_studies.load("", NOISE), test_tree.runs(NOISE)
    plan = planning.Plan("small", 1, {}, (), tuple((run, False) for run in runs.values()), (), 0, None)
    (line,) = [line for line in str(plan).splitlines() if "noise-s0-a16-d2" in line]
    assert line.endswith("random change 2 of the weights, as large as that of its parent at 8, 24 examples")
    assert "noise" not in config_lib.stages(config)
    (note,) = [note for note in test_tree.notes(overrides=NOISE) if note.startswith("noise: ")]
    assert "beside every perturbation of an aligned model 2 random changes of the weights" in note
    with pytest.raises(UserError, match="--stage=noise: it measures random changes of weights and trains nothing"):
        planning.plan(config, topology="h100:1", stages=["noise"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"noise.draws": -1}, "noise.draws=-1: expected a whole number: 1 or more"),
        ({"noise.draws": True}, "noise.draws"),
        ({"noise.draws": 1, "perturb.volumes": ()}, r"noise.draws=1 with perturb.volumes=\(\)"),
        ({"noise.draws": 1, "align.volumes": ()}, r"noise.draws=1 with align.volumes=\(\)"),
        ({"noise.draw": 1}, "noise.draw: no such field"),
    ],
)
def test_bad_input_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(small_studies.load("", overrides))
