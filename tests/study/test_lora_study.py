"""Does a study of adapters start at its base, resume, share and spread as one that trains all parameters does?"""

import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import small_studies
import test_population
import test_tree
import tiny
from conftest import once  # type: ignore[attr-defined]
from small_studies import stopping

from elastic_jax import config as config_lib
from elastic_jax.errors import UserError
from elastic_jax.models.adapted import Adapted
from elastic_jax.models.config import model_config
from elastic_jax.models.lora import LoraConfig
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel.mesh import put_local
from elastic_jax.study import estimate, planning, population
from elastic_jax.study.estimate import Layout
from elastic_jax.study.planning.work import work_of
from elastic_jax.study.population import Population, Program
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import loop
from elastic_jax.train.checkpoint import Checkpoints

LORA = {"lora.rank": 2, "lora.alpha": 8.0, "lora.dropout": 0.2}


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """The small study with adapters, on the pre-training of the one without."""

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder)
        for run in (folder / "runs").iterdir():
            if not run.name.startswith("pretrain"):
                shutil.rmtree(run)
        with small_studies.watched() as trained:
            small_studies.run(folder, overrides=LORA)
        assert "pretrain-s0" not in {each.run for each in trained}  # it is the same run with adapters and without

    return once(tmp_path_factory, "adapted", make)


def open_study(workdir: Path, **more):
    with small_studies.on_devices(1):
        return small_studies.Study(small_studies.load("", {**LORA, **more}), workdir)


@pytest.fixture
def begun(adapted: Path, tmp_path: Path) -> Path:
    """A copy in which nothing is fine-tuned yet."""
    workdir = Path(shutil.copytree(adapted, tmp_path / "begun"))
    for run in open_study(adapted).runs:
        if run.stage != "pretrain":
            shutil.rmtree(workdir / "runs" / run.key)
    return workdir


def rows(workdir: Path, run, updates: int):
    """What was measured at a point, without where."""
    found = Workdir(workdir).rows(run.key)
    found = found[(found.updates == updates) & ~found.measure.isin(["kl_base_model", "kl_model_base"])]
    return found[["measure", "split", "value", "stderr", "n", "text"]].reset_index(drop=True)


def test_both_arms_start_at_the_base_and_perturbation_where_alignment_ended(adapted: Path) -> None:
    runs = {run.name: run for run in open_study(adapted).runs}
    base = rows(adapted, runs["pretrain-s0"], runs["pretrain-s0"].updates)
    for name in ("align-s0", "control-s0"):
        small_studies.assert_same(rows(adapted, runs[name], 0), base)  # to the bit
        measured = Workdir(adapted).rows(runs[name].key)
        distance = measured[measured.measure == "kl_base_model"]
        assert (distance.value[distance.updates == 0] == 0).all() and (distance.value[distance.updates > 0] > 0).all()
    for name, updates in (("perturb-s0-a16", 2), ("perturb-s0-a32", 4)):
        start = rows(adapted, runs[name], 0)
        aligned = rows(adapted, runs["align-s0"], updates)
        small_studies.assert_same(start, aligned)
        assert not start.equals(base)


def test_a_checkpoint_is_adapters_and_the_parameters_behind_it_the_merged_ones(adapted: Path) -> None:
    study = open_study(adapted)
    runs = {run.name: run for run in study.runs}
    base = study._executor.params_at(runs["pretrain-s0"], runs["pretrain-s0"].updates)
    run = runs["align-s0"]
    what = Adapted(study.model.config, run.lora)
    checkpoints = Checkpoints(adapted / "runs" / run.key / "checkpoints", what, study.mesh)
    adapters, meta = checkpoints.restore_params(4)
    checkpoints.close()
    assert (
        meta["lora"] == run.lora.identity == dict(rank=2, alpha=8.0, dropout=0.2, targets=["down", "out", "qkv", "up"])
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(adapters)) == what.size < study.model.size / 3
    found = study._executor.params_at(run, 4)
    wanted = what.merge(base, adapters)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))
    # One copy of what is not adapted, however many models there are of it.
    kept = study._executor._base(run)
    assert found["embedding"].unsafe_buffer_pointer() == kept.params["embedding"].unsafe_buffer_pointer()
    assert all(a is b for a, b in zip(jax.tree.leaves(kept.frozen), jax.tree.leaves(kept.params), strict=True))


# In the order in which an advancing study meets them; the measures of a run's start are its first rows.
STOPS = [
    (Workdir, "add_rows", 1, True),
    (Checkpoints, "save", 2, True),
    (Checkpoints, "_delete_complete", 4, True),
]


def test_stopped_and_continued_it_ends_with_the_same_bits(begun: Path, adapted: Path) -> None:
    often = {**LORA, "checkpoint_seconds": 1e-9}
    for owner, name, call, after in STOPS:
        with stopping(owner, name, call, after):
            small_studies.run(begun, overrides=often)
    small_studies.run(begun, overrides=often)
    small_studies.assert_same(small_studies.table(begun), small_studies.table(adapted))
    assert small_studies.losses(begun) == small_studies.losses(adapted)


@pytest.mark.optimized
def test_lanes_share_the_frozen_parameters_and_are_runs_by_themselves(begun: Path, adapted: Path) -> None:
    launched = []
    launch = Population.launch

    def noted(self, asked):
        launched.append({run.name for run, _ in asked})
        return launch(self, asked)

    with mock.patch.object(Population, "launch", noted):
        small_studies.run(begun, overrides={**LORA, "population": 3})
    assert {"control-s0", "perturb-s0-a16", "perturb-s0-a32"} in launched
    small_studies.assert_same(small_studies.table(begun), small_studies.table(adapted))
    assert small_studies.losses(begun) == small_studies.losses(adapted)


@pytest.mark.slow
def test_all_lanes_at_once_read_one_copy_of_the_frozen_parameters() -> None:
    model, mesh = tiny.decoder(), tiny.mesh()
    lora = LoraConfig(2, dropout=0.2)
    runs = [test_population.run_of(name, seed=seed, lora=lora) for name, seed in (("a", 1), ("b", 2))]
    program = Program(model, mesh, runs[0])
    frozen = jax.device_put(tiny.random_params(model), model.shardings(mesh))
    begin = lambda run: program.create(Adapted(model.config, lora).init(jax.random.key(run.seed), mesh))  # noqa: E731
    batch = lambda run, number: tiny.text_batch(4, seed=10 * run.seed + number)  # noqa: E731
    lanes, states = Population(program, 2, "vmap", frozen=lambda: frozen), {run.name: begin(run) for run in runs}
    for number in range(2):
        asked = [(r, loop.Update(states[r.name], batch(r, number), jax.random.key(r.seed))) for r in runs]
        for run, (lane, metrics) in zip(runs, lanes.launch(asked), strict=True):
            states[run.name] = lane
            assert float(metrics["finite"])
    for run in runs:
        state, step = begin(run), program.alone(run, lambda: frozen)
        for number in range(2):
            state, _ = step(state, put_local(batch(run, number), mesh), jax.random.key(run.seed))
        tiny.assert_trees_close(states[run.name].cut().params, state.params, rtol=0, atol=1e-5)


def test_adapters_of_two_bases_are_no_siblings() -> None:
    names = lambda groups: sorted(sorted(run.name for run in group) for group in groups if len(group) > 1)  # noqa: E731
    found = list(test_tree.runs({**LORA, "seeds": (0, 1)}).values())
    groups = names(population.siblings(found))
    assert ["control-s0", "perturb-s0-a16", "perturb-s0-a32"] in groups
    assert ["control-s1", "perturb-s1-a16", "perturb-s1-a32"] in groups
    assert ["pretrain-s0", "pretrain-s1"] in groups  # all parameters are trained there


@pytest.mark.slow
@pytest.mark.parametrize("axes", [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(run=2, data=4)])
def test_on_eight_devices_it_is_the_same_study(begun: Path, adapted: Path, axes: dict[str, int]) -> None:
    mesh = {f"mesh.{axis}": size for axis, size in axes.items()}
    small_studies.run(begun, overrides={**LORA, **mesh, **({"population": 2} if "run" in axes else {})}, devices=8)
    found, wanted = small_studies.losses(begun), small_studies.losses(adapted)
    for run, values in wanted.items():
        np.testing.assert_allclose(found[run], values, rtol=small_studies.LOSS_RTOL, err_msg=run)
    small_studies.assert_close(small_studies.table(begun), small_studies.table(adapted))


@pytest.mark.slow
def test_preferences_packing_and_parts(begun: Path) -> None:
    """DPO against a cached reference in parts; then packed rows, decayed weights and short moments."""
    overrides = {**LORA, "lora.dropout": 0.0, "align.objective.name": "dpo", "align.accumulate": 2}
    overrides |= {"data.pack.perturb": "best_fit", "perturb.optim.weight_decay": 0.1, "model.layout": "scan"}
    overrides |= {"perturb.optim.moments": "bfloat16", "model.remat": "full"}
    study = small_studies.run(begun, overrides=overrides)
    runs = {run.name: run for run in study.runs}
    first = small_studies.losses(begun)["align-s0"][0]
    assert first == pytest.approx(np.log(2), rel=1e-6)  # at its start the model is its reference
    measured = Workdir(begun).rows(runs["perturb-s0-a32"].key)
    assert (measured.value[(measured.measure == "kl_base_model") & (measured.updates > 0)] > 0).all()


def test_the_identities_of_fine_tuned_runs_name_the_adapters_and_no_others_change() -> None:
    before, after = test_tree.runs(), test_tree.runs(LORA)
    assert {name for name in before if before[name].identity == after[name].identity} == {"pretrain-s0"}
    assert test_tree.runs({"lora.rank": 0})["align-s0"].identity == before["align-s0"].identity
    for change in ({"lora.rank": 3}, {"lora.alpha": 1.0}, {"lora.dropout": 0.0}, {"lora.targets": "qkv,out"}):
        other = test_tree.runs({**LORA, **change})
        assert all(other[name].identity != after[name].identity for name in after if name != "pretrain-s0")
    shuffled = test_tree.runs({**LORA, "lora.targets": "down,up,out,qkv"})
    assert shuffled["align-s0"].identity == after["align-s0"].identity
    assert any("adapters of rank 2 on qkv, out, up, down" in note for note in test_tree.notes(overrides=LORA))
    assert after["pretrain-s0"].lora is None and after["control-s0"].lora.rank == 2
    assert after["align-s0"].describe()["lora"]["alpha"] == 8.0 and "lora" not in before["align-s0"].describe()


@pytest.mark.slow
def test_the_plan_counts_an_optimiser_for_adapters_alone(adapted: Path) -> None:
    study = open_study(adapted)
    found = {cost.stage: cost for cost in planning.plan(study, timed=False).stages}
    full, low = found["pretrain"], found["align"]
    size = Adapted(study.model.config, study.runs[-1].lora).size
    assert full.estimate.memory["moments"] == 8 * study.model.size
    assert low.estimate.memory["moments"] == 8 * size
    assert low.estimate.memory["parameters"] == 4 * (study.model.size + size)
    assert low.compiled.arguments < full.compiled.arguments - 7 * (study.model.size - size)
    assert low.estimate.arguments == pytest.approx(low.compiled.arguments, rel=0.01)
    assert low.estimate.model_flops < 0.85 * full.estimate.model_flops


def test_the_estimate_counts_an_optimiser_for_adapters_alone() -> None:
    c = small_studies.load("", LORA)
    model = Decoder(model_config(config_lib.model_section(c), 260, c.data.seq_len))
    runs = test_tree.runs(LORA)
    works = [work_of(c, model.config, runs[name]) for name in ("pretrain-s0", "align-s0")]
    full, low = (estimate.estimate(work, Layout()).memory for work in works)
    size = Adapted(model.config, runs["align-s0"].lora).size
    assert full["moments"] == 8 * model.size and low["moments"] == 8 * size
    assert low["parameters"] == 4 * (model.size + size) and low["base model"] == 0  # which is what is adapted


def test_a_rank_above_that_of_a_weight_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lora.rank=17: the weight 'qkv'"):
        small_studies.Study(small_studies.load("", {"lora.rank": 17}), tmp_path / "w")
