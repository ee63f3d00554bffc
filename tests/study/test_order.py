"""Are three tasks in every order the same kind of run as all others: known in advance, shared, resumed, and measured on all of them?"""

import itertools
from pathlib import Path

import pytest
import small_studies

from elastic_jax import config as config_lib
from elastic_jax.analysis import order
from elastic_jax.analysis import table as table_lib
from elastic_jax.errors import UserError
from elastic_jax.models.config import model_config
from elastic_jax.study import Study, execute, population, tree

NAMES = ("refuse", "help", "praise")
ORDERED = {
    "data.tasks.names": NAMES,
    "data.tasks.rows": 16,
    "align.volumes": (),
    "perturb.volumes": (),
    "order.volume": 16,
    "order.batch_size": 8,
    "order.optim.lr": 0.02,
}
SEQUENCES = [sequence for count in (1, 2, 3) for sequence in itertools.permutations(NAMES, count)]
DIGESTS = dict(pretrain="p", align="a", perturb="t") | {f"task-{name}": name for name in NAMES}


def runs(overrides=None, digests=None):
    config = small_studies.load("", {**ORDERED, **(overrides or {})})
    section = {k: v for k, v in config.model.items() if v is not None}
    found, notes = tree.build(config, model_config(section, 260, 32), digests or DIGESTS)
    return {run.name: run for run in found}, notes


def name(sequence, seed=0):
    return f"order-s{seed}-{'-'.join(sequence)}" if sequence else f"pretrain-s{seed}"


def test_every_order_is_a_run_that_continues_the_one_before():
    found, notes = runs()
    assert list(found) == ["pretrain-s0", *map(name, SEQUENCES)]
    for sequence in SEQUENCES:
        run = found[name(sequence)]
        assert run.parent is found[name(sequence[:-1])] and run.parent_updates == run.parent.updates
        assert (
            run.role == f"task-{sequence[-1]}"
            and run.sequence == sequence
            and run.describe()["sequence"] == list(sequence)
        )
        assert run.updates == 2 and run.measures == run.checkpoints == {2}
    assert len({run.identity for run in found.values()}) == 16
    assert any("refuse, help, praise, 16 examples of each" in note and "15 runs" in note for note in notes)


def test_a_task_reads_the_same_examples_in_the_same_order_wherever_it_stands():
    found, _ = runs()
    assert len({execute.order_seed(found[name(sequence)]) for sequence in SEQUENCES}) == 1
    assert len({population.kind(found[name(sequence)]) for sequence in SEQUENCES}) == 1  # one program serves all


def test_a_run_depends_on_its_own_tasks_and_the_base_and_on_no_other():
    before, _ = runs()
    after, _ = runs(digests=DIGESTS | {"task-help": "others"})
    for sequence in SEQUENCES:
        changed = before[name(sequence)].identity != after[name(sequence)].identity
        assert changed == ("help" in sequence)
    for field, value in (("order.optim.lr", 0.5), ("order.volume", 8)):
        other, _ = runs({field: value})
        same = [n for n in before if before[n].identity == other[n].identity]
        # Under a constant schedule a volume is no part of what a single task's run is, but of what begins from it.
        wanted = ["pretrain-s0"] if "lr" in field else ["pretrain-s0", *(name((task,)) for task in NAMES)]
        assert same == wanted


def test_names_in_another_order_are_the_same_runs():
    before, _ = runs()
    after, _ = runs({"data.tasks.names": NAMES[::-1]})
    assert {n: run.identity for n, run in after.items()} == {n: run.identity for n, run in before.items()}


def test_parents_come_first_among_siblings():
    found, _ = runs({"seeds": (0, 1)})
    groups = population.siblings(list(found.values()))
    place = {run.key: i for i, group in enumerate(groups) for run in group}
    assert len(place) == 32
    assert all(place[run.parent.key] < place[run.key] for run in found.values() if run.parent)
    assert max(map(len, groups)) == 12  # six pairs, or triples, of two seeds in one program


WRONG = {
    "data.tasks.names=('refuse','help')": r"order.volume=16 trains three tasks in every order, and .* has 2. Name three",
    "data.tasks.names=('a','a','b')": "data.tasks.names=.*: expected different names of letters",
    "data.tasks.names=('a b','c','d')": "data.tasks.names=.*: expected different names of letters",
    "order.volume=12": "order.volume=12 is not a whole number of batches of 8",
    "order.volume=-8": "order.volume=-8 is not a whole number of batches",
    "order.objective.name=dpo": "order.objective=dpo: rows of a task are plain texts",
    "order.batch_size=0": "order.batch_size=0: expected 1 or more",
    "order.volume=0": None,
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_setting_that_cannot_work_is_named(setting: str):
    field, _, value = setting.partition("=")
    config = small_studies.load("", {**ORDERED, field: value})
    if WRONG[setting] is None:
        return config_lib.validate(config)
    with pytest.raises(UserError, match=WRONG[setting]):
        config_lib.validate(config)


def test_more_examples_than_a_task_has_are_said_before_training(tmp_path):
    with small_studies.on_devices(1):
        study = Study(small_studies.load("", {**ORDERED, "order.volume": 24}), tmp_path)
        with pytest.raises(
            UserError, match="order.volume=24: data has 16 rows for refuse. Lower it, or raise data.tasks.rows"
        ):
            study.check()


@pytest.mark.slow
def test_stopped_and_continued_it_measures_every_order_on_every_task(tmp_path: Path):
    whole = small_studies.run(tmp_path / "whole", overrides=ORDERED)
    with small_studies.stopping(execute.Executor, "_write_done", 7, True):
        small_studies.run(tmp_path / "again", overrides=ORDERED)
    small_studies.run(tmp_path / "again", overrides=ORDERED)
    small_studies.assert_same(small_studies.table(tmp_path / "again"), small_studies.table(tmp_path / "whole"))

    assert all(status.done for status in whole.status())
    study = table_lib.select(table_lib.load(whole.workdir.table))
    cells = order.cells(study)
    assert len(cells) == 16 * (3 * 2 + 2) and cells.value.notna().all() and cells.change.notna().all()
    last = cells[(cells.measure == "bits_per_token") & (cells.place > 0) & ~cells.sequence.str.contains(order.ARROW)]
    assert (last.change < 0).all()  # each single task is learnt
    exact = study.rows[(study.rows.measure == "kl_data_model") & study.rows.split.str.startswith("task-")]
    assert len(exact) == 3 * (15 + len(next(run for run in whole.runs if run.stage == "pretrain").measures))
    values = order.per_seed(study, cells)
    assert set(values.effect) == set(order.EFFECTS) and values[values.effect != "retention"].value.notna().all()
