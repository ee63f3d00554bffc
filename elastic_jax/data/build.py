"""What does this study train and measure on?

`build` makes everything once and keeps an index of it. A second call opens what the index names, after a look
at the sizes and times of the raw files; only when those differ are the files' contents compared.
"""

import dataclasses
import io
import json
import logging
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.data import packing, sources, study_text, study_universe
from elastic_jax.data.files import digest_of, sha256_of_file, write_bytes, write_text
from elastic_jax.data.parts import Parts
from elastic_jax.data.prepared import FORMAT, Damaged, Prepared, local_path, open_prepared, sweep
from elastic_jax.data.tasks import Probe
from elastic_jax.data.templates import is_chat
from elastic_jax.data.tokenizers import Tokenizer, load, load_pretrained
from elastic_jax.data.universe import Universe
from elastic_jax.errors import UserError, closest
from elastic_jax.measures.scorers import ClassifierScorer, PosteriorScorer, Scorer

KINDS = {"universe": study_universe, "text": study_text}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StudyData:
    """What a study trains and measures on.

    Attributes:
      tokenizer: of all sets.
      train: "pretrain" (absent where nothing is pre-trained), "align" and "perturb", and the roles of `data.tasks`.
      heldout: the same names, kind "text", pack "none"; never trained on.
      log_prob: universe only, else {}: exact log p in nats of what the loss counts in every held-out row, in
        their order, float64 [n]. That is the whole text with its final <eos>, or the answer given its prompt.
      prompts: [n, P] int32, for sampling: what the model is given, the token that begins a document included. Shorter ones are padded
        on the left.
      scorer: P(aligned behaviour | text).
      facts: rows of stage "data" for the table of measures.
      digest: of all of the above.
      packed_batches: the roles whose examples are packed batch by batch when they are read (`data.pack`).
      prompt_lengths: [n], how many tokens of each prompt are no padding; None where all of them have P.
      probes: by role, how the behaviour of each of `data.tasks` is measured; {} on text files, which name no judge of theirs.
    """

    tokenizer: Tokenizer
    train: dict[str, Prepared]
    heldout: dict[str, Prepared]
    log_prob: dict[str, np.ndarray]
    prompts: np.ndarray
    scorer: Scorer
    facts: list[dict[str, Any]]
    digest: str
    packed_batches: frozenset[str] = frozenset()
    prompt_lengths: np.ndarray | None = None
    probes: dict[str, Probe] = dataclasses.field(default_factory=dict)

    def prompt_rows(self) -> list[list[int]]:
        """The tokens of every prompt, without padding."""
        return _unpadded(self.prompts, self.prompt_lengths)


def build(
    data_config: Mapping[str, Any], root: str | os.PathLike, *, objectives: Mapping[str, str], pretrain: bool = True
) -> StudyData:
    """The data of a study, made or opened.

    Args:
      data_config: section `data` of the config; fields that are absent have the values of
        `study_universe.DEFAULTS` or `study_text.DEFAULTS`.
      root: folder for prepared data, on a local or mounted disk.
      objectives: for "align" and "perturb" the kind of rows they train on, "text" or "pair".
      pretrain: False where the study starts from a checkpoint of others: then texts of pre-training are held out, to be measured
        on, and none is trained on.

    Raises:
      UserError: a field is unknown, or files, columns, labels or row counts do not allow what is asked.
    """
    folder = local_path(root)
    config = resolve(data_config)
    objectives = _checked_objectives(objectives)
    packing.check(config["pack"], objectives)
    sweep(folder)
    # Which rows, merges and weights come out depends on these libraries too.
    libraries = {name: metadata.version(name) for name in ("tokenizers", "scikit-learn", "numpy")}
    key = digest_of([FORMAT, _determining(config), objectives, libraries, *([] if pretrain else ["no pre-training"])])
    index = folder / f"study-{key[:12]}.json"
    opened = _open(index, config)
    if opened is not None:
        return opened
    more = {} if pretrain else dict(pretrain=False)
    parts = KINDS[config["kind"]].make(config, folder, objectives, **more)
    stamps = sources.stamps(config) if config["kind"] == "text" else []
    return _named(parts, _store(index, parts, stamps), config)


def resolve(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """The section as a plain dict with every field present.

    Raises:
      UserError: an unknown kind or field, or a value of another type than the default's.
    """
    given = data_config.to_dict() if hasattr(data_config, "to_dict") else dict(data_config)  # pyright: ignore
    kind = given.get("kind")
    if kind not in KINDS:
        raise UserError(f"data.kind={kind!r} is unknown. {closest(str(kind), KINDS)}")
    return _merged(KINDS[kind].DEFAULTS, given, "data")


def _determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the prepared data depends on: whether it is packed when it is read makes no difference to it.

    `pack.pretrain` and `tasks` count only where they are not the default, so that what was prepared before there was a choice is still
    found.
    """
    newer = ("pack",) if config["tasks"]["names"] else ("pack", "tasks")
    kept = {name: value for name, value in config.items() if name not in newer}
    if config["kind"] == "text":
        kept |= _of_text(config)
    pack = config["pack"]["pretrain"]
    return kept if pack == KINDS[config["kind"]].DEFAULTS["pack"]["pretrain"] else kept | dict(pack=pack)


def _of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """What depends on a tokenizer's content rather than on where it lies. Fields that are newer than data count where they are used."""
    tokenizer, kept = dict(config["tokenizer"]), {}
    path, layout = tokenizer.pop("path"), tokenizer.pop("layout")
    kept["tokenizer"] = tokenizer
    if path:
        pretrained = load_pretrained(path, layout)
        kept["tokenizer"] = tokenizer | dict(digest=pretrained.digest)
        if is_chat(config["template"]):
            kept["template"] = pretrained.chat(config["template"].partition(":")[2]).text
    if config["columns"]["prompt"]:
        kept["prompt_lengths"] = "any"  # once all prompts had one
    return kept


def _unpadded(prompts: np.ndarray, lengths: np.ndarray | None) -> list[list[int]]:
    if lengths is None:
        return prompts.tolist()
    return [row[len(row) - length :] for row, length in zip(prompts.tolist(), lengths.tolist(), strict=True)]


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any], path: str) -> dict[str, Any]:
    merged = dict(defaults)
    for name, value in given.items():
        field = f"{path}.{name}"
        if name not in defaults:
            raise UserError(f"{field}: no such field. {closest(name, defaults)}")
        default = defaults[name]
        if isinstance(default, dict):
            if not isinstance(value, Mapping):
                raise UserError(f"{field}={value!r}: a group of fields is expected: {', '.join(default)}.")
            merged[name] = _merged(default, value, field)
            continue
        if path == "data.labels":
            merged[name] = str(value)
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise UserError(f"{field}={value!r}: a value of type {type(default).__name__} is expected.")
        merged[name] = value
    return merged


def _checked_objectives(objectives: Mapping[str, str]) -> dict[str, str]:
    whole = {name: objectives.get(name, "text") for name in ("align", "perturb")}
    for name, kind in whole.items():
        if kind not in ("text", "pair"):
            raise UserError(f"objectives[{name!r}]={kind!r}: rows are of kind text or pair.")
    return whole


def _digest(parts: Parts) -> str:
    return digest_of(
        [
            parts.tokenizer.digest,
            {name: prepared.digest for name, prepared in parts.train.items()},
            {name: prepared.digest for name, prepared in parts.heldout.items()},
            _unpadded(parts.prompts, parts.prompt_lengths),
            parts.scorer.digest,
            *([[probe.prompts.tolist(), probe.scorer.digest] for probe in parts.probes.values()]),
        ]
    )


def _store(index: Path, parts: Parts, stamps: list[dict[str, Any]]) -> str:
    """Writes the index and returns the digest of all parts."""
    arrays = index.with_suffix(".npz")
    named = {f"log_prob/{name}": values for name, values in parts.log_prob.items()}
    named |= {f"probe/{name}": probe.prompts for name, probe in parts.probes.items()}
    if parts.prompt_lengths is not None:
        named["prompt_lengths"] = parts.prompt_lengths
    buffer = io.BytesIO()
    np.savez(buffer, prompts=parts.prompts, **named)  # pyright: ignore[reportArgumentType]
    write_bytes(arrays, buffer.getvalue())
    digest = _digest(parts)
    content = dict(
        train={name: prepared.folder.name for name, prepared in parts.train.items()},
        heldout={name: prepared.folder.name for name, prepared in parts.heldout.items()},
        tokenizer=parts.tokenizer_folder.name,
        scorer=_described(parts.scorer),
        probes={name: _described(probe.scorer) for name, probe in parts.probes.items()},
        arrays_sha256=sha256_of_file(arrays),
        facts=parts.facts,
        digest=digest,
    )
    write_text(index, json.dumps(dict(content=content, sha256=digest_of(content), files=stamps), indent=1))
    return digest


def _open(index: Path, config: Mapping[str, Any]) -> StudyData | None:
    """What the index names; None when anything is missing, changed or damaged."""
    folder = index.parent
    if not index.is_file():
        return None
    try:
        whole = json.loads(index.read_text("utf-8"))
        content = whole["content"]
        if whole["sha256"] != digest_of(content):
            raise Damaged(f"{index}: the index was changed after it was written")
        if config["kind"] == "text":
            stamps = sources.unchanged(whole["files"], config)
            if stamps is None:
                _log.info("The raw files of data.train, data.test or data.prose changed; preparing them again.")
                return None
            if stamps != whole["files"]:
                write_text(index, json.dumps(whole | dict(files=stamps), indent=1))
        if sha256_of_file(index.with_suffix(".npz")) != content["arrays_sha256"]:
            raise Damaged(f"{index.with_suffix('.npz')}: its SHA-256 is not the one in the index")
        with np.load(index.with_suffix(".npz"), allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        parts = Parts(
            tokenizer=load(folder / content["tokenizer"]),
            tokenizer_folder=folder / content["tokenizer"],
            train={name: open_prepared(folder / place) for name, place in content["train"].items()},
            heldout={name: open_prepared(folder / place) for name, place in content["heldout"].items()},
            log_prob={n.removeprefix("log_prob/"): a for n, a in held.items() if n.startswith("log_prob/")},
            prompts=held["prompts"],
            prompt_lengths=held.get("prompt_lengths"),
            probes={
                name: Probe(held[f"probe/{name}"], _scorer(stored, folder, config))
                for name, stored in content.get("probes", {}).items()
            },
            scorer=_scorer(content["scorer"], folder, config),
            facts=content["facts"],
        )
        if _digest(parts) != content["digest"]:
            raise Damaged(f"{index}: a part of the data is not the one the index names")
    except (Damaged, UserError, OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("Prepared data is damaged and will be rebuilt: %s", error)
        return None
    return _named(parts, content["digest"], config)


def _named(parts: Parts, digest: str, config: Mapping[str, Any]) -> StudyData:
    packed = frozenset(name for name in ("align", "perturb") if config["pack"][name] != "none")
    return StudyData(
        tokenizer=parts.tokenizer,
        train=parts.train,
        heldout=parts.heldout,
        log_prob=parts.log_prob,
        prompts=parts.prompts,
        prompt_lengths=parts.prompt_lengths,
        probes=parts.probes,
        scorer=parts.scorer,
        packed_batches=packed,
        facts=parts.facts,
        digest=digest,
    )


def _described(scorer: Scorer) -> dict[str, Any]:
    """What `_scorer` opens it from."""
    if isinstance(scorer, PosteriorScorer):
        return dict(kind="posterior", latent=scorer.latent, complement=scorer.complement)
    return dict(kind="classifier", folder=f"scorer-{scorer.digest[:12]}")


def _scorer(stored: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> Scorer:
    if stored["kind"] == "posterior":
        universe = Universe(topics=config["topics"], size=config["size"])
        return PosteriorScorer(universe, stored["latent"], stored.get("complement", False))
    scorer = ClassifierScorer.load(folder / stored["folder"])
    if scorer is None:
        raise Damaged(f"{folder / stored['folder']}: no whole scorer")
    return scorer
