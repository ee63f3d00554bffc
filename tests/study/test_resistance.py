"""Are runs on what other runs wrote the same kind of run as all others: known in advance, shared, resumed, and measured right?"""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_studies
from small_studies import CROSSED

from elastic_jax import config as config_lib
from elastic_jax.analysis import resistance
from elastic_jax.analysis import table as table_lib
from elastic_jax.data import pipeline
from elastic_jax.errors import UserError
from elastic_jax.measures import answers as measures
from elastic_jax.models.config import model_config
from elastic_jax.models.filters import Choice
from elastic_jax.study import Study, answers, execute, planning, tree
from elastic_jax.study.suite import Suite
from elastic_jax.train import metrics

NAMES = [
    "inverse-s0-2to1",
    "forward-s0-1to2",
    "reordered-s0-order21",
    "inverse-s0-order21-2to1",
    "forward-s0-order21-1to2",
    "other-s0",
    "inverse-s0-other-2to1",
    "forward-s0-other-1to2",
]


def runs(overrides=None, queries="q", crossed=True):
    config = small_studies.load("", {**(CROSSED if crossed else {}), **(overrides or {})})
    section = {k: v for k, v in config.model.items() if v is not None}
    digests = dict(pretrain="p", align="a", perturb="t", resistance=queries)
    found, _ = tree.build(config, model_config(section, 260, 32), digests)
    return {run.name: run for run in found}


def rows_of(table, run, measure, split):
    part = table[(table.run == run.key) & (table.measure == measure) & (table.split == split)].sort_values("updates")
    return part.value.to_numpy()


@pytest.fixture
def study(crossed: Path) -> Study:
    with small_studies.on_devices(1):
        return Study(small_studies.load("", CROSSED), crossed)


def test_every_pair_is_known_before_anything_is_trained():
    found = runs({"resistance.slices": (0.25, 0.5, 1.0), "resistance.orders": ("321",), "resistance.other_task": False})
    crosses = [run for run in found.values() if run.cross]
    pairs = {(run.cross.line, run.arm, run.cross.earlier, run.cross.later) for run in crosses}
    assert pairs == set(
        (line, arm, *pair)
        for line in ("123", "321")
        for arm in ("inverse", "forward")
        for pair in itertools.combinations((1, 2, 3), 2)
    )
    plain = runs(crossed=False)
    assert found["align-s0"].checkpoints == {1, 2, 4} and plain["align-s0"].checkpoints == {2, 4}
    assert {name: found[name].identity for name in plain} == {name: run.identity for name, run in plain.items()}
    inverse, forward = found["inverse-s0-3to1"], found["forward-s0-1to3"]
    assert (inverse.parent_updates, forward.parent_updates) == (4, 1)
    assert (inverse.cross.answers.updates, forward.cross.answers.updates) == (1, 4)
    assert inverse.cross.answers == forward.cross.opposite and inverse.updates == forward.updates == 2
    assert inverse.optim == forward.optim and inverse.batch_size == forward.batch_size
    line = found["reordered-s0-order321"]
    assert line.parts == ((2, 4), (1, 2), (0, 1)) and line.checkpoints == {2, 3, 4}
    assert execute.order_seed(line) == execute.order_seed(found["align-s0"])


@pytest.mark.parametrize(
    ("overrides", "queries", "changed"),
    [
        ({"resistance.temperature": 0.5}, "q", True),
        ({"resistance.top_k": 3}, "q", True),
        ({"resistance.length": 5}, "q", True),
        ({"resistance.equal_tokens": True}, "q", True),
        ({"resistance.optim.lr": 0.5}, "q", True),
        ({}, "others", True),
        ({"perturb.volumes": (8, 32)}, "q", False),
    ],
)
def test_what_a_run_on_answers_depends_on_is_in_its_identity(overrides, queries, changed):
    before, after = runs(), runs(overrides, queries)
    for name in NAMES:
        is_cross = before[name].cross is not None
        assert (before[name].identity != after[name].identity) == (changed and is_cross), name


def test_authors_have_to_be_done_first(with_data, tmp_path):
    found = runs()
    pair = found["inverse-s0-other-2to1"]
    assert [run.name for run in pair.requires] == ["other-s0", "align-s0"]
    from elastic_jax.study import _needed, population

    needed = {run.name for run in _needed(list(found.values()), "resistance")}
    assert needed == {*NAMES, "align-s0", "pretrain-s0"}
    order = [run.name for group in population.siblings(list(found.values())) for run in group]
    for run in found.values():
        assert all(order.index(other.name) < order.index(run.name) for other in run.requires)
    with small_studies.on_devices(1):
        study = Study(small_studies.load("", CROSSED), with_data("w"))
        keys = {run.name: run.key for run in study.runs}
        only = [keys[name] for name in ("pretrain-s0", "other-s0", "inverse-s0-other-2to1")]
        with pytest.raises(UserError, match=f"author of its answers, {keys['align-s0']} is not done. Run --only="):
            study.run(only=only)


def test_the_alignment_is_shared_and_only_the_new_runs_are_trained(crossed: Path, study: Study):
    assert json.loads((crossed / "trained.json").read_text()) == sorted(NAMES)
    with small_studies.watched() as trained:
        small_studies.run(crossed, overrides=CROSSED)
    assert trained == [] and all(status.done for status in study.status())


def test_answers_are_kept_with_what_their_author_says_of_them(study: Study):
    run = next(run for run in study.runs if run.name == "inverse-s0-2to1")
    assert run.cross is not None
    written = study._executor._answers.answers(run.cross.answers)
    asked = answers.queries(study.data, 8)
    with jax.set_mesh(study.mesh):
        logits = study.model(study.params_at(run.cross.answers.author, 2), jnp.asarray(written["tokens"][:, :-1]))
    log_p = np.asarray(jax.nn.log_softmax(logits))
    never = list(study.data.tokenizer.never)
    for row, query in enumerate(asked):
        counted = np.flatnonzero(written["mask"][row])
        assert written["tokens"][row, : len(query)].tolist() == query
        assert counted[0] == len(query) - 1 and counted.tolist() == list(range(counted[0], counted[-1] + 1))
        assert len(counted) == 12 or written["tokens"][row, counted[-1] + 1] in study.data.tokenizer.eos_ids
        for t in counted:
            token = written["tokens"][row, t + 1]
            assert written["self_nll"][row, t] == pytest.approx(-log_p[row, t, token], abs=1e-5)
            allowed = 1 - np.exp(log_p[row, t, never]).sum()  # temperature 1: nothing else is cut
            assert written["drawn_nll"][row, t] == pytest.approx(-log_p[row, t, token] + np.log(allowed), abs=1e-5)
    about = json.loads((study.workdir.answers / f"{run.cross.answers.key}.json").read_text())
    assert about["tokens"] == written["mask"].sum() and sum(about["ended"].values()) == about["answers"] == 8


def test_entropy_of_what_was_drawn_under_temperature_and_filters():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]], np.float32))
    hot = np.array([0.5, 0.3, 0.15]) ** 2 / np.sum(np.array([0.5, 0.3, 0.15]) ** 2)
    found = measures.drawn_nll(jnp.asarray(logits), jnp.array([1, 3]), Choice(temperature=0.5, top_k=3))
    np.testing.assert_allclose(found, -np.log([hot[1], 0.25]), rtol=1e-5)  # ties with the third stay, as when drawing
    edge = measures.drawn_nll(jnp.asarray(logits[:1]), jnp.array([3]), Choice(top_k=2))
    np.testing.assert_allclose(edge, -np.log([0.05 / 0.85]), rtol=1e-5)  # counted inside: it was drawn


def test_the_epoch_is_the_mean_of_what_was_logged_and_less_is_subtracted_batch_by_batch(crossed: Path, study: Study):
    table = small_studies.table(crossed)
    for run in (run for run in study.runs if run.cross):
        lines = metrics.read(study.workdir.run(run.key) / "metrics.jsonl")
        losses = [line["loss"] for line in lines if line["kind"] == "train"]
        assert len(losses) == run.updates == 2
        assert rows_of(table, run, "epoch_loss", "answers")[0] == pytest.approx(np.mean(losses), rel=1e-12)
        written = study._executor._answers.answers(run.cross.answers)
        seen = study._executor._answers.batches(run)
        assert sorted(np.concatenate(seen).tolist()) == [0, 1, 2, 3]
        own = [(written["self_nll"][b] * written["mask"][b]).sum() / written["mask"][b].sum() for b in seen]
        above = rows_of(table, run, "epoch_loss_above_self", "answers")[0]
        assert above == pytest.approx(np.mean(losses) - np.mean(own), abs=1e-6)
        assert rows_of(table, run, "epoch_slope", "answers")[0] == pytest.approx(2 * (losses[1] - losses[0]))
        # The first batch is lost on before any update: the loss of the starting point on it, measured apart.
        params = study.params_at(run.parent, run.parent_updates)
        nll = study._executor._answers._token_nll(params, written["tokens"])
        first = (nll[seen[0]] * written["mask"][seen[0]]).sum() / written["mask"][seen[0]].sum()
        assert losses[0] == pytest.approx(first, rel=1e-5)
        whole = (nll[:4] * written["mask"][:4]).sum() / written["mask"][:4].sum()
        assert rows_of(table, run, "answer_loss", "answers")[0] == pytest.approx(whole, rel=1e-5)
        heldout = (nll[4:] * written["mask"][4:]).sum() / written["mask"][4:].sum()
        assert rows_of(table, run, "answer_loss", "answers_heldout")[0] == pytest.approx(heldout, rel=1e-5)


def test_an_author_has_no_divergence_from_itself(study: Study):
    run = next(run for run in study.runs if run.cross)
    author = run.cross.answers
    params = study.params_at(author.author, author.updates)
    rows = study._executor._answers.rows(run, params, 0, [])
    above = {row["split"]: row["value"] for row in rows if row["measure"] == "answer_loss_above_self"}
    assert above == pytest.approx({"answers": 0.0, "answers_heldout": 0.0}, abs=1e-6)


def test_equal_tokens_cut_both_directions_alike(study: Study):
    library = study._executor._answers
    inverse, forward = (next(run for run in study.runs if run.name == name) for name in NAMES[:2])
    cut = [dataclasses.replace(run.cross, cut=True) for run in (inverse, forward)]
    masks = [library.mask(cross) for cross in cut]
    np.testing.assert_array_equal(*masks)
    natural = [library.mask(run.cross) for run in (inverse, forward)]
    np.testing.assert_array_equal(masks[0], np.minimum(*natural))
    assert not np.array_equal(*natural)  # else the cut would show nothing
    first, second = (library.trained(cross) for cross in cut)
    assert first.counts["loss_tokens"] == second.counts["loss_tokens"] == masks[0][:4].sum()
    assert first.digest != library.trained(inverse.cross).digest
    tokens = first.arrays()["tokens"]
    pad = study.data.tokenizer.pad_id
    for row, mask in zip(tokens, masks[0], strict=False):
        assert (row[np.flatnonzero(mask)[-1] + 2 :] == pad).all()


def test_slices_in_another_order_are_the_same_batches(study: Study):
    prepared = study.data.train["align"]
    run = next(run for run in study.runs if run.name == "reordered-s0-order21")
    reading = lambda start: pipeline.batches(prepared, batch_size=8, seed=execute.order_seed(run), start=start)  # noqa: E731
    plain = [batch["row"].tolist() for batch in itertools.islice(reading(start=0), 4)]
    wanted = [plain[2], plain[3], plain[0], plain[1]]
    assert run.parts == ((2, 4), (0, 2))
    for start in range(5):
        found = [batch["row"].tolist() for batch in execute._in_parts(reading, run.parts, start)]
        assert found == wanted[start:]


@pytest.mark.parametrize(("where", "call", "after"), [("rows", 2, False), ("rows", 5, True), ("_keep", 2, True)])
def test_stopped_and_continued_it_ends_with_the_same_table(copied, crossed, where, call, after):
    every_update = {"checkpoint_seconds": 1e-9}
    short = {k: v for k, v in CROSSED.items() if k not in ("resistance.orders", "resistance.other_task")}
    with small_studies.stopping(answers.Library, where, call, after):
        small_studies.run(copied, overrides={**short, **every_update})
    study = small_studies.run(copied, overrides={**short, **every_update})
    assert all(status.done for status in study.status())
    found, whole = small_studies.table(copied), small_studies.table(crossed)
    wanted = whole[whole.run.isin(set(found.run))].reset_index(drop=True)
    small_studies.assert_same(found, wanted)
    assert not list(study.workdir.answers.glob("*.tmp-*"))


def test_damaged_answers_are_written_again_and_have_to_come_out_the_same(crossed, tmp_path, caplog):
    workdir = Path(shutil.copytree(crossed, tmp_path / "w"))
    with small_studies.on_devices(1):
        study = Study(small_studies.load("", CROSSED), workdir)
    run = next(run for run in study.runs if run.cross)
    path = Path(study.workdir.answers / f"{run.cross.answers.key}.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with study.workdir.lock():
        again = study._executor._answers.answers(run.cross.answers)
    assert "cannot be read" in caplog.text
    with np.load(crossed / "answers" / path.name) as before:
        for name in answers.FIELDS:
            np.testing.assert_array_equal(again[name], before[name])
    path.unlink()
    about = path.with_suffix(".json")
    about.write_text(json.dumps(json.loads(about.read_text()) | dict(digest="another")))
    with small_studies.on_devices(1):
        study = Study(small_studies.load("", CROSSED), workdir)
    with study.workdir.lock(), pytest.raises(UserError, match=r"the answers are others.*remove .*\.json"):
        study._executor._answers.answers(run.cross.answers)


def test_it_is_planned_with_the_others(study: Study):
    plan = planning.plan(study, timed=False)
    cost = next(cost for cost in plan.stages if cost.stage == "resistance")
    assert cost.runs == len(NAMES) and cost.updates == 6 * 2 + 2 * 4
    assert "resistance: slices end at 16, 32 examples" in str(plan) and "inverse-s0-2to1" in str(plan)
    config = small_studies.load("", CROSSED)
    far = planning.plan(config, topology="h100:1", stages=["resistance"])
    assert [cost.runs for cost in far.stages] == [len(NAMES)]


WRONG = {
    "resistance.slices=(0.5,)": "resistance.slices=.*: expected growing shares, at least two",
    "resistance.slices=(0.3,1.0)": "resistance.slices: 0.3 of 32 examples is not a whole number of batches of 8",
    "resistance.queries=5": "resistance.queries=5 is not a whole number of batches of 2",
    "resistance.heldout=1": "resistance.heldout=1: expected 2 or more",
    "resistance.orders=('12',)": r"resistance.orders=\('12',\): expected other orders of 12, each once, such as \('21',\)",
    "resistance.temperature=0": None,
    "resistance.temperature=-1": "resistance.temperature=-1.0: expected 0",
    "resistance.objective.name=dpo": "resistance.objective=dpo: answers are plain texts",
    "align.optim.schedule=linear": "align.optim.schedule=linear every point has a learning rate that depends on where the run ends",
    "perturb.objective.name=dpo": "resistance.other_task trains align.objective=sft on the data of perturb",
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_setting_that_cannot_work_is_named(setting: str):
    name, _, value = setting.partition("=")
    config = small_studies.load("", {**CROSSED, name: value})
    if WRONG[setting] is None:
        return config_lib.validate(config)
    with pytest.raises(UserError, match=WRONG[setting]):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"resistance.queries": 6}, "ask for 10 queries, and the data have 8 prompts"),
        ({"resistance.length": 100}, "resistance.length=100: after the longest query"),
        ({"resistance.top_k": 1000}, "resistance.top_k=1000: expected from 1 to"),
    ],
)
def test_what_the_data_do_not_allow_is_said_before_training(finished, overrides, message):
    with small_studies.on_devices(1):
        study = Study(small_studies.load("", {**CROSSED, **overrides}), finished)
        with pytest.raises(UserError, match=message):
            study.check()


@pytest.mark.slow
def test_the_recipe_runs_and_its_report_shows_both_variants(tmp_path: Path):
    recipe = Path(__file__).resolve().parents[2] / "configs" / "resistance.py"
    config = config_lib.load(f"{recipe}:tiny", {"log.tensorboard": False})
    with small_studies.on_devices(1):
        suite = Suite(config, tmp_path / "w")
        path = suite.run()
    assert path is not None and all(status.done for study in suite.studies.values() for status in study.status())
    page = path.read_text()
    part = page[page.index('<section id="resistance">') :].partition("</section>")[0]
    for line in ("slices 1, 2", "two tasks"):
        assert f"equal, {line}: <b>" in part and f"paper, {line}: <b>" in part
    values = resistance.per_seed(table_lib.select(table_lib.load(suite.workdir.table)))
    epoch = values[(values.quantity == "epoch") & (values.version == "above_self")]
    assert sorted(set(epoch.model)) == ["equal", "paper"] and epoch.difference.notna().all() and len(epoch) == 8
    counts = resistance.texts(table_lib.select(table_lib.load(suite.workdir.table)))
    counts = counts[(counts.model == "equal") & (counts.measure == "answer_total")]
    by_direction = counts.pivot_table(index=["line", "seed", "split"], columns="direction", values="value")
    assert (by_direction.inverse == by_direction.forward).all()
