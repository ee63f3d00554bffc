"""Which runs does a config make, and when are two runs the same?"""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import small_studies

from elastic_jax.models.config import model_config
from elastic_jax.study import tree

DIGESTS = dict(pretrain="p", align="a", perturb="t")
WRITTEN = {
    "pretrain-s0": "403cf95ab9a0",
    "control-s0": "5a8b7cade16a",
    "align-s0": "0e36943486ae",
    "perturb-s0-a16": "c80eb03466ee",
    "perturb-s0-a32": "a8f6355f1ad7",
}


def runs(overrides=None, digests=None, argument=""):
    config = small_studies.load(argument, overrides)
    section = {k: v for k, v in config.model.items() if v is not None}
    found, _ = tree.build(config, model_config(section, 260, 32), digests or DIGESTS)
    return {run.name: run for run in found}


def notes(argument: str = "", overrides=None) -> list[str]:
    config = small_studies.load(argument, overrides)
    section = {k: v for k, v in config.model.items() if v is not None}
    return tree.build(config, model_config(section, 260, 32), DIGESTS)[1]


def test_the_tree_of_the_small_study():
    found = runs()
    assert {name: run.parent and run.parent.name for name, run in found.items()} == {
        "pretrain-s0": None,
        "control-s0": "pretrain-s0",
        "align-s0": "pretrain-s0",
        "perturb-s0-a16": "align-s0",
        "perturb-s0-a32": "align-s0",
    }
    assert [run.arm for run in found.values()] == ["base", "control", "aligned", "aligned", "aligned"]
    assert found["perturb-s0-a16"].parent_updates == 2 and found["perturb-s0-a32"].parent_updates == 4
    assert found["align-s0"].checkpoints == {2, 4} and found["align-s0"].measures == {0, 1, 2, 4}


def test_without_control_there_is_no_control_arm():
    assert "control-s0" not in runs({"perturb.control": False})
    assert "no control arm: perturb.control is off" in notes(overrides={"perturb.control": False})


CHANGES_ALL = [
    ("pretrain.optim.lr", 0.01),
    ("pretrain.batch_size", 16),
    ("pretrain.optim.warmup", 2),
    ("model.embed", 32),
    ("model.init_std", 0.01),
    ("model.dtype", "bfloat16"),
]
CHANGES_ALIGN = [("align.optim.lr", 0.01), ("align.optim.b2", 0.99), ("align.accumulate", 2)]
CHANGES_NOTHING = [
    ("mesh.data", 4),
    ("mesh.tensor", 2),
    ("model.layout", "scan"),
    ("model.remat", "full"),
    ("log.seconds", 1.0),
    ("log.tensorboard", True),
    ("checkpoint_seconds", 5.0),
    ("measures.samples", 16),
    ("measures.per_octave", 2),
    ("name", "other"),
    ("perturb.volumes", (8, 16, 24, 32)),
]


@pytest.mark.parametrize(("field", "value"), CHANGES_ALL)
def test_what_pretraining_depends_on_changes_every_run(field, value):
    before, after = runs(), runs({field: value})
    assert all(before[name].identity != after[name].identity for name in before)


@pytest.mark.parametrize(("field", "value"), CHANGES_ALIGN)
def test_what_alignment_depends_on_changes_it_and_what_follows(field, value):
    before, after = runs(), runs({field: value})
    same = {name for name in before if before[name].identity == after[name].identity}
    assert same == {"pretrain-s0", "control-s0"}


@pytest.mark.parametrize(("field", "value"), CHANGES_NOTHING)
def test_how_it_is_computed_changes_no_run(field, value):
    before, after = runs(), runs({field: value})
    assert {n: r.identity for n, r in before.items()} == {n: r.identity for n, r in after.items()}


def test_an_identity_holds_what_differs_from_the_defaults_of_the_model():
    plain = model_config(dict(size="100k"), 260, 32)
    shape = dict(vocab_size=260, seq_len=32, layers=2, embed=64, heads=4, kv_heads=4, head_dim=16, mlp=176)
    assert tree.architecture_of(plain) == shape
    switched = dataclasses.replace(plain, norm="layer", remat="full", layout="scan", dtype="bfloat16")
    assert tree.architecture_of(switched) == shape | dict(norm="layer", dtype="bfloat16")


def test_identities_are_those_that_were_written_down():
    """A field that comes later, off by default, must not change them: what was trained before would be trained again. Where
    the same config gives other numbers, raise `tree.FORMAT` and write these again."""
    assert tree.FORMAT == 3
    assert {name: run.identity[:12] for name, run in runs().items()} == WRITTEN


def test_more_volumes_change_no_run_under_a_constant_schedule():
    before, after = runs(), runs({"align.volumes": (16, 32, 64)})
    assert {n: after[n].identity for n in before} == {n: r.identity for n, r in before.items()}
    assert set(after) - set(before) == {"perturb-s0-a64"}


def test_data_and_seed_change_what_depends_on_them():
    before, after = runs(), runs(digests=dict(DIGESTS, align="another"))
    same = {name for name in before if before[name].identity == after[name].identity}
    assert same == {"pretrain-s0", "control-s0"}
    seeds = runs({"seeds": (0, 1)})
    assert {n: seeds[n].identity for n in before} == {n: r.identity for n, r in before.items()}
    assert len({run.identity for run in seeds.values()}) == 2 * len(before)


def test_a_schedule_that_decays_makes_a_run_of_every_volume():
    found = runs(argument="decay")
    assert [name for name in found if name.startswith("align")] == ["align-s0-v16", "align-s0-v32"]
    assert {name for name in found if name.startswith("control")} == {"control-s0-p8", "control-s0-p24"}
    assert len([name for name in found if name.startswith("perturb")]) == 4
    identities = [run.identity for run in found.values()]
    assert len(set(identities)) == len(identities)
    assert any(
        note.startswith("align volumes: a run each, since the schedule depends on its end") for note in notes("decay")
    )
    assert any(note.startswith("align volumes: one run per parent") for note in notes())


def test_identities_are_the_same_in_another_process_whatever_the_order_of_keys():
    script = """
import json, random, sys
sys.path[:0] = sys.argv[1:]
import test_tree
from ml_collections import ConfigDict

def shuffled(node):
    if not isinstance(node, ConfigDict):
        return node
    return ConfigDict({name: shuffled(node[name]) for name in random.sample(sorted(node), len(node))})

small = test_tree.small_studies.load
test_tree.small_studies.load = lambda *args: shuffled(small(*args))
print(json.dumps({name: run.identity for name, run in test_tree.runs().items()}))
"""
    folder = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", script, folder],
        env=small_studies.environment(PYTHONHASHSEED="123"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: run.identity for name, run in runs().items()}


@pytest.mark.parametrize("updates", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("per_octave", [1, 2, 3])
def test_recorded_points_are_log_spaced_with_both_ends(updates, per_octave):
    points = sorted(tree.log_spaced(updates, per_octave))
    assert points[0] == 0 and points[-1] == updates and all(0 <= point <= updates for point in points)
    assert {2**k for k in range(20) if 2**k < updates} <= set(points)
