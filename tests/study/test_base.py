"""Does a study start from checkpoints of others: read, measured, aligned, perturbed, resumed, and kept apart?"""

import json
import shutil
from pathlib import Path

import checkpoints
import jax
import numpy as np
import pytest
import small_studies
from shared import once

from elastic_jax import config as config_lib
from elastic_jax import status
from elastic_jax import study as study_lib
from elastic_jax.analysis import rebound
from elastic_jax.analysis import table as table_lib
from elastic_jax.data import files
from elastic_jax.errors import UserError
from elastic_jax.hf.export import export
from elastic_jax.hf.source import open_source
from elastic_jax.launch import runs as launch_runs
from elastic_jax.models import flops
from elastic_jax.study import Study, execute, planning
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import checkpoint


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """Two checkpoints of one model, and texts."""

    def make(folder: Path) -> None:
        folder.mkdir()
        checkpoints.llama(folder / "step1", seed=1)
        checkpoints.llama(folder / "step2", seed=2, std=0.2)
        checkpoints.reviews(folder / "train.jsonl", 160, seed=0)
        checkpoints.reviews(folder / "test.jsonl", 80, seed=1)

    return once(tmp_path_factory, "bases", make)


def small(things: Path, *names: str, **fields):
    """A study of every stage in a few updates."""
    c = config_lib.default(config_lib.text_data())
    c.name, c.seeds = "based", (0,)
    c.base.hf = ",".join(str(things / name) for name in names or ("step1",))
    c.data.update(train=str(things / "train.jsonl"), test=str(things / "test.jsonl"), seq_len=24)
    c.data.rows.update(align=16, perturb=16, scorer=32, heldout=8, prompts=4)
    for stage, volumes in ((c.align, (8, 16)), (c.perturb, (8, 16))):
        stage.batch_size, stage.volumes = 8, volumes
        stage.optim.lr = 0.01
    c.measures.update(samples=4, batch_size=8, sample_tokens=4, keep=1)
    c.log.tensorboard = False
    return config_lib.load(c, {name.replace("__", "."): value for name, value in fields.items()})


def run(config, workdir: Path, devices: int = 1, stage: str | None = None) -> Study:
    with small_studies.on_devices(devices), pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_lib.report, "render", small_studies._no_figures)
        study = Study(config, workdir)
        study.run(stage)
    return study


@pytest.fixture(scope="module")
def done(things, tmp_path_factory) -> Path:
    """The study of one base, run to its end; only to be read."""
    return once(tmp_path_factory, "based", lambda folder: run(small(things), folder))


def test_the_tree_begins_with_a_run_of_no_updates(things, done):
    with small_studies.on_devices(1):
        study = Study(small(things), done)
        found = {r.name: (r.parent and r.parent.name, r.updates) for r in study.runs}
    assert found == {
        "base-s0-step1": (None, 0),
        "control-s0-step1": ("base-s0-step1", 2),
        "align-s0-step1": ("base-s0-step1", 2),
        "perturb-s0-step1-a8": ("align-s0-step1", 2),
        "perturb-s0-step1-a16": ("align-s0-step1", 2),
    }


def test_a_base_is_measured_and_never_written(things, done):
    (folder,) = (done / "runs").glob("base-*")
    assert {path.name for path in folder.iterdir()} <= {
        "run.json",
        "DONE",
        "measures.parquet",
        "metrics.jsonl",
        "goodput.json",
    }
    table = small_studies.table(done)
    base = table[table.stage == "pretrain"]
    assert set(base.updates) == {0} and set(base[base.measure == "bits_per_token"].split) == {
        "pretrain",
        "align",
        "perturb",
    }
    assert not set(base.measure) & set(rebound.DIRECTIONS)
    prepared = table[(table.stage == "data") & (table.measure == "rows")]
    assert set(prepared.split) == {
        "align",
        "perturb",
        *(f"{name}-heldout" for name in ("pretrain", "align", "perturb")),
    }


def test_what_follows_starts_at_the_base(done):
    table = small_studies.table(done)
    first = table[(table.stage != "data") & (table.updates == 0) & (table.measure != "sample")]
    base = first[first.stage == "pretrain"].set_index(["measure", "split"]).value
    begun = first[(first.stage == "align") | (first.arm == "control")].set_index(["measure", "split"])
    for measure in rebound.DIRECTIONS:
        assert (begun.value[measure].abs() < 1e-6).all()
    same = begun.drop(index=list(rebound.DIRECTIONS), level=0)
    assert len(same) == 2 * len(base)
    for key, value in same.value.items():
        assert value == base[key]


def test_the_table_names_model_and_its_size(things, done):
    rows = table_lib.select(table_lib.load(done / "measures.parquet"))
    params = sum(leaf.size for leaf in jax.tree.leaves(_params(things / "step1")))
    assert [(m.name, m.params, m.pretrain_tokens) for m in rows.models] == [("step1", params, 0)]


def _params(folder: Path):
    source = open_source(str(folder))
    import tiny

    from elastic_jax.models.transformer import Decoder

    model = Decoder(source.model_config(checkpoints.VOCAB, 24))
    return source.load_params(model, tiny.mesh())


def test_the_first_gradient_is_that_of_the_checkpoint(things, done):
    """The loss that the log has for update 1 is that of the weights on disk, on the first batch, computed by hand."""
    from elastic_jax.data.pipeline import batch_at
    from elastic_jax.models.transformer import Decoder

    with small_studies.on_devices(1):
        study = Study(small(things), done)
        align = next(r for r in study.runs if r.stage == "align")
        batch = batch_at(study.data.train["align"], 0, batch_size=8, seed=execute.order_seed(align))
        logits = np.asarray(study.model(_params(things / "step1"), batch["tokens"][:, :-1]), np.float64)
    assert isinstance(study.model, Decoder)
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(logp, batch["tokens"][:, 1:, None].astype(np.int64), -1)[..., 0]
    wanted = -(picked * batch["mask"]).sum() / batch["mask"].sum()
    losses = small_studies.losses(done)
    assert losses["align-s0-step1"][0] == pytest.approx(wanted, rel=1e-5)


STOPS = {"in an alignment": (checkpoint.Checkpoints, "save", 1, True)}
MORE_STOPS = {
    "when the base was measured": (Workdir, "add_rows", 1, True),
    "while the base is measured": (execute.Executor, "_measure", 1, False),
    "before the last run": (execute.Executor, "_write_done", 4, True),
}


@pytest.mark.parametrize(
    "stop",
    [*STOPS.values(), *(pytest.param(stop, marks=pytest.mark.slow) for stop in MORE_STOPS.values())],
    ids=[*STOPS, *MORE_STOPS],
)
def test_a_study_that_was_killed_ends_bit_for_bit_like_one_that_was_not(things, done, tmp_path, stop):
    owner, name, call, after = stop
    shutil.copytree(done / "data", tmp_path / "data")
    shutil.copy(done / "study.json", tmp_path / "study.json")
    (tmp_path / "study.json").write_text(json.dumps(dict(json.loads((done / "study.json").read_text()), studies={})))
    with small_studies.stopping(owner, name, call, after):
        run(small(things), tmp_path)
    run(small(things), tmp_path)
    small_studies.assert_same(small_studies.table(tmp_path), small_studies.table(done))


def test_several_bases_are_an_axis_and_take_over_what_is_done(things, done, tmp_path):
    workdir = Path(shutil.copytree(done, tmp_path / "axis"))
    config = small(things, "step1", "step2", base__tokens=(1_000_000, 2_000_000), name="axis", population="2")
    with small_studies.watched() as trained:
        study = run(config, workdir)
    assert {t.run for t in trained} == {r.name for r in study.runs if "step2" in r.name and r.base is None}
    rows = table_lib.select(table_lib.load(workdir / "measures.parquet"), "axis")
    assert [(m.name, m.pretrain_tokens) for m in rows.models] == [("step1", 1_000_000), ("step2", 2_000_000)]
    data = rows.rows[rows.rows.stage == "data"]
    assert len(data) and set(data.model) == {""}
    paths = rebound.trajectories(rows)
    assert len(paths) == 6 and {p.condition[0] for p in paths} == {"step1", "step2"}
    for path in paths:
        base = rows.rows[(rows.rows.stage == "pretrain") & (rows.rows.model == path.condition[0])]
        assert path.base == base[(base.measure == "score") & (base.split == "samples")].value.item()
    # The weights of the second were read, not those of the first again.
    bits = (
        rows.rows[(rows.rows.stage == "pretrain") & (rows.rows.measure == "bits_per_token")]
        .groupby("model")
        .value.first()
    )
    assert bits.step1 != bits.step2


@pytest.mark.slow
def test_sharded_is_as_on_one_device(things, done, tmp_path):
    run(small(things, mesh__fsdp=2, mesh__data=2, mesh__tensor=2), tmp_path, devices=8)
    small_studies.assert_close(small_studies.table(tmp_path), small_studies.table(done))


def test_what_was_exported_is_a_base_with_the_measures_of_its_checkpoint(things, done, tmp_path):
    folder = export(done, "align-s0-step1", tmp_path / "aligned")
    with small_studies.watched() as trained:
        run(small(things, base__hf=str(folder)), tmp_path / "w", stage="pretrain")
    assert not trained
    again, before = small_studies.table(tmp_path / "w"), small_studies.table(done)
    again = again[again.stage == "pretrain"].set_index(["measure", "split", "text"]).value
    before = before[(before.stage == "align") & (before.updates == 2)].set_index(["measure", "split", "text"]).value
    assert len(again) and (again == before[again.index]).all()


def test_status_and_launch_know_the_runs(things, done, capsys):
    assert status.main([f"--workdir={done}"]) == 0
    assert "5 of 5 runs done" in capsys.readouterr().out
    with small_studies.on_devices(1):
        found = launch_runs.find(small(things), str(done))
    assert [m.updates for m in found.members] == [0, 2, 2, 2, 2] and found.done == 5


def test_status_reads_nothing_of_the_source(things, done, capsys, monkeypatch):
    monkeypatch.setattr("elastic_jax.hf.source.open_source", lambda *args: pytest.fail("opened"))
    assert status.main([f"--workdir={done}"]) == 0


def only_config(things: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(things / "step1" / "config.json", folder / "config.json")
    return folder


def test_a_plan_for_a_topology_needs_config_json_alone(things, tmp_path):
    only_config(things, tmp_path / "bare")
    config = small(tmp_path, "bare", model__remat="none")
    plan = planning.plan(config, topology="h100:1")
    assert [stage.stage for stage in plan.stages] == ["align", "perturb"]
    assert plan.params == flops.parameters(_config_of(things)) and plan.fits
    assert f"base-s0-bare  measured as it is, read from {tmp_path / 'bare'}" in str(plan)
    with pytest.raises(UserError, match="nothing is pre-trained with base.hf"):
        planning.plan(config, topology="h100:1", stages=("pretrain",))


def _config_of(things: Path):
    return open_source(str(things / "step1")).model_config(checkpoints.VOCAB, 24)


def test_a_plan_for_the_devices_here_reads_no_weights(things, tmp_path):
    bare = only_config(things, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(things / "step1" / name, bare / name)
    config = small(tmp_path, "bare", data__train=str(things / "train.jsonl"), data__test=str(things / "test.jsonl"))
    with small_studies.on_devices(1):
        plan = planning.plan(config, timed=False)
    assert [stage.stage for stage in plan.stages] == ["align", "perturb"] and len(plan.runs) == 5


@pytest.fixture
def hub(things, monkeypatch) -> list[dict]:
    """Stands for the hub: the revisions of owner/tiny are the folders of `things`. What was asked of it."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(repo, revision, allow_patterns, **more):
        asked.append(dict(repo=repo, revision=revision, weights="*.safetensors" in allow_patterns))
        return str(things / revision)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_revisions_of_a_hub_id_are_an_axis(things, hub, tmp_path):
    config = small(things, base__hf="owner/tiny", base__revision="step1,step2", base__tokens="2000,4000")
    with small_studies.on_devices(1):
        study = Study(config, tmp_path)
        study.record()
    assert [request["revision"] for request in hub] == ["step1", "step2"] and all(request["weights"] for request in hub)
    bases = [r.describe() for r in study.runs if r.base is not None]
    assert [(b["name"], b["model"], b["pretrain_tokens"]) for b in bases] == [
        ("base-s0-tiny-step1", "owner/tiny@step1", 2000),
        ("base-s0-tiny-step2", "owner/tiny@step2", 4000),
    ]
    assert {r.pretrain_tokens for r in study.runs if r.name.endswith("step2-a8")} == {4000}
    recorded = Workdir(tmp_path).study()["bases"]
    assert [(b["hf"], b["revision"]) for b in recorded] == [("owner/tiny", "step1"), ("owner/tiny", "step2")]
    hub.clear()
    assert status.main([f"--workdir={tmp_path}"]) == 0 and not hub


def test_a_plan_downloads_no_weights(things, hub):
    config = small(things, base__hf="owner/tiny", base__revision="step1", model__remat="none")
    planning.plan(config, topology="h100:1", stages=("align",))
    assert hub == [dict(repo="owner/tiny", revision="step1", weights=False)]


REFUSED = {
    "pretrain.tokens": (dict(pretrain__tokens=1000), "pretrain.tokens=1000 has no effect with base.hf"),
    "pretrain.optim.lr": (dict(pretrain__optim__lr=0.5), "pretrain.optim.lr=0.5 has no effect"),
    "pretrain.objective": (dict(pretrain__objective__name="dpo"), "pretrain.objective.name='dpo' has no effect"),
    "data.rows.pretrain": (dict(data__rows__pretrain=5), "data.rows.pretrain=5 has no effect"),
    "data.rows.prose": (dict(data__rows__prose=5), "data.rows.prose=5 has no effect"),
    "data.tokenizer.vocab_size": (dict(data__tokenizer__vocab_size=999), "data.tokenizer.vocab_size=999 has no effect"),
    "data.pack.pretrain": (dict(data__pack__pretrain="none"), "data.pack.pretrain='none' has no effect"),
    "model.size": (dict(model__size="1m"), "model.size='1m': the architecture comes with base.hf"),
    "model.layers": (dict(model__layers=2), "model.layers=2: the architecture comes with base.hf"),
    "model.remat": (dict(model__remat="some"), "model.remat='some': expected one of"),
    "base.dtype": (dict(base__dtype="float16"), "base.dtype='float16': expected one of float32, bfloat16"),
    "both dtypes": (dict(base__dtype="bfloat16", model__param_dtype="float32"), "Set one of them"),
    "revisions": (dict(base__hf="a/b,c/d", base__revision="x,y,z"), "base.revision has 3 values for the 2 of base.hf"),
    "tokens": (dict(base__tokens=(1, 2)), "base.tokens has 2 values for 1 checkpoints"),
    "no tokens": (dict(base__tokens=-1), "base.tokens=-1: expected whole numbers"),
    "twice": (dict(base__hf="a/b,a/b"), "named twice"),
    "no base": (dict(base__hf="", base__revision="step1"), "base.revision='step1' has no effect without base.hf"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_setting_that_does_not_go_with_a_base_is_refused(things, fields, message):
    with pytest.raises(UserError) as caught:
        config_lib.validate(small(things, **fields))
    assert message in str(caught.value)


def test_the_universe_has_a_vocabulary_of_its_own(things):
    config = config_lib.default()
    config.base.hf = str(things / "step1")
    with pytest.raises(UserError, match="data.kind='universe' has a vocabulary of its own"):
        config_lib.validate(config)


def refused(config, workdir: Path) -> str:
    with pytest.raises(UserError) as caught:
        run(config, workdir)
    return str(caught.value)


def test_more_tokens_than_rows_are_refused_before_data_are_prepared(things, tmp_path):
    checkpoints.llama(tmp_path / "short", rows=290)
    message = refused(small(things, "../short", base__hf=str(tmp_path / "short")), tmp_path / "w")
    assert "300 tokens" in message and "290 rows" in message
    assert not list((tmp_path / "w" / "data").glob("align-*"))


def test_bases_of_different_models_are_refused(things, tmp_path):
    checkpoints.llama(tmp_path / "deeper", layers=3)
    message = refused(small(things, base__hf=f"{things / 'step1'},{tmp_path / 'deeper'}"), tmp_path / "w")
    assert "step1 and deeper are different models (layers 1 and 3)" in message


def test_bases_with_different_tokenizers_are_refused(things, tmp_path):
    checkpoints.llama(tmp_path / "other")
    checkpoints.tokenizer(tmp_path / "other", vocab=280)
    message = refused(small(things, base__hf=f"{things / 'step1'},{tmp_path / 'other'}"), tmp_path / "w")
    assert "the tokenizers of step1 and other differ" in message


def test_the_same_weights_under_two_names_are_refused(things, tmp_path):
    shutil.copytree(things / "step1", tmp_path / "copy")
    message = refused(small(things, base__hf=f"{things / 'step1'},{tmp_path / 'copy'}"), tmp_path / "w")
    assert "step1 and copy hold the same weights" in message


@pytest.fixture
def moved(things, tmp_path) -> Path:
    """Things of its own with a study that has begun."""
    own = tmp_path / "own"
    shutil.copytree(things, own)
    study = Study(small(own), tmp_path / "w")
    study.record()
    return own


def test_weights_that_change_after_the_study_began_are_found(moved, tmp_path):
    checkpoints.llama(moved / "step1", seed=7)
    message = refused(small(moved), tmp_path / "w")
    assert "the weights are not those that study based began with" in message and "another name" in message


def test_a_source_that_is_gone_is_named(moved, tmp_path):
    shutil.rmtree(moved / "step1")
    assert str(moved / "step1") in refused(small(moved), tmp_path / "w")


def test_a_base_depends_on_weights_and_not_on_where_they_lie(things, tmp_path):
    shutil.copytree(things / "step1", tmp_path / "step1")
    shutil.copytree(things / "step1", tmp_path / "elsewhere" / "step1")
    there = [
        Study(small(things, base__hf=str(p / "step1")), tmp_path / "w").runs for p in (tmp_path, tmp_path / "elsewhere")
    ]
    assert [r.key for r in there[0]] == [r.key for r in there[1]]
    assert files.digest_of([]) != there[0][0].identity


def test_labels_and_names_of_runs():
    from elastic_jax import base

    section = dict(base.DEFAULTS, hf="EleutherAI/pythia-1b", revision=("step1000", "step143000"), tokens=(1, 2))
    found = base.named(section)
    assert [b.label for b in found] == ["EleutherAI/pythia-1b@step1000", "EleutherAI/pythia-1b@step143000"]
    assert [b.slug for b in found] == ["pythia-1b-step1000", "pythia-1b-step143000"]
    alone = base.named(dict(section, revision="step1000", tokens=None))
    assert alone[0].slug == found[0].slug  # so that the runs of one are taken over by several
    both = base.named(dict(base.DEFAULTS, hf="/a/model,/b/model"))
    assert [b.label for b in both] == ["/a/model", "/b/model"] and len({b.slug for b in both}) == 2
