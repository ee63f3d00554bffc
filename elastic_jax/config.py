"""What did the user ask for?

A config is an `ml_collections.ConfigDict` made by a Python file: `get_config(arg)` starts from `default()` and chooses. The same
loader serves the command line and a notebook: `load("configs/quickstart.py:tiny", {"model.size": "300k"})`.
"""

import ast
import contextlib
import copy
import dataclasses
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from elastic_jax import objectives
from elastic_jax.data import packing, study_text, study_universe
from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError, closest
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.train.accumulate import check_accumulate
from elastic_jax.train.optim import OptimConfig, optim_config

# A ConfigDict. ml_collections types a field as a union of everything that a field can be, a group included, which no use of a
# nested field passes.
Config: TypeAlias = Any


def universe_data() -> Config:
    """Data drawn from the embedded universe: exact probabilities, no download."""
    return ConfigDict(copy.deepcopy(study_universe.DEFAULTS))


def text_data() -> Config:
    """Data from local files or tensorflow-datasets; README.md, "Your own data", describes the fields."""
    return ConfigDict(copy.deepcopy(study_text.DEFAULTS))


def stage(batch_size: int, lr: float, **optim: Any) -> dict[str, Any]:
    """What every stage has: objective, batch and optimiser."""
    optim_fields = {field.name: field.default for field in dataclasses.fields(OptimConfig)}
    return dict(
        objective=dict(name="sft"),
        batch_size=batch_size,
        accumulate=1,
        reduce="step",  # what devices exchange while they accumulate: `train.step.make_train_step`
        optim=dict(optim_fields, lr=lr, **optim),
    )


def default(data: Config | None = None) -> Config:
    """Every field a study has, with values that suit the embedded universe on two cores."""
    return ConfigDict(
        dict(
            name="study",
            seeds=(0, 1, 2),
            model=dict(
                {f.name: None for f in dataclasses.fields(ModelConfig) if f.name not in ("used_vocab", "seq_len")},
                size="100k",
            ),
            mesh=dict(run=1, data=-1, fsdp=1, tensor=1),
            population="auto",  # runs trained together as one program: "auto", "off" or how many
            data=data or universe_data(),
            pretrain=dict(stage(64, 3e-3, schedule="cosine", warmup=20, final=0.1), tokens=2_000_000),
            align=dict(stage(16, 3e-4), volumes=(256, 1024, 4096)),
            perturb=dict(stage(16, 3e-4), volumes=(16, 64, 256, 1024), control=True),
            measures=dict(
                per_octave=1,  # recorded points for each doubling of the number of updates
                batch_size=128,
                samples=256,
                temperature=1.0,
                top_p=1.0,
                sample_tokens=0,  # 0 fills the row
                keep=4,  # samples whose text is kept at each point
                kl_eps=0.01,
            ),
            checkpoint_seconds=60.0,
            log=dict(seconds=10.0, tensorboard=True),
            # An update that takes `factor` times the median, and this long at the least, ends the process (exit code 75).
            watchdog=dict(factor=20.0, floor_seconds=300.0),  # factor=0 switches it off
        ),
        convert_dict=True,
    )


def load(spec: str | Config, overrides: Mapping[str, Any] | None = None) -> Config:
    """A config from `path/to/file.py` or `path/to/file.py:argument`, with `{"field.subfield": value}` applied.

    Raises:
      UserError: no such file, a file without `get_config`, an unknown argument or field, or a value of another type.
    """
    config = spec if isinstance(spec, ConfigDict) else _from_file(spec)
    config = config.copy_and_resolve_references()
    for path, value in (overrides or {}).items():
        _override(config, path, value, "the config" if isinstance(spec, ConfigDict) else spec)
    return config


def _from_file(spec: str) -> Config:
    name, _, argument = spec.partition(".py:")
    path = Path(name + ".py" if ".py:" in spec else spec)
    if not path.is_file():
        there = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"--config={spec}: no such file. {closest(str(path), there)}")
    module_spec = importlib.util.spec_from_file_location(f"elastic_jax_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config={spec}: expected a Python file (.py) with a function get_config().")
    module = importlib.util.module_from_spec(module_spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        module_spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UserError(f"--config={spec}: {path} has no function get_config().")
        takes_argument = bool(inspect.signature(get_config).parameters)
        if argument and not takes_argument:
            raise UserError(f"--config={spec}: {path} takes no argument after the colon.")
        made = get_config(argument) if takes_argument else get_config()
        if not isinstance(made, ConfigDict):
            raise UserError(
                f"--config={spec}: get_config() returned {type(made).__name__}, expected the config that it made."
            )
        return made
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config={spec}: {path} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = before


def parse_argument(argument: str, *flags: str, **options: Any) -> Config:
    """The part after the colon, `flag,option=value`, for use in recipes: `file.py:tiny,task=refusal`.

    Raises:
      UserError: a name that the recipe does not declare.
    """
    parsed = ConfigDict({**dict.fromkeys(flags, False), **options})
    for part in filter(None, argument.split(",")):
        name, given, value = part.partition("=")
        if name not in parsed:
            raise UserError(f"config argument {part!r}: unknown. {closest(name, parsed)}")
        parsed[name] = _convert(value, parsed[name], f"config argument {name}") if given else True
    return parsed


def _override(config: Config, path: str, value: Any, source: str) -> None:
    node, *parents = config, *path.split(".")
    for depth, name in enumerate(parents):
        last = depth + 1 == len(parents)
        if last and depth and parents[depth - 1] == "objective" and isinstance(node, ConfigDict) and name not in node:
            node[name] = _convert(value, None, f"--config.{path}")  # checked against the method in `validate`
            return
        if not isinstance(node, ConfigDict) or name not in node:
            before = ".".join(parents[:depth])
            known = [f"{before}.{key}".lstrip(".") for key in node] if isinstance(node, ConfigDict) else [before]
            raise UserError(f"--config.{path}: no such field in {source}. {closest(path, known)}")
        if last:
            node[name] = _convert(value, node[name], f"--config.{path}")
        node = node[name]


def _convert(value: Any, old: Any, field: str) -> Any:
    """A value from the command line in the type of the one it replaces."""
    parsed = value
    if isinstance(value, str) and not isinstance(old, str):
        try:
            parsed = ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value))
        except (ValueError, SyntaxError):
            parsed = value
    if isinstance(old, ConfigDict):
        if isinstance(parsed, Mapping):
            return ConfigDict(dict(parsed))
        raise UserError(f"{field}={value}: this is a group of fields ({', '.join(old)}); set one of them.")
    if old is None or parsed is None:
        return parsed
    if isinstance(old, tuple | list):
        parsed = parsed if isinstance(parsed, tuple | list) else (parsed,)
        if old and not all(isinstance(item, type(old[0])) for item in parsed):
            raise UserError(f"{field}={value}: expected {type(old[0]).__name__} values separated by commas.")
        return tuple(parsed)
    if isinstance(old, float) and isinstance(parsed, int) and not isinstance(parsed, bool):
        return float(parsed)
    if isinstance(old, int) and isinstance(parsed, float) and parsed.is_integer():
        return int(parsed)
    if isinstance(old, str):
        return str(parsed)
    if type(parsed) is not type(old):
        raise UserError(f"{field}={value}: expected {type(old).__name__}, as in {old!r}.")
    return parsed


def plain(config: Config) -> dict[str, Any]:
    """The config as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def fingerprint(config: Config) -> str:
    """Changes whenever a result might."""
    return digest_of(plain(config))


def validate(config: Config) -> None:
    """Check what can be checked before any data is read.

    Raises:
      UserError: naming the field and what would do.
    """
    kinds = {"text": text_data, "universe": universe_data}
    if config.data.get("kind") not in kinds:
        raise UserError(f"data.kind={config.data.get('kind')!r}: expected one of {', '.join(kinds)}.")
    _known_fields(config, default(kinds[config.data.kind]()))
    if not config.name or not all(ch.isalnum() or ch in "-_." for ch in config.name):
        raise UserError(f"name={config.name!r}: expected letters, digits, '-', '_' or '.'.")
    seeds = tuple(config.seeds)
    if not seeds or len(set(seeds)) != len(seeds) or not all(_is_whole(seed) and 0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"seeds={seeds}: expected at least one whole number from 0 to 2^32 - 1, each once.")
    _check_model(config)
    _check_execution(config)
    for name in ("pretrain", "align", "perturb"):
        section = config[name]
        with _field_of(name):
            optim_config(section.optim.to_dict())
        with _field_of(name):
            objectives.make(section.objective.to_dict())
        if section.batch_size < 1:
            raise UserError(f"{name}.batch_size={section.batch_size}: expected 1 or more.")
        check_accumulate(name, section.batch_size, section.accumulate, section.reduce)
    if objectives.make(config.pretrain.objective.to_dict()).rows != "text":
        raise UserError(
            f"pretrain.objective={config.pretrain.objective.name}: pre-training reads plain texts; use sft."
        )
    made = {name: objectives.make(config[name].objective.to_dict()) for name in ("pretrain", "align", "perturb")}
    packing.check(config.data.pack, {name: objective.rows for name, objective in made.items()})
    for name, objective in made.items():
        if config.data.pack[name] == "best_fit" and not objective.packs:
            raise UserError(
                f'data.pack.{name}="best_fit": {objective.name} says something about each row, so a row has to be one example. '
                f'Use data.pack.{name}="none".'
            )
    for name in ("align", "perturb"):
        _check_volumes(name, config[name].volumes, config[name].batch_size)
    per_update = config.pretrain.batch_size * config.data.seq_len
    if config.pretrain.tokens < per_update:
        raise UserError(
            f"pretrain.tokens={config.pretrain.tokens:,} makes zero updates: one update takes batch_size x seq_len = "
            f"{per_update:,} tokens. Raise pretrain.tokens or lower pretrain.batch_size."
        )


def _known_fields(config: Config, known: Config, path: str = "") -> None:
    for name, value in config.items():
        if name not in known:
            raise UserError(f"{path}{name}: no such field. {closest(name, known)}")
        if value is None and known[name] is not None:
            raise UserError(f"{path}{name}=None: expected {type(known[name]).__name__}, as in {known[name]!r}.")
        if isinstance(known[name], ConfigDict) and name != "objective":
            if not isinstance(value, ConfigDict):
                raise UserError(f"{path}{name}={value!r}: expected a group with {', '.join(known[name])}.")
            _known_fields(value, known[name], f"{path}{name}.")
    for name in known:
        if name not in config:
            raise UserError(f"{path}{name}: missing. Start the config from elastic_jax.config.default().")


@contextlib.contextmanager
def _field_of(stage: str) -> Iterator[None]:
    """Messages about `optim.lr` become ones about `align.optim.lr`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{stage}.{error}") from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_model(config: Config) -> None:
    section = {name: value for name, value in config.model.items() if value is not None}
    types = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    for name, value in section.items():
        if types.get(name) is bool and not isinstance(value, bool):
            raise UserError(f"model.{name}={value!r}: expected true or false.")
        if types.get(name) is float and not (_is_whole(value) or isinstance(value, float)):
            raise UserError(f"model.{name}={value!r}: expected a number.")
    model_config(section, vocab_size=1, seq_len=config.data.seq_len)  # the vocabulary comes with the data


def _check_execution(config: Config) -> None:
    """What is measured, and when things are written."""
    measures = config.measures
    for field, value, fits, wanted in (
        ("measures.per_octave", measures.per_octave, measures.per_octave >= 1, "1 or more"),
        ("measures.batch_size", measures.batch_size, measures.batch_size >= 1, "1 or more"),
        ("measures.samples", measures.samples, measures.samples >= 2, "2 or more: the score has a standard error"),
        ("measures.temperature", measures.temperature, measures.temperature >= 0, "0 (the likeliest token) or more"),
        ("measures.top_p", measures.top_p, 0 < measures.top_p <= 1, "a probability above 0"),
        ("measures.sample_tokens", measures.sample_tokens, measures.sample_tokens >= 0, "0 (fill the row) or more"),
        ("measures.keep", measures.keep, 0 <= measures.keep <= measures.samples, "from 0 to measures.samples"),
        ("measures.kl_eps", measures.kl_eps, measures.kl_eps > 0, "above 0, in nats per token"),
        ("checkpoint_seconds", config.checkpoint_seconds, config.checkpoint_seconds > 0, "above 0"),
        (
            "population",
            config.population,
            _is_population(config.population),
            "auto, off, or the number of runs: 1 or more",
        ),
        ("log.seconds", config.log.seconds, config.log.seconds >= 0, "0 or more"),
        (
            "watchdog.factor",
            config.watchdog.factor,
            config.watchdog.factor == 0 or config.watchdog.factor > 1,
            "0 (off), or how many times longer than the median an update may take: above 1",
        ),
        ("watchdog.floor_seconds", config.watchdog.floor_seconds, config.watchdog.floor_seconds >= 0, "0 or more"),
    ):
        if not fits:
            raise UserError(f"{field}={value}: expected {wanted}.")
    if measures.temperature == 0 and measures.top_p < 1:
        raise UserError(
            f"measures.top_p={measures.top_p} has no effect with measures.temperature=0, which takes the likeliest token. "
            "Set measures.top_p=1."
        )


def _is_population(value: Any) -> bool:
    return value in ("auto", "off") or (str(value).isdecimal() and int(value) >= 1)


def _check_volumes(name: str, volumes: Any, batch_size: int) -> None:
    whole = all(_is_whole(volume) for volume in volumes)
    if not volumes or not whole or list(volumes) != sorted(set(volumes)) or volumes[0] < 1:
        raise UserError(f"{name}.volumes={tuple(volumes)}: expected growing numbers of examples, at least one.")
    for volume in volumes:
        if volume < batch_size:
            raise UserError(
                f"{name}.volumes: {volume} examples in batches of {batch_size} make zero optimizer updates, so nothing would "
                f"change. Use at least {batch_size}, or a smaller {name}.batch_size."
            )
        if volume % batch_size:
            down = volume // batch_size * batch_size
            raise UserError(
                f"{name}.volumes: {volume} examples are not a whole number of batches of {batch_size}. Use {down} or "
                f"{down + batch_size}, or a {name}.batch_size that divides {volume}."
            )
