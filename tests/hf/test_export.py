"""Does an exported checkpoint hold the numbers of the study, all of them or nothing, and say where it comes from?"""

import json
import shutil
import weakref
from pathlib import Path

import exports
import jax
import numpy as np
import pytest
import tiny

import elastic_jax as ej
from elastic_jax.data import tokenizers
from elastic_jax.errors import UserError
from elastic_jax.hf import export as export_lib
from elastic_jax.hf.source import open_source
from elastic_jax.hf.tensors import Tensors
from elastic_jax.hf.write import Entry, write_tensors
from elastic_jax.models.transformer import Decoder
from elastic_jax.train.checkpoint import Checkpoints, Damaged


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A study of ours, and its workdir, only to be read."""
    folder = tmp_path_factory.mktemp("own") / "w"
    return exports.own(folder), folder


@pytest.fixture(scope="module")
def based(tmp_path_factory):
    folder = tmp_path_factory.mktemp("based")
    return exports.based(folder / "w", folder / "base"), folder


def imported(folder: Path):
    """Model and parameters of a folder, as a study would begin with them."""
    source = open_source(folder)
    tokenizer = tokenizers.load_pretrained(folder)
    model = Decoder(source.model_config(tokenizer.vocab_size, 16))
    return model, source.load_params(model, tiny.mesh())


def assert_holds(folder: Path, study, params) -> None:
    """The folder's numbers are those of `params`, bit for bit, as far as there are tokens for them."""
    model, found = imported(folder)
    rows = study.model.config.used_vocab or study.model.config.vocab_size
    cut = lambda tree: {**tree, "embedding": tree["embedding"][:rows]}  # noqa: E731
    if not model.config.tie_embeddings:
        cut = lambda tree: {**tree, "embedding": tree["embedding"][:rows], "head": tree["head"][:, :rows]}  # noqa: E731
    tiny.assert_trees_equal(jax.device_get(cut(found)), jax.device_get(cut(params)))
    assert not np.asarray(found["embedding"][rows:]).any()


def test_adapters_are_merged_and_the_padding_stays_behind(own, tmp_path):
    study, workdir = own
    out = ej.export(workdir, "align-s0", tmp_path / "out")
    assert study.model.config.vocab_size == 272 and study.model.config.used_vocab == 260
    assert Tensors(out).shape("model.embed_tokens.weight") == (260, 16)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 260
    params = exports.params_of(study, "align-s0")
    assert_holds(out, study, params)
    base = exports.params_of(study, "pretrain-s0")
    assert np.abs(np.asarray(params["layers"]["0"]["mlp"]["up"] - base["layers"]["0"]["mlp"]["up"])).max() > 1e-3
    text = study.data.tokenizer.decode([list(range(2, 40))])
    assert tokenizers.load_pretrained(out).encode(text) == study.data.tokenizer.encode(text)


@pytest.mark.parametrize(("run", "updates"), [("pretrain-s0", None), ("align-s0", 2), ("perturb-s0-a16", 1)])
def test_every_point_can_be_had(own, tmp_path, run, updates):
    study, workdir = own
    (key,) = [one.key for one in study.runs if one.name == run]
    assert_holds(ej.export(workdir, key, tmp_path / "out", updates), study, exports.params_of(study, run, updates))


def test_a_study_of_adapters_on_a_published_model_is_written_as_that_model(based, tmp_path):
    study, folder = based
    out = ej.export(folder / "w", "align-s0-base", tmp_path / "out", shard_gb=1e-5)
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    single = {name for name in names if list(index["weight_map"].values()).count(name) == 1}
    assert all((out / name).stat().st_size < 1e4 + 2000 for name in set(names) - single)
    given = json.loads((folder / "base" / "config.json").read_text())
    written = json.loads((out / "config.json").read_text())
    assert written == {**written, **given}  # its longest row, its special tokens: every key that was there
    assert_holds(out, study, exports.params_of(study, "align-s0-base"))
    again = tokenizers.load_pretrained(out)
    assert again.digest == study.data.tokenizer.digest


def test_a_base_that_nothing_was_trained_of_is_the_published_model(based, tmp_path):
    _, folder = based
    out = ej.export(folder / "w", "base-s0-base", tmp_path / "out")
    here, there = Tensors(out), Tensors(folder / "base")
    assert set(here.names) == set(there.names)
    for name in here.names:
        np.testing.assert_array_equal(here.read(name), there.read(name))
    with pytest.raises(UserError, match="--updates=3: .* is a base, which nothing was trained of"):
        ej.export(folder / "w", "base-s0-base", tmp_path / "more", 3)


def test_the_card_says_where_it_comes_from_and_what_was_measured(own, based, tmp_path):
    study, workdir = own
    text = (ej.export(workdir, "perturb-s0-a32", tmp_path / "own") / "README.md").read_text()
    runs = {run.name: run for run in study.runs}
    for name, examples in (("pretrain-s0", 64), ("align-s0", 32), ("perturb-s0-a32", 24)):
        assert f"| `{runs[name].key}` | {runs[name].stage} | {examples} |" in text
    for wanted in (
        study.data.digest,
        study.protocol.digest,
        "| alignment volume | 32 examples |",
        "merged: rank 2, alpha 8",
    ):
        assert wanted in text
    assert "| perturbation volume | 24 examples |" in text and "| pre-training | 2,048 tokens |" in text
    rows = study.workdir.rows(runs["perturb-s0-a32"].key)
    (loss,) = rows.value[(rows.updates == 3) & (rows.measure == "bits_per_token") & (rows.split == "align")]
    assert f"| bits_per_token | align | {loss:.6g} |" in text and "| score | samples |" in text
    study, folder = based
    text = (ej.export(folder / "w", "align-s0-base", tmp_path / "based") / "README.md").read_text()
    assert f"base, weights `{next(iter(study.sources.values())).digest[:16]}`" in text


@pytest.mark.parametrize("name", exports.MODELS)
def test_models_of_our_own_come_back_bit_for_bit(tmp_path, name):
    made, params = exports.model(name, param_dtype="bfloat16")
    out = exports.write(tmp_path / "out", made, params)
    source = open_source(out)
    back = Decoder(source.model_config(40, 16, param_dtype="bfloat16"))
    found = jax.device_get(source.load_params(back, tiny.mesh()))
    assert source.hf_config["torch_dtype"] == "bfloat16"
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        index = tuple(slice(0, min(sizes)) for sizes in zip(leaf.shape, wanted.shape, strict=True))
        index = tuple(slice(0, 40) if size == 48 else part for part, size in zip(index, wanted.shape, strict=True))
        np.testing.assert_array_equal(leaf[index].view(np.uint16), wanted[index].view(np.uint16))


def test_tensors_are_made_one_after_the_other_and_forgotten(tmp_path):
    alive, most = [], 0

    class Array(np.ndarray):
        """Can be watched."""

    def make(number: int) -> np.ndarray:
        nonlocal most
        made = np.full((40, 30), number, np.float32).view(Array)
        alive.append(weakref.ref(made))
        most = max(most, sum(reference() is not None for reference in alive))
        return made

    entries = [Entry(f"t{i}", (40, 30), np.dtype(np.float32), lambda i=i: make(i)) for i in range(7)]
    paths = write_tensors(tmp_path, entries, 10_000)  # two of 4,800 bytes each
    assert most <= 2 and [path.stat().st_size < 10_500 for path in paths] == [True] * 4
    found = Tensors(tmp_path)
    assert [float(found.read(f"t{i}").mean()) for i in range(7)] == list(range(7))
    wrong = Entry("t", (4,), np.dtype(np.float32), lambda: np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="was announced"):
        write_tensors(tmp_path, [wrong], 1e9)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_exists_is_replaced_only_when_asked_and_only_by_a_whole_one(own, tmp_path, monkeypatch):
    _, workdir = own
    out = ej.export(workdir, "pretrain-s0", tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already. Give a new folder, or --overwrite"):
        ej.export(workdir, "align-s0", out)
    for broken in ("write_model", "_put"):
        with monkeypatch.context() as patch:
            patch.setattr(
                export_lib, broken, lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left"))
            )
            for target in (out, tmp_path / "other"):
                with pytest.raises(UserError, match="cannot be written .No space left.. Nothing was left there"):
                    ej.export(workdir, "align-s0", target, overwrite=True)
        assert left(tmp_path) == ["out"] and (out / "model.safetensors").read_bytes() == before
    (out / "note.txt").write_text("old")
    ej.export(workdir, "align-s0", out, overwrite=True)
    assert left(tmp_path) == ["out"] and (out / "model.safetensors").read_bytes() != before
    assert not (out / "note.txt").exists()


def test_what_cannot_be_is_said_before_anything_is_written(own, tmp_path, monkeypatch):
    study, workdir = own
    refused = lambda match, *args, **kwargs: pytest.raises(UserError, match=match)  # noqa: E731
    with refused("--run=algin-s0: no such run in this study. Closest: align-s0"):
        ej.export(workdir, "algin-s0", tmp_path / "out")
    with refused(r"--updates=3: align-s0-\w+ has checkpoints after 2 \(16 examples\), 4 \(32 examples\) updates"):
        ej.export(workdir, "align-s0", tmp_path / "out", 3)
    with refused("--shard_gb=0: expected a positive number"):
        ej.export(workdir, "align-s0", tmp_path / "out", shard_gb=0)
    with refused("no study here"):
        ej.export(tmp_path / "nothing", "align-s0", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with refused("this is no folder"):
        ej.export(workdir, "align-s0", tmp_path / "file", overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("")
    with refused("holds other things than a model"):
        ej.export(workdir, "align-s0", tmp_path / "photos", overwrite=True)
    with refused("expected a folder on this machine"):
        ej.export(workdir, "align-s0", "gs://bucket/out")
    monkeypatch.setattr(export_lib.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with refused("GB are needed"):
        ej.export(workdir, "align-s0", tmp_path / "out")
    assert left(tmp_path) == ["file", "photos"]


def test_what_no_family_expresses_is_named(tmp_path):
    made, params = exports.model("llama", norm_place="post", attention_softcap=30.0)
    with pytest.raises(UserError, match="cannot express .*model.attention_softcap=30.0"):
        exports.write(tmp_path / "out", made, params)


def test_a_checkpoint_that_is_damaged_gone_or_of_other_weights_is_refused(own, based, tmp_path, monkeypatch):
    study, workdir = own
    (key,) = [run.key for run in study.runs if run.name == "align-s0"]
    hurt = Path(shutil.copytree(workdir, tmp_path / "hurt"))

    def restore(self, updates):
        raise Damaged(f"Checkpoint {self.folder / str(updates)} cannot be read (params: wrong checksum).")

    with monkeypatch.context() as patch:  # orbax leaves complaints behind where files are really damaged
        patch.setattr(Checkpoints, "restore_params", restore)
        with pytest.raises(
            UserError, match="4 cannot be read.*Run the study, which trains that part again, then export"
        ):
            ej.export(hurt, "align-s0", tmp_path / "out")
    shutil.rmtree(hurt / "runs" / key / "checkpoints")
    with pytest.raises(UserError, match="no checkpoints there yet"):
        ej.export(hurt, "align-s0", tmp_path / "out")
    for folder in (hurt / "data").glob("tokenizer-*"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="the tokenizer of the study is not there"):
        ej.export(hurt, "pretrain-s0", tmp_path / "out")
    recorded = json.loads((hurt / "study.json").read_text())
    del recorded["studies"]["small"]["export"]
    (hurt / "study.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match="recorded by an earlier version"):
        ej.export(hurt, "pretrain-s0", tmp_path / "out")

    _, folder = based
    recorded = json.loads((folder / "w" / "study.json").read_text())
    recorded["studies"]["based"]["bases"][0]["digest"] = "0" * 64
    other = Path(shutil.copytree(folder / "w", tmp_path / "other"))
    (other / "study.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match="the weights are not those that the study began with"):
        ej.export(other, "align-s0-base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_folder_and_leaves_the_workdir_alone(own, tmp_path, capsys):
    _, workdir = own
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    flags = [f"--workdir={workdir}", "--run=align-s0", f"--out={tmp_path / 'out'}"]
    assert ej.export.__name__ == "elastic_jax.export"
    assert ej.export.main([*flags, "--updates=2"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    assert ej.export.main(flags) == 2
    assert "error: --out=" in capsys.readouterr().err
