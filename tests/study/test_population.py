"""Is a run the same whether it is trained alone or together with its siblings?"""

import contextlib
import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pandas as pd
import pytest
import small_studies
import tiny
from small_studies import stopping

from elastic_jax import objectives
from elastic_jax.errors import UserError
from elastic_jax.parallel.mesh import put_local
from elastic_jax.study import Study, execute, population
from elastic_jax.study.population import Population, Program
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import interrupt, loop, optim
from elastic_jax.train.checkpoint import Checkpoints
from elastic_jax.train.step import make_train_step

PERTURBED = {"control-s0", "perturb-s0-a16", "perturb-s0-a32"}


def run_of(name: str, stage: str = "perturb", parent: Run | None = None, **fields: Any) -> Run:
    common = dict(
        arm="aligned", role=stage, seed=0, identity=name * 12, parent_updates=0, align_volume=0, objective={"name": "sft"},
        optim=optim.OptimConfig(), batch_size=4, accumulate=1, reduce="step", updates=4, checkpoints=frozenset({4}),
        measures=frozenset({4}),
    )  # fmt: skip
    return Run(name=name, stage=stage, parent=parent, **{**common, **fields})


def names(groups: list[list[Run]]) -> list[list[str]]:
    return [[run.name for run in group] for group in groups]


def test_seeds_volumes_parents_and_numbers_make_siblings() -> None:
    base = [run_of(f"base{n}", "pretrain", seed=n) for n in (0, 1)]
    aligned = [run_of(f"a{n}", "align", base[n], seed=n) for n in (0, 1)]
    fields = dict(seed=1, updates=9, optim=optim.OptimConfig(lr=0.5, b2=0.7, eps=0.1))
    control, other = run_of("control", parent=base[0]), run_of("p", parent=aligned[1], **fields)
    # In the order of the tree the control run could begin before alignment; it waits for its siblings.
    runs = [base[0], control, aligned[0], base[1], aligned[1], other]
    assert names(population.siblings(runs)) == [["base0", "base1"], ["a0", "a1"], ["control", "p"]]


@pytest.mark.parametrize(
    "fields",
    [
        dict(batch_size=8),
        dict(accumulate=2),
        dict(reduce="micro"),
        dict(role="align"),
        dict(objective={"name": "dpo"}),
        dict(optim=optim.OptimConfig(name="sgd", b2=0.95)),
        dict(optim=optim.OptimConfig(schedule="cosine")),
        dict(optim=optim.OptimConfig(weight_decay=0.1)),
        dict(optim=optim.OptimConfig(clip=0.0)),
    ],
)
def test_another_program_makes_no_sibling(fields: dict) -> None:
    assert names(population.siblings([run_of("a"), run_of("b", **fields)])) == [["a"], ["b"]]
    assert names(population.siblings([run_of("a", **fields), run_of("b", **fields)])) == [["a", "b"]]


def test_rows_of_packed_batches_count_as_a_shape() -> None:
    assert len(population.siblings([run_of("a"), run_of("b")], lambda run: 3 if run.name == "a" else 4)) == 2


def test_tasks_in_both_orders_are_trained_after_their_parents() -> None:
    first, second = run_of("x1", "align"), run_of("y1", "perturb")
    runs = [first, second, run_of("y2", "perturb", first), run_of("x2", "align", second)]
    groups = names(population.siblings(runs))
    assert sorted(itertools.chain(*groups)) == ["x1", "x2", "y1", "y2"]
    order = list(itertools.chain(*groups))
    assert order.index("x1") < order.index("y2") and order.index("y1") < order.index("x2")


MODEL = tiny.decoder()


def pairs(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    chosen, rejected = tiny.text_batch(rows, seed), tiny.text_batch(rows, seed + 500)
    made = {f"chosen_{k}": v for k, v in chosen.items()} | {f"rejected_{k}": v for k, v in rejected.items()}
    return made | {f"ref_{k}": rng.standard_normal(rows).astype(np.float32) for k in ("chosen", "rejected")}


def variants() -> list[Run]:
    """Runs that differ in every number."""
    dpo = lambda **options: objectives.settings({"name": "dpo", **options})  # noqa: E731
    common = dict(schedule="cosine", warmup=2)
    first = optim.OptimConfig(lr=0.01, weight_decay=0.1, eps=1e-3, **common)
    other = optim.OptimConfig(
        schedule="cosine", lr=0.03, final=0.2, warmup=1, b1=0.5, b2=0.8, eps=1e-2, weight_decay=0.3, clip=0.3
    )
    return [
        run_of("a", optim=first, objective=dpo()),
        run_of("b", optim=other, updates=9, objective=dpo(beta=0.7, label_smoothing=0.2), seed=3),
        run_of("c", optim=dataclasses.replace(first, lr=0.02), updates=6, objective=dpo(beta=0.3), seed=5),
    ]


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(MODEL, tiny.mesh(), variants()[0])


def start(program: Program, run: Run) -> Any:
    return program.create(jax.device_put(tiny.random_params(MODEL, run.seed), MODEL.shardings(program.mesh)))


def alone(program: Program, run: Run, updates: int, step: Any = None) -> tuple[Any, list[dict[str, float]]]:
    step, state, metrics = step or program.alone(run), start(program, run), []
    for number in range(updates):
        state, found = step(state, put_local(pairs(4, 10 * run.seed + number), program.mesh), jax.random.key(run.seed))
        metrics.append({name: float(value) for name, value in found.items()})
    return jax.device_get(state), metrics


def in_lanes(
    program: Program, lengths: dict[str, int], width: int, way: population.Way, first: int = 0
) -> dict[str, tuple[Any, list[dict[str, float]]]]:
    """Each of the variants for so many updates; a run that ends leaves its lane."""
    lanes, runs = Population(program, width, way), {run.name: run for run in variants()}
    states: dict[str, Any] = {name: start(program, runs[name]) for name in lengths}
    metrics: dict[str, list] = {name: [] for name in lengths}
    for number in range(max(lengths.values())):
        here = [name for name, length in lengths.items() if number < length]
        asked = [
            (runs[n], loop.Update(states[n], pairs(4, 10 * runs[n].seed + number), jax.random.key(runs[n].seed)))
            for n in here
        ]
        for name, (lane, found) in zip(here, lanes.launch(asked), strict=True):
            states[name] = lane
            metrics[name].append({key: float(value) for key, value in found.items()})
            if number + 1 == lengths[name]:
                states[name] = jax.device_get(lane.cut())
                lanes.leave(runs[name])
    return {name: (states[name], metrics[name]) for name in lengths}


LENGTHS = {"a": 2, "b": 4, "c": 3}


@pytest.fixture(scope="module")
def separate(program: Program) -> dict[str, tuple[Any, list[dict[str, float]]]]:
    return {run.name: alone(program, run, LENGTHS[run.name]) for run in variants()}


def test_numbers_as_arrays_are_the_numbers_of_the_config(program: Program, separate: dict) -> None:
    """The usual step, with constants, is the trusted one. 1 - b2 is rounded to float32 here and in float64 there."""
    for run in variants():
        tx = optim.make(run.optim, run.updates)
        step = make_train_step(MODEL, objectives.make(run.objective), tx, program.mesh)
        state, metrics = alone(program, run, LENGTHS[run.name], step)
        for found, wanted in zip(separate[run.name][1], metrics, strict=True):
            assert found == pytest.approx(wanted, rel=2e-5)
        tiny.assert_trees_close(separate[run.name][0].params, state.params, rtol=0, atol=2e-6)


@pytest.mark.optimized
def test_lanes_are_separate_runs_bit_for_bit(program: Program, separate: dict) -> None:
    """Different lengths, and a lane that nobody has."""
    found = in_lanes(program, LENGTHS, 4, "loop")
    for name, (state, metrics) in separate.items():
        tiny.assert_trees_equal(found[name][0], state)
        assert found[name][1] == metrics


def test_all_lanes_at_once_round_differently_but_not_by_their_company(program: Program, separate: dict) -> None:
    found = in_lanes(program, LENGTHS, 3, "vmap")
    for name, (state, metrics) in separate.items():
        # Three updates of 0.03 at most; Adam with eps 1e-3 turns one epsilon of a gradient of 1e-3 into 1e-4 of an update.
        tiny.assert_trees_close(found[name][0].params, state.params, rtol=0, atol=1e-5)
        assert found[name][1] == [pytest.approx(each, rel=1e-4) for each in metrics]
    for name in ("b", "c"):  # as after a kill, when its siblings are done
        left = in_lanes(program, {name: LENGTHS[name]}, 3, "vmap")
        tiny.assert_trees_equal(left[name][0], found[name][0])
        assert left[name][1] == found[name][1]


@pytest.mark.parametrize("sizes", [pytest.param((8, 1), marks=pytest.mark.slow), (2, 4)])
def test_lanes_over_devices(cpu_devices: list, separate: dict, sizes: tuple[int, int]) -> None:
    run, data = sizes
    spread = Program(MODEL, small_studies.make_mesh(run=run, data=data, devices=cpu_devices), variants()[0])
    found = in_lanes(spread, LENGTHS, 8, "loop")
    for name, (state, metrics) in separate.items():
        tiny.assert_trees_close(found[name][0].params, state.params, rtol=0, atol=1e-5)
        assert found[name][1] == [pytest.approx(each, rel=1e-4) for each in metrics]


@pytest.fixture
def unperturbed(finished: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy of the small study without its perturb runs: three siblings are to be trained."""
    count = itertools.count()

    def make() -> Path:
        folder = Path(shutil.copytree(finished, tmp_path / f"unperturbed{next(count)}"))
        for run in (folder / "runs").iterdir():
            if run.name.rsplit("-", 1)[0] in PERTURBED:
                shutil.rmtree(run)
        return folder

    return make


def assert_finished(workdir: Path, finished: Path) -> None:
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(finished))
    assert small_studies.losses(workdir) == small_studies.losses(finished)


TOGETHER = {"population": 2}  # of three: the last takes the lane of the first that ends


@pytest.mark.optimized
def test_a_study_of_populations_is_the_study(unperturbed: Callable[[], Path], finished: Path, capsys) -> None:
    workdir, launched = unperturbed(), []
    launch = Population.launch

    def noted(self, asked):
        launched.append({run.name for run, _ in asked})
        return launch(self, asked)

    with mock.patch.object(Population, "launch", noted), small_studies.watched() as trained:
        small_studies.run(workdir, overrides=TOGETHER)
    assert {each.run for each in trained} == PERTURBED and all(each.stop == 3 for each in trained)
    assert max(map(len, launched)) == 2 and len(launched) == 6
    assert_finished(workdir, finished)
    last = [line for line in capsys.readouterr().err.splitlines() if "control-s0 and 2 more" in line][-1]
    assert "[2/5 control-s0 and 2 more] step 9/9 100%" in last
    for name in PERTURBED:
        (folder,) = (workdir / "runs").glob(f"{name}-*")
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in (finished / "runs" / folder.name).iterdir()
        }
        assert {p.name for p in (folder / "checkpoints").iterdir()} == {"1", "3"}


@pytest.mark.slow
def test_a_study_over_run_and_data_is_the_study(unperturbed: Callable[[], Path], finished: Path) -> None:
    workdir = unperturbed()
    small_studies.run(workdir, overrides={"mesh.run": 2, "mesh.data": 4, "population": 4}, devices=8)
    found, wanted = small_studies.losses(workdir), small_studies.losses(finished)
    for run, values in wanted.items():
        np.testing.assert_allclose(found[run], values, rtol=small_studies.LOSS_RTOL, err_msg=run)
    small_studies.assert_close(small_studies.table(workdir), small_studies.table(finished))


# In the order in which the population meets them.
STOPS = [
    (Checkpoints, "save", 1, False),
    (Workdir, "add_rows", 3, False),
    (Workdir, "add_rows", 1, True),
    (Checkpoints, "save", 3, True),
    (Checkpoints, "delete", 1, True),
    (Population, "launch", 2, True),
    (Workdir, "write_run", 2, False),
    (Workdir, "write_run", 2, True),
]


@pytest.mark.optimized
def test_stopped_everywhere_it_ends_as_the_study(unperturbed: Callable[[], Path], finished: Path) -> None:
    """Others are done or further than others when it begins again, so populations are made up differently."""
    workdir, often = unperturbed(), {**TOGETHER, "checkpoint_seconds": 1e-9}
    for owner, name, call, after in STOPS:
        with stopping(owner, name, call, after):
            small_studies.run(workdir, overrides=often)
    small_studies.run(workdir, overrides=often)
    assert_finished(workdir, finished)


@pytest.mark.slow
def test_a_larger_study_extends_lanes(unperturbed: Callable[[], Path], with_data: Callable[[str], Path]) -> None:
    workdir, larger = unperturbed(), {"perturb.volumes": (8, 24, 40)}
    small_studies.run(workdir, overrides=TOGETHER)
    with small_studies.watched() as trained:
        small_studies.run(workdir, overrides={**larger, **TOGETHER})
    assert [(each.start, each.stop) for each in trained] == [(3, 5)] * 3
    fresh = with_data("fresh")
    small_studies.run(fresh, overrides=larger)
    point = [*small_studies.POINT, "text"]
    found, wanted = (small_studies.table(w).sort_values(point, ignore_index=True) for w in (workdir, fresh))
    # The middle of the shorter runs was their end, and stays measured.
    wanted_points = found.merge(wanted[["run", "updates"]].drop_duplicates(), on=["run", "updates"])[found.columns]
    pd.testing.assert_frame_equal(wanted_points, wanted, check_exact=True)


@contextlib.contextmanager
def sick(arm: str) -> Iterator[None]:
    """Runs of this arm start from parameters that are not finite."""
    real = execute.Executor._first

    def first(self, run):
        params = real(self, run)
        return jax.tree.map(lambda leaf: leaf * np.nan, params) if run.arm == arm else params

    with mock.patch.object(execute.Executor, "_first", first):
        yield


@pytest.mark.optimized
def test_a_lane_that_is_not_finite_stops_alone(unperturbed: Callable[[], Path], finished: Path) -> None:
    workdir = unperturbed()
    message = r"control-s0-\w+, update 1: loss nan.*not finite[\s\S]*rows \[[\s\S]*Last good checkpoint: none"
    with sick("control"), pytest.raises(loop.NotFinite, match=message):
        small_studies.run(workdir, overrides={**TOGETHER, "measures.samples": 8})
    done = {path.parent.name.rsplit("-", 1)[0] for path in (workdir / "runs").glob("*/DONE")}
    assert done == {"pretrain-s0", "align-s0", "perturb-s0-a16", "perturb-s0-a32"}
    (control,) = (workdir / "runs").glob("control-s0-*")
    shutil.rmtree(control)  # with the measures of the sick start, which a healthy one has not got
    small_studies.run(workdir, overrides=TOGETHER)
    assert_finished(workdir, finished)


@pytest.mark.optimized
def test_asked_to_stop_every_lane_saves_first(unperturbed: Callable[[], Path], finished: Path) -> None:
    workdir = unperturbed()
    asked = itertools.count()
    with (
        mock.patch.object(interrupt, "requested", lambda: "SIGTERM" if next(asked) >= 3 else ""),
        pytest.raises(interrupt.Interrupted, match=r"-s0.*saved after update 2"),
    ):
        small_studies.run(workdir, overrides=TOGETHER)
    kept = {p.name.rsplit("-", 1)[0]: {c.name for c in p.glob("checkpoints/*")} for p in (workdir / "runs").iterdir()}
    begun = [name for name in PERTURBED if name in kept]
    assert len(begun) == 2 and all("2" in kept[name] or "3" in kept[name] for name in begun)
    small_studies.run(workdir, overrides=TOGETHER)
    assert_finished(workdir, finished)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"population": 3, "mesh.run": 2, "mesh.data": 4},
            r"population=3 does not divide over mesh axis run = 2. Use 2 or 4",
        ),
        ({"population": "off", "mesh.run": 2, "mesh.data": 4}, r"mesh.run=2 has no effect with population=off"),
        ({"population": 0}, r"population=0: expected auto, off, or the number of runs"),
        ({"population": "some"}, r"population=some: expected auto"),
    ],
)
def test_populations_that_cannot_be(copied: Path, overrides: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_studies.run(copied, overrides=overrides, devices=8)


def test_how_many_lanes() -> None:
    one, eight = tiny.mesh(), small_studies.make_mesh(run=2, data=4, devices=jax.devices()[:8])
    assert population.width("auto", one, 1000) == population.width("off", one, 1000) == 1
    assert population.width("4", one, 1000) == 4 and population.width("auto", eight, 1000) == 2
    assert population.lanes(8, 3, one) == 3 and population.lanes(8, 3, eight) == 4 and population.lanes(2, 9, one) == 2


def only(workdir: Path, keys: list[str], overrides: dict | None = None) -> Study:
    with small_studies.on_devices(1):
        study = Study(small_studies.load(overrides=overrides), workdir)
        assert study.run(only=keys) is None
    return study


@pytest.mark.optimized
def test_single_runs_of_a_study(with_data: Callable[[str], Path], finished: Path) -> None:
    workdir = with_data("w")
    recorded = json.loads((workdir / "study.json").read_text())
    (workdir / "study.json").write_text(
        json.dumps({**recorded, "studies": {}})
    )  # as the first of several jobs finds it
    with small_studies.on_devices(1):
        keys = {run.name: run.key for run in Study(small_studies.load(), finished).runs}
    with pytest.raises(UserError, match=rf"its parent {keys['pretrain-s0']} is not done"):
        only(workdir, [keys["control-s0"]])
    with pytest.raises(UserError, match=r"--only=align-s1: no such run in small. Closest: align-s0"):
        only(workdir, ["align-s1"])
    with small_studies.watched() as trained:
        only(workdir, [keys["pretrain-s0"]])
        only(workdir, [keys["align-s0"], keys["control-s0"]])
        only(workdir, [keys["perturb-s0-a16"], keys["perturb-s0-a32"]], TOGETHER)
        only(workdir, [keys["perturb-s0-a16"]])
    assert sorted(each.run for each in trained) == sorted(keys)
    assert not (workdir / "measures.parquet").exists() and not (workdir / "report").exists()
    with small_studies.watched() as trained:
        small_studies.run(workdir)
    assert trained == []
    assert_finished(workdir, finished)


def test_a_damaged_parent_is_left_to_its_own_job(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    from test_resume import damage_newest

    with small_studies.on_devices(1):
        study = Study(small_studies.load(), copied)
    parent, control = (
        next(run.key for run in study.runs if run.name == name) for name in ("pretrain-s0", "control-s0")
    )
    damage_newest(copied, "pretrain-s0")
    shutil.rmtree(copied / "runs" / control)
    with pytest.raises(UserError, match=rf"cannot be read.*Run --only={parent} first"):
        only(copied, [control])
    assert any((copied / "runs" / parent / "checkpoints").iterdir())
