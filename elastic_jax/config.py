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

from elastic_jax import base, objectives
from elastic_jax.data import packing, study_text, study_universe
from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError, closest
from elastic_jax.measures.scorers import spec as specs
from elastic_jax.models import lora
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.models.filters import Choice
from elastic_jax.train import last_batch
from elastic_jax.train.accumulate import check_accumulate
from elastic_jax.train.optim import OptimConfig, optim_config

# A ConfigDict. ml_collections types a field as a union of everything that a field can be, a group included, which no use of a
# nested field passes.
Config: TypeAlias = Any

PUBLISHED = ("figure 4", "figure 5", "figure 6", "table 1", "table 3")
# Of a study that pre-trains and names neither a size nor a whole shape.
DEFAULT_SIZE = "100k"
_SHAPE = frozenset({"layers", "embed", "heads", "kv_heads", "head_dim", "mlp"})
_SEVERAL = (
    "base.hf",
    "base.revision",
    "base.tokens",
)  # one value or a tuple; the texts are texts, whatever they look like


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
            published="",  # what of the elasticity paper is drawn beside the study: "figure 4", 5 or 6, "table 1" or "table 3"
            seeds=(0, 1, 2),
            model=dict(
                {f.name: None for f in dataclasses.fields(ModelConfig) if f.name not in ("used_vocab", "seq_len")},
                size=None,  # DEFAULT_SIZE, unless `base.hf` or the other fields say what the model is
            ),
            lora=dict(lora.DEFAULTS),  # of align and perturb: `models.lora`; rank 0 trains all parameters
            base=dict(base.DEFAULTS),  # checkpoints of others instead of pre-training: `elastic_jax.base`
            mesh=dict(run=1, data=-1, fsdp=1, tensor=1),
            population="auto",  # runs trained together as one program: "auto", "off" or how many
            at_once="off",  # runs trained side by side, each in a thread: "off", how many, or "auto" (`study.threads`)
            data=data or universe_data(),
            pretrain=dict(stage(64, 3e-3, schedule="cosine", warmup=20, final=0.1), tokens=2_000_000),
            # last_batch: of a volume that is no whole number of batches, "drop", "flush" or "pad" (`train.last_batch`); "whole" has none
            align=dict(stage(16, 3e-4), last_batch="whole", volumes=(256, 1024, 4096)),
            perturb=dict(stage(16, 3e-4), last_batch="whole", volumes=(16, 64, 256, 1024), control=True),
            # Table 1 of the paper: points of the alignment, each trained on what another of them writes (`study.tree.Cross`).
            resistance=dict(
                stage(16, 3e-4),
                slices=(),  # where they end, as shares of the largest of align.volumes: (0.25, 0.5, 0.75); () trains none
                queries=256,  # answers that are trained on, once
                heldout=64,  # and further ones, measured on alone
                temperature=0.05,
                top_k=0,
                top_p=0.95,
                length=0,  # tokens of an answer; 0 fills the row
                equal_tokens=False,  # cut the answers of both directions, query by query, to their common length
                orders=(),  # the slices trained in other orders too, such as ("321",)
                other_task=False,  # and a pair of which one was trained on the data of perturb instead
            ),
            # Beside every perturbation of an aligned model so many random changes of the weights of the same size: `study.tree.noise`.
            noise=dict(draws=0),
            # The tasks of `data.tasks`, which are three, one after the other in every order (`study.tree.order`).
            order=dict(stage(16, 3e-4), volume=0),  # examples of each task; 0 trains none
            measures=dict(
                per_octave=1,  # recorded points for each doubling of the number of updates; 0: at the volumes alone
                batch_size=128,
                samples=256,
                temperature=1.0,
                top_k=0,  # 0 for all tokens
                top_p=1.0,
                stop=(),  # texts that end a sample, beside the tokenizer's own ends
                sample_tokens=0,  # 0 fills the row
                keep=4,  # samples whose text is kept at each point
                scorers=(),  # further judges of the samples, such as "refusal": docs/scorers.md
                kl_eps=0.01,
            ),
            checkpoint_seconds=60.0,
            log=dict(seconds=10.0, tensorboard=True),
            # An update that takes `factor` times the median, and this long at the least, ends the process (exit code 75); so does anything
            # else, such as a save or the measures of a point, that takes `patience_seconds`, 0 for as long as it likes.
            watchdog=dict(factor=20.0, floor_seconds=300.0, patience_seconds=7200.0),  # factor=0 switches it off
            variants=dict(),  # name -> the fields that differ in it: several studies, reported as one
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
        if last and path in _SEVERAL:
            plain_text = path != "base.tokens" and isinstance(value, str) and value[:1] not in ("(", "[")
            with node.ignore_type():
                node[name] = value if plain_text else _convert(value, None, f"--config.{path}")
        elif last:
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
        if parsed == "":
            return ()
        if isinstance(parsed, str) and old and isinstance(old[0], str):
            parsed = tuple(part.strip() for part in parsed.split(","))
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


def variants(config: Config) -> dict[str, Config]:
    """The studies that a config describes: itself under "", or one for each of its `variants`, named `<config>.<variant>`.

    Raises:
      UserError: a name that cannot be part of a file's, no fields in a variant, or one that the config does not have.
    """
    if not config.get("variants"):
        return {"": config}
    made = {}
    for name, fields in config.variants.items():
        if not name or not all(ch.isalnum() or ch in "-_" for ch in name):
            raise UserError(f"variants: {name!r} is no name. Use letters, digits, '-' and '_'.")
        if not isinstance(fields, ConfigDict) or not list(fields):
            raise UserError(
                f"variants.{name}={fields!r}: expected the fields that differ, such as dict(model=dict(size='1m'))."
            )
        variant = config.copy_and_resolve_references()
        variant.variants = ConfigDict()
        for path, value in _leaves(fields):
            if path.partition(".")[0] in ("name", "variants"):
                raise UserError(
                    f"variants.{name}.{path}: a variant has the name of the config and its own, and no variants."
                )
            _override(variant, path, value, f"the config (variants.{name})")
        variant.name = f"{config.name}.{name}"
        made[name] = variant
    return made


def _leaves(group: Config, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def model_section(config: Config) -> dict[str, Any]:
    """The fields of `model` that are set, with the size that a study has by default."""
    section = {name: value for name, value in config.model.items() if value is not None}
    if "size" not in section and not section.keys() >= _SHAPE:
        section["size"] = DEFAULT_SIZE
    return section


def stages(config: Config) -> tuple[str, ...]:
    """The stages that are trained: with a base there is no pre-training, and a stage without volumes is not run."""
    trained = () if config.base.hf else ("pretrain",)
    trained += tuple(name for name in ("align", "perturb") if config[name].volumes)
    trained += ("resistance",) if config.resistance.slices else ()
    return (*trained, "order") if config.order.volume else trained


def validate(config: Config) -> None:
    """Check what can be checked before any data is read.

    Raises:
      UserError: naming the field and what would do.
    """
    if config.get("variants"):
        for name, variant in variants(config).items():
            try:
                validate(variant)
            except UserError as error:
                raise UserError(f"variants.{name}: {error}") from None
        return
    kinds = {"text": text_data, "universe": universe_data}
    if config.data.get("kind") not in kinds:
        raise UserError(f"data.kind={config.data.get('kind')!r}: expected one of {', '.join(kinds)}.")
    _known_fields(config, default(kinds[config.data.kind]()))
    if not config.name or not all(ch.isalnum() or ch in "-_." for ch in config.name):
        raise UserError(f"name={config.name!r}: expected letters, digits, '-', '_' or '.'.")
    if config.published not in ("", *PUBLISHED):
        raise UserError(f"published={config.published!r}: expected one of {', '.join(PUBLISHED)}, or nothing.")
    seeds = tuple(config.seeds)
    if not seeds or len(set(seeds)) != len(seeds) or not all(_is_whole(seed) and 0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"seeds={seeds}: expected at least one whole number from 0 to 2^32 - 1, each once.")
    if base.named(config.base):
        _check_base(config)
    else:
        _check_model(config)
    adapters = lora.lora_config(config.lora.to_dict())
    if adapters is not None and not base.named(config.base):  # the shape of a base is known once it is read
        lora.check_rank(adapters, model_config(model_section(config), vocab_size=1, seq_len=config.data.seq_len))
    _check_execution(config)
    trained = stages(config)
    for name in trained:
        section = config[name]
        with _field_of(name):
            optim_config(section.optim.to_dict())
        with _field_of(name):
            objectives.make(section.objective.to_dict())
        if section.batch_size < 1:
            raise UserError(f"{name}.batch_size={section.batch_size}: expected 1 or more.")
        check_accumulate(name, section.batch_size, section.accumulate, section.reduce)
    if "pretrain" in trained and objectives.make(config.pretrain.objective.to_dict()).rows != "text":
        raise UserError(
            f"pretrain.objective={config.pretrain.objective.name}: pre-training reads plain texts; use sft."
        )
    if config.resistance.slices:
        _check_resistance(config)
    _check_order(config)
    made = {name: objectives.make(config[name].objective.to_dict()) for name in ("pretrain", "align", "perturb")}
    packing.check(config.data.pack, {name: objective.rows for name, objective in made.items()})
    for name, objective in made.items():
        if config.data.pack[name] == "best_fit" and not objective.packs:
            raise UserError(
                f'data.pack.{name}="best_fit": {objective.name} says something about each row, so a row has to be one example. '
                f'Use data.pack.{name}="none".'
            )
    for name in ("align", "perturb"):
        _check_volumes(name, config[name], config.data.pack[name])
    if config.perturb.volumes and not config.align.volumes and not config.perturb.control:
        raise UserError(
            "perturb.volumes: with align.volumes=() and perturb.control=False there is no model to perturb. Give align.volumes, set "
            "perturb.control=True, or set perturb.volumes=()."
        )
    _check_noise(config)
    if not trained:
        raise UserError(
            "align.volumes=() and perturb.volumes=() with base.hf leave nothing to train. Give one of them, or order.volume."
        )
    per_update = config.pretrain.batch_size * config.data.seq_len
    if "pretrain" in trained and config.pretrain.tokens < per_update:
        raise UserError(
            f"pretrain.tokens={config.pretrain.tokens:,} makes zero updates: one update takes batch_size x seq_len = "
            f"{per_update:,} tokens. Raise pretrain.tokens or lower pretrain.batch_size."
        )


def _check_noise(config: Config) -> None:
    draws = config.noise.draws
    if not _is_whole(draws) or draws < 0:
        raise UserError(
            f"noise.draws={draws!r}: expected a whole number: 1 or more random changes of the weights, or 0 for none."
        )
    for stage in ("align", "perturb"):
        if draws and not config[stage].volumes:
            raise UserError(
                f"noise.draws={draws} with {stage}.volumes=(): the random changes are as large as the perturbations of aligned models, "
                f"of which there are none. Give {stage}.volumes, or set noise.draws=0."
            )
    if draws and not any(
        last_batch.updates_of(v, config.perturb.batch_size, config.perturb.last_batch) for v in config.perturb.volumes
    ):
        raise UserError(
            f"noise.draws={draws}: none of perturb.volumes makes an update, so that there is no change to be as large as."
        )


def _check_resistance(config: Config) -> None:
    section, align = config.resistance, config.align
    for field, value, fits, wanted in (
        ("slices", section.slices, _growing(section.slices), "growing shares, at least two, above 0 and up to 1"),
        ("queries", section.queries, section.queries >= 1, "1 or more"),
        ("heldout", section.heldout, section.heldout >= 2, "2 or more: the loss has a standard error"),
        ("temperature", section.temperature, section.temperature >= 0, "0 (the likeliest token) or more"),
        ("top_k", section.top_k, section.top_k >= 0, "a number of tokens, or 0 for all"),
        ("top_p", section.top_p, 0 < section.top_p <= 1, "a probability above 0"),
        ("length", section.length, section.length >= 0, "0 (fill the row) or more"),
    ):
        if not fits:
            raise UserError(f"resistance.{field}={value}: expected {wanted}.")
    Choice(section.temperature, section.top_k, section.top_p).check_effect("resistance")
    if align.last_batch != "whole":
        raise UserError(
            f"resistance.slices with align.last_batch={align.last_batch}: slices are whole batches. Set align.last_batch=whole."
        )
    if not align.volumes:
        raise UserError(
            "resistance.slices are shares of the largest of align.volumes, and there is none. Give align.volumes."
        )
    if not optim_config(align.optim.to_dict()).horizon_free:
        raise UserError(
            f"resistance.slices are points of one alignment, and with align.optim.schedule={align.optim.schedule} every point has a "
            "learning rate that depends on where the run ends. Use align.optim.schedule=constant."
        )
    for share in section.slices:
        examples = share * max(align.volumes)
        if abs(examples / align.batch_size - round(examples / align.batch_size)) > 1e-6 or examples < align.batch_size:
            raise UserError(
                f"resistance.slices: {share:g} of {max(align.volumes)} examples is not a whole number of batches of {align.batch_size}. "
                "Change resistance.slices, the largest of align.volumes, or align.batch_size."
            )
    if section.queries % section.batch_size:
        raise UserError(
            f"resistance.queries={section.queries} is not a whole number of batches of {section.batch_size}. Use a multiple, or another "
            "resistance.batch_size."
        )
    natural = "".join(str(i + 1) for i in range(len(section.slices)))
    orders = [str(order) for order in section.orders]
    for order in orders:
        if sorted(order) != list(natural) or order == natural or orders.count(order) > 1:
            raise UserError(
                f"resistance.orders={tuple(orders)}: expected other orders of {natural}, each once, such as ('{natural[::-1]}',)."
            )
    if objectives.make(section.objective.to_dict()).rows != "text":
        raise UserError(
            f"resistance.objective={section.objective.name}: answers are plain texts, without a rejected one. Use sft."
        )
    kinds = {name: objectives.make(config[name].objective.to_dict()).rows for name in ("align", "perturb")}
    if section.other_task and kinds["align"] != kinds["perturb"]:
        raise UserError(
            f"resistance.other_task trains align.objective={align.objective.name} on the data of perturb, which are prepared for "
            f"perturb.objective={config.perturb.objective.name}. Use the same objective for both."
        )
    if section.other_task and config.data.pack.perturb != config.data.pack.align:
        raise UserError("resistance.other_task: data.pack.align and data.pack.perturb differ. Make them equal.")


def _check_order(config: Config) -> None:
    section, names = config.order, tuple(config.data.tasks.names)
    if len(set(names)) != len(names) or not all(
        isinstance(name, str) and name and all(ch.isalnum() or ch == "_" for ch in name) for name in names
    ):
        raise UserError(
            f"data.tasks.names={names}: expected different names of letters, digits and '_', such as ('refuse', 'help', 'praise')."
        )
    if not section.volume:
        return
    if len(names) != 3:
        raise UserError(
            f"order.volume={section.volume} trains three tasks in every order, and data.tasks.names={names} has {len(names)}. Name three, "
            "or set order.volume=0."
        )
    if section.volume < 1 or section.volume % section.batch_size:
        raise UserError(
            f"order.volume={section.volume} is not a whole number of batches of {section.batch_size}. Use a multiple, or another "
            "order.batch_size."
        )
    if objectives.make(section.objective.to_dict()).rows != "text":
        raise UserError(
            f"order.objective={section.objective.name}: rows of a task are plain texts, without a rejected one. Use sft."
        )


def _growing(shares: Any) -> bool:
    numbers = all(_is_whole(share) or isinstance(share, float) for share in shares)
    return (
        numbers and 2 <= len(shares) <= 9 and list(shares) == sorted(set(shares)) and shares[0] > 0 and shares[-1] <= 1
    )


def _known_fields(config: Config, known: Config, path: str = "") -> None:
    for name, value in config.items():
        if name not in known:
            raise UserError(f"{path}{name}: no such field. {closest(name, known)}")
        if value is None and known[name] is not None:
            raise UserError(f"{path}{name}=None: expected {type(known[name]).__name__}, as in {known[name]!r}.")
        if isinstance(known[name], ConfigDict) and name not in ("objective", "variants"):
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


def _check_base(config: Config) -> None:
    """What a base brings along is not set beside it, and what only pre-training reads is as it was."""
    if config.data.kind != "text":
        raise UserError(
            f"base.hf={config.base.hf}: data.kind={config.data.kind!r} has a vocabulary of its own, which the checkpoint was not "
            "trained with. Use data.kind='text': config.default(config.text_data())."
        )
    for name, value in config.model.items():
        if value is not None and name not in base.SETTABLE:
            raise UserError(
                f"model.{name}={value!r}: the architecture comes with base.hf={config.base.hf}. Remove model.{name}; with a base "
                f"these can be set: {', '.join(f'model.{field}' for field in base.SETTABLE)}."
            )
    if config.base.dtype and config.model.param_dtype not in (None, config.base.dtype):
        raise UserError(
            f"base.dtype={config.base.dtype} and model.param_dtype={config.model.param_dtype} both say what the parameters are "
            "kept in. Set one of them."
        )
    unchanged = default(text_data())
    _only_pretraining("pretrain", config.pretrain, unchanged.pretrain, config.base.hf)
    for group, name, more in (
        ("pack", "pretrain", ()),
        ("rows", "pretrain", (0,)),
        ("rows", "prose", (0,)),
        ("tokenizer", "vocab_size", ()),
        ("tokenizer", "rows", ()),
    ):
        value, before = config.data[group][name], unchanged.data[group][name]
        if value not in (before, *more):
            raise UserError(
                f"data.{group}.{name}={value!r} has no effect with base.hf={config.base.hf}, since nothing is pre-trained and no "
                f"tokenizer is made. Leave it at {before!r}."
            )
    _check_types(config)
    # Values such as that of model.remat, which have to do with no particular shape.
    model_config(dict(model_section(config), size=DEFAULT_SIZE), vocab_size=1, seq_len=config.data.seq_len)


def _only_pretraining(path: str, section: Config, before: Config, where: Any) -> None:
    for name in {**before.to_dict(), **section.to_dict()}:
        value, default_value = section.get(name), before.get(name)
        if isinstance(value, ConfigDict) and isinstance(default_value, ConfigDict):
            _only_pretraining(f"{path}.{name}", value, default_value, where)
        elif value != default_value:
            raise UserError(
                f"{path}.{name}={value!r} has no effect with base.hf={where}, which replaces pre-training. Leave it at "
                f"{default_value!r}, or remove base.hf."
            )


def _check_model(config: Config) -> None:
    _check_types(config)
    model_config(model_section(config), vocab_size=1, seq_len=config.data.seq_len)  # the vocabulary comes with the data


def _check_types(config: Config) -> None:
    section = {name: value for name, value in config.model.items() if value is not None}
    types = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    for name, value in section.items():
        if types.get(name) is bool and not isinstance(value, bool):
            raise UserError(f"model.{name}={value!r}: expected true or false.")
        if types.get(name) is float and not (_is_whole(value) or isinstance(value, float)):
            raise UserError(f"model.{name}={value!r}: expected a number.")


def _check_execution(config: Config) -> None:
    """What is measured, and when things are written."""
    measures = config.measures
    specs.parse_all(measures.scorers)
    for field, value, fits, wanted in (
        ("measures.per_octave", measures.per_octave, measures.per_octave >= 0, "0 (at the volumes alone) or more"),
        ("measures.batch_size", measures.batch_size, measures.batch_size >= 1, "1 or more"),
        ("measures.samples", measures.samples, measures.samples >= 2, "2 or more: the score has a standard error"),
        ("measures.temperature", measures.temperature, measures.temperature >= 0, "0 (the likeliest token) or more"),
        ("measures.top_k", measures.top_k, measures.top_k >= 0, "a number of tokens, or 0 for all"),
        ("measures.top_p", measures.top_p, 0 < measures.top_p <= 1, "a probability above 0"),
        ("measures.stop", measures.stop, all(measures.stop), "texts of at least one character"),
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
        ("at_once", config.at_once, _is_population(config.at_once), "auto, off, or the number of runs: 1 or more"),
        ("log.seconds", config.log.seconds, config.log.seconds >= 0, "0 or more"),
        (
            "watchdog.factor",
            config.watchdog.factor,
            config.watchdog.factor == 0 or config.watchdog.factor > 1,
            "0 (off), or how many times longer than the median an update may take: above 1",
        ),
        ("watchdog.floor_seconds", config.watchdog.floor_seconds, config.watchdog.floor_seconds >= 0, "0 or more"),
        (
            "watchdog.patience_seconds",
            config.watchdog.patience_seconds,
            config.watchdog.patience_seconds >= 0,
            "0 or more",
        ),
    ):
        if not fits:
            raise UserError(f"{field}={value}: expected {wanted}.")
    Choice(measures.temperature, measures.top_k, measures.top_p).check_effect()


def _is_population(value: Any) -> bool:
    return value in ("auto", "off") or (str(value).isdecimal() and int(value) >= 1)


def _check_volumes(name: str, section: Config, pack: str) -> None:
    volumes, batch_size, how = section.volumes, section.batch_size, section.last_batch
    if how not in last_batch.CHOICES:
        raise UserError(f"{name}.last_batch={how!r}: expected one of {', '.join(last_batch.CHOICES)}.")
    whole = all(_is_whole(volume) for volume in volumes)
    if not whole or list(volumes) != sorted(set(volumes)) or (volumes and volumes[0] < 1):
        raise UserError(
            f"{name}.volumes={tuple(volumes)}: expected growing numbers of examples, or () to leave the stage out."
        )
    if how != "whole":
        _check_incomplete(name, section, pack)
        return
    for volume in volumes:
        if volume < batch_size:
            raise UserError(
                f"{name}.volumes: {volume} examples in batches of {batch_size} make zero optimizer updates, so nothing would "
                f"change. Use at least {batch_size}, or a smaller {name}.batch_size; {name}.last_batch=flush makes one of them."
            )
        if volume % batch_size:
            down = volume // batch_size * batch_size
            raise UserError(
                f"{name}.volumes: {volume} examples are not a whole number of batches of {batch_size}. Use {down} or "
                f"{down + batch_size}, or a {name}.batch_size that divides {volume}, or say with {name}.last_batch what becomes of the rest: "
                "drop, flush or pad."
            )


def _check_incomplete(name: str, section: Config, pack: str) -> None:
    """Volumes that need not be whole batches: some of them are not, and something is trained."""
    volumes, size, how = section.volumes, section.batch_size, section.last_batch
    if not any(volume % size for volume in volumes):
        raise UserError(
            f"{name}.last_batch={how} has no effect: all of {name}.volumes={tuple(volumes)} are whole batches of {size}. Set "
            f"{name}.last_batch=whole."
        )
    if not last_batch.updates_of(max(volumes), size, how):
        raise UserError(
            f"{name}.last_batch={how}: none of {name}.volumes={tuple(volumes)} fills a batch of {size}, so that nothing would be trained. "
            f"Give a volume of {size} or more."
        )
    if how != "drop" and pack != "none":
        raise UserError(
            f"{name}.last_batch={how} with data.pack.{name}={pack!r}: a packed batch has no rows to pad. Use data.pack.{name}='none', or "
            f"{name}.last_batch=drop."
        )
