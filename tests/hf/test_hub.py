"""Is only what is needed fetched from the hub, and does every refusal of it say how to go on?

The hub is a stand-in: a function in the place of `huggingface_hub.snapshot_download` that copies a folder or raises what the
package raises.
"""

import builtins
import fnmatch
import types
from pathlib import Path

import hf_checkpoints
import pytest

from elastic_jax.errors import UserError
from elastic_jax.hf import hub
from elastic_jax.hf.source import open_source

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import errors  # noqa: E402

COMMIT = "0123456789" * 4


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A hub with one model; returns what was asked of it."""
    monkeypatch.chdir(tmp_path)
    asked = {}

    def snapshot_download(repo, *, revision, allow_patterns, ignore_patterns):
        asked.update(repo=repo, revision=revision, allow=allow_patterns, ignore=ignore_patterns)
        return str(
            hf_checkpoints.write(tmp_path / "hub" / "snapshots" / COMMIT, hf_checkpoints.config("neox"), files=2)
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_an_id_with_a_revision(shared, tmp_path):
    source = open_source("owner/model-70m", "step3000")
    assert source.folder == tmp_path / "hub" / "snapshots" / COMMIT and source.revision == COMMIT
    assert source.family.title == "GPT-NeoX"
    assert (shared["repo"], shared["revision"]) == ("owner/model-70m", "step3000")
    open_source("gpt2")
    assert (shared["repo"], shared["revision"]) == ("gpt2", None)


def test_a_folder_of_that_name_goes_first(shared, tmp_path):
    hf_checkpoints.write(tmp_path / "owner" / "model", hf_checkpoints.config("llama"))
    assert open_source("owner/model").family.title == "Llama" and not shared


@pytest.mark.parametrize(
    "name, fetched",
    [
        ("config.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tokenizer.json", True),
        ("tokenizer.model", True),
        ("qwen.tiktoken", True),
        ("chat_template.jinja", True),
        ("merges.txt", True),
        ("pytorch_model-00001-of-00002.bin", False),
        ("consolidated.safetensors", False),
        ("model.fp16.safetensors", False),
        ("original/consolidated.00.pth", False),
        ("onnx/config.json", False),
        ("tf_model.h5", False),
        ("README.md", False),
    ],
)
def test_what_is_fetched(shared, name, fetched):
    open_source("owner/model")
    asked = [any(fnmatch.fnmatch(name, pattern) for pattern in shared[kind]) for kind in ("allow", "ignore")]
    assert (asked[0] and not asked[1]) == fetched


def raising(monkeypatch, error):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def http(kind):
    """An error as the package raises it, whatever its version wants to be told."""
    response = types.SimpleNamespace(status_code=401, headers={}, request=None, url="", text="")
    try:
        return kind("what the hub says", response=response)
    except TypeError:
        return kind("what the hub says")


@pytest.mark.parametrize(
    "kind, words",
    [
        (errors.GatedRepoError, "the model is gated. Accept its terms.*hf auth login.*give its folder as base.hf"),
        (errors.RepositoryNotFoundError, "no such folder here and no such model on the hub, or it is private"),
        (errors.RevisionNotFoundError, "no such revision. It has main, step1000."),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached from here.*give its folder as base.hf"),
        (errors.OfflineModeIsEnabled, "the hub cannot be reached from here"),
        (ConnectionError, "could not be downloaded: what the hub says\n.*give its folder as base.hf"),
    ],
)
def test_refusals(monkeypatch, tmp_path, kind, words):
    monkeypatch.chdir(tmp_path)
    refs = types.SimpleNamespace(
        branches=[types.SimpleNamespace(name="main"), types.SimpleNamespace(name="step1000")], tags=[]
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", lambda self, repo: refs)
    error = http(kind) if issubclass(kind, errors.HfHubHTTPError) else kind("what the hub says")
    raising(monkeypatch, error)
    with pytest.raises(UserError, match="base.hf=owner/model, base.revision=step3") as raised:
        open_source("owner/model", "step3")
    assert hub.re.search(words, str(raised.value)), raised.value


def test_a_model_of_pickles(shared, tmp_path, monkeypatch):
    def snapshot_download(*_, **__):
        folder = tmp_path / "hub"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    names = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, revision: names)
    with pytest.raises(UserError, match="base.hf=owner/model: .*only pickle files.*pytorch_model.bin"):
        open_source("owner/model")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'elastic_jax\[hf\]'"):
        open_source("owner/model")
    local = hf_checkpoints.write(tmp_path / "model", hf_checkpoints.config("llama"))
    assert open_source(local).digest


@pytest.mark.parametrize("where, yes", [("gpt2", True), ("owner/model-1.1B", True), ("a/b/c", False), ("/a", False), ("./a", False), ("a/", False), ("", False), ("..", False)])  # fmt: skip
def test_what_an_id_looks_like(where, yes):
    assert hub.is_id(where) == yes


def test_the_cache_answers_without_a_network(tmp_path, monkeypatch):
    """The package itself, offline, on a cache as it lays it out."""
    cache = tmp_path / "cache" / "models--owner--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "step3").write_text(COMMIT)
    hf_checkpoints.write(cache / "snapshots" / COMMIT, hf_checkpoints.config("neox"))
    download = huggingface_hub.snapshot_download

    def offline(repo, **kwargs):
        return download(repo, cache_dir=tmp_path / "cache", local_files_only=True, **kwargs)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    source = open_source("owner/model", "step3")
    assert source.revision == COMMIT and Path(source.folder).is_dir()
    with pytest.raises(
        UserError, match="base.revision=step4: the hub cannot be reached from here, and its cache does not hold"
    ):
        open_source("owner/model", "step4")
