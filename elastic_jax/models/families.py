"""Which published models are ours with other names? One table per family, read in both directions.

A family says how the keys of Hugging Face's `config.json` are our `ModelConfig`, and which of its tensors is which part of which
of our parameters. A tensor's layout is written as in einops, their side first: "(k query h) d -> d k query h" is a matrix
[k * g * h, d] whose transpose, cut into heads, is the queries' part of [d, k, g + 2, h].

Keys that a config.json leaves out mean what transformers fills in. Where transformers ignores a key, so do we; a key that changes
the numbers in a way that we do not compute is refused by name.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from elastic_jax.errors import UserError
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.transformer import Decoder

Config = dict[str, Any]
# Fields that say how a model is computed or how long its rows are, not which function it is.
EXECUTION = frozenset(
    ("vocab_size", "used_vocab", "seq_len", "dtype", "param_dtype", "layout", "remat", "attention", "loss_chunk")
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor on disk, and the part of one of our parameters that it is.

    Attributes:
      name: the tensor's.
      shape: of the tensor.
      path: of our parameter, unstacked: ("layers", "3", "attention", "qkv").
      region: where the tensor lies in the parameter.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    region: tuple[slice, ...]
    _split: tuple[int, ...]
    _order: tuple[int, ...]

    def to_ours(self, array: Any) -> Any:
        """A tensor of `shape` as it stands in `param[region]`; of a numpy array no number is copied."""
        return array.reshape(self._split).transpose(self._order)

    def from_ours(self, param: Any) -> Any:
        """The tensor that `param` holds: the inverse of `to_ours`, bit for bit."""
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return param[self.region].transpose(inverse).reshape(self.shape)


class Rule(NamedTuple):
    """A row of a family's table; `{}` is the number of the layer."""

    name: str
    path: str
    layout: str


class Feature(NamedTuple):
    """Fields of ours that are not one key of theirs each.

    Attributes:
      keys: key -> what transformers takes where it is absent.
      read: their config -> fields of ours.
      write: our config and the longest row -> their keys.
    """

    keys: Mapping[str, Any]
    read: Callable[[Config], dict[str, Any]]
    write: Callable[[ModelConfig, int], Config]


@dataclasses.dataclass(frozen=True)
class Family:
    """What models of one architecture have in common.

    Attributes:
      title: for messages.
      model_type: of config.json.
      architecture: the class of transformers with a language-model head.
      vocab: rows of the tables where config.json has no vocab_size.
      keys: field of ours -> (key of theirs, what transformers takes where it is absent).
      fixed: fields of ours that every model of the family has.
      features: the fields that need more than a name.
      only: key -> the values with which it changes no number.
      rules: the tensors.
      prefix: of every tensor but the head's; checkpoints without a head leave it out.
      renames: patterns of other names that checkpoints use for the same tensors.
      ignored: patterns of tensors that are no parameters, or of another modality.
    """

    title: str
    model_type: str
    architecture: str
    vocab: int
    keys: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    features: tuple[Feature, ...]
    rules: tuple[Rule, ...]
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    prefix: str = "model."
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = (r"\.rotary_emb\.inv_freq$",)

    @property
    def defaults(self) -> Config:
        """What transformers fills in for keys that a config.json leaves out."""
        filled = dict(self.keys.values(), vocab_size=self.vocab)
        for feature in self.features:
            filled |= feature.keys
        return filled

    def fields(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `ModelConfig` that a config.json sets: all but `EXECUTION`.

        Raises:
          UserError: it asks for something that we do not compute, or a value is of the wrong kind.
        """
        given = _text_part(hf_config)
        allowed = {"quantization_config": (None,), **self.only}
        for key, values in allowed.items():
            if key in given and given[key] not in values:
                raise UserError(
                    f"config.json: {key}={_shown(given[key])}: {self.title} is supported with "
                    f"{' or '.join(map(_json, values))}. {_CURES.get(key, 'Take a checkpoint without it.')}"
                )
        config = {**self.defaults, **given}
        fields = dict(self.fixed)
        for ours, (theirs, default) in self.keys.items():
            value = config[theirs]
            if isinstance(default, bool) and not isinstance(value, bool):
                raise UserError(f"config.json: {theirs}={_shown(value)}: expected true or false.")
            fields[ours] = (
                value if isinstance(default, bool) else _number(config, theirs, whole=isinstance(default, int))
            )
        for feature in self.features:
            fields |= feature.read(config)
        return fields

    def vocabulary(self, hf_config: Mapping[str, Any]) -> int:
        """Rows of the tables on disk. Raises UserError where that is no positive whole number."""
        size = _text_part(hf_config).get("vocab_size", self.vocab)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"config.json: vocab_size={_shown(size)}: expected the number of rows of the embedding.")
        return size

    def hf_config(self, c: ModelConfig, *, length: int = 0) -> Config:
        """The config.json of a model of ours, without the numbers of special tokens.

        Args:
          length: the longest row that the model is meant for; 0: `seq_len`.

        Raises:
          UserError: the family has no key for something that the model does.
        """
        config = self._written(c, length)
        lost = self._lost(c, config)
        if lost:
            others = [family.title for family in FAMILIES.values() if not family._lost(c, family._written(c, length))]
            raise UserError(
                f"{self.title} in the format of Hugging Face cannot express {', '.join(lost)}. "
                + (f"{' and '.join(others)} can." if others else "None of the supported families can.")
            )
        return config

    def pieces(self, c: ModelConfig, *, head: bool = True) -> tuple[Piece, ...]:
        """Every tensor of a checkpoint of this model, in the order of the layers.

        Args:
          head: whether with the language-model head, where it is not tied; a classifier has another.

        Raises:
          UserError: the family has no tensor for a parameter of the model.
        """
        shapes = _shapes(c)
        sizes, regions = _dims(c)
        used, pieces = set(), []
        for rule in self.rules:
            path = tuple(rule.path.split("."))
            if path not in shapes or (path == ("head",) and not head):
                continue
            used.add(path)
            for number in range(c.layers) if "{}" in path else (None,):
                pieces.append(_piece(rule, number, sizes, regions))
        left = [".".join(path) for path in shapes if path not in used and (head or path != ("head",))]
        if left:
            raise UserError(f"{self.title} in the format of Hugging Face has no tensor for {', '.join(left)}.")
        return tuple(pieces)

    def locate(self, names: Collection[str]) -> dict[str, str]:
        """The tensors' names in this family's table -> their names in a checkpoint; those that are ignored are left out."""
        bare = not any(name.startswith(self.prefix) for name in names)
        heads = {rule.name for rule in self.rules if rule.path == "head"}
        found = {}
        for actual in names:
            name = actual
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if any(re.search(pattern, name) for pattern in self.ignored):
                continue
            if bare and name == actual and name not in heads:
                name = self.prefix + name
            found[name] = actual
        return found

    def is_head(self, name: str) -> bool:
        """Whether a name of the table is that of the language-model head, which a tied model may hold a second time."""
        return any(rule.name == name and rule.path == "head" for rule in self.rules)

    def _written(self, c: ModelConfig, length: int) -> Config:
        config: Config = dict(architectures=[self.architecture], model_type=self.model_type, vocab_size=rows(c))
        config["torch_dtype"] = c.param_dtype
        config |= {theirs: getattr(c, ours) for ours, (theirs, _) in self.keys.items()}
        for feature in self.features:
            config |= feature.write(c, length or c.seq_len)
        return config

    def _lost(self, c: ModelConfig, config: Config) -> list[str]:
        """What of the model the written config does not say."""
        try:
            back = ModelConfig(vocab_size=c.vocab_size, seq_len=1, **self.fields(config))
        except UserError as error:
            return [str(error)]
        lost = []
        for field in dataclasses.fields(ModelConfig):
            if field.name in EXECUTION or field.name in ("init_std", "max_positions"):
                continue
            mine, theirs = getattr(c, field.name), getattr(back, field.name)
            if mine != theirs:
                lost.append(f"model.{field.name}={mine!r} (it has {theirs!r})")
        return lost


def family_of(hf_config: Mapping[str, Any], *, head: bool = True) -> Family:
    """The family of a config.json.

    Args:
      head: whether a language model is wanted; else only its body counts, and a classifier will do.

    Raises:
      UserError: an architecture that is not supported, with those that are.
    """
    given = hf_config.get("architectures") or []
    architectures = [str(name) for name in given] if isinstance(given, list | tuple) else [str(given)]
    model_type = _text_part(hf_config).get("model_type")
    supported = ", ".join(family.architecture for family in FAMILIES.values())
    family = FAMILIES.get(str(model_type))
    if family is None and model_type is None and architectures:
        family = next((f for f in FAMILIES.values() if f.architecture in architectures), None)
    if family is None:
        named = f"model_type={_shown(model_type)}, architectures={_shown(architectures)}"
        raise UserError(f"config.json: {named}: this architecture is not supported. Supported: {supported}.")
    body = re.sub(r"(ForCausalLM|LMHeadModel)$", "", family.architecture)
    language = {family.architecture, f"{body}Model", f"{body}TextModel", f"{body}ForConditionalGeneration"}
    if head and architectures and not {a.lower() for a in architectures} & {a.lower() for a in language}:
        raise UserError(
            f"config.json: architectures={_shown(architectures)} is not a language model: {family.architecture} was expected."
        )
    return family


def family_for(c: ModelConfig) -> Family:
    """The first family that a model of ours belongs to.

    Raises:
      UserError: none, with what stands in the way of the nearest one.
    """
    lost = {name: family._lost(c, family._written(c, c.seq_len)) for name, family in FAMILIES.items()}
    nearest = min(lost, key=lambda name: len(lost[name]))
    if lost[nearest]:
        FAMILIES[nearest].hf_config(c)
    return FAMILIES[nearest]


def rows(c: ModelConfig) -> int:
    """Rows of the tables of a checkpoint on disk: those that pad ours stay inside."""
    return c.used_vocab or c.vocab_size


@functools.lru_cache(maxsize=32)
def _shapes(c: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Paths of the parameters, those of the first layer for all, and their shapes."""
    one = dataclasses.replace(c.uniform(min(c.layers, 1)), layout="unroll")
    shapes = {}

    def walk(tree: Any, path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, (*path, "{}" if path == ("layers",) else key))
            else:
                shapes[(*path, key)] = value.shape

    walk(Decoder(one).shapes, ())
    return shapes


def _dims(c: ModelConfig) -> tuple[dict[str, int], dict[str, slice]]:
    """Sizes of the words of the layouts, and where those lie that are a part of a dim."""
    sizes = dict(d=c.embed, k=c.kv_heads, g=c.group, h=c.head_dim, f=c.mlp, v=rows(c), p=c.table_positions)
    sizes |= dict(query=c.group, key=1, value=1, qkv=c.group + 2, gate=1, up=1, one=1)
    sizes |= dict(queries=c.heads * c.head_dim, keys=c.kv_heads * c.head_dim)
    regions = dict(query=slice(0, c.group), key=slice(c.group, c.group + 1), value=slice(c.group + 1, c.group + 2))
    return sizes, regions | dict(gate=slice(0, 1), up=slice(1, 2))


def _piece(rule: Rule, number: int | None, sizes: Mapping[str, int], regions: Mapping[str, slice]) -> Piece:
    theirs, ours = (side.split() for side in rule.layout.replace("(", "( ").replace(")", " )").split("->"))
    shape, group = [], None
    for word in theirs:
        if word == "(":
            group = 1
        elif word == ")":
            shape.append(group)
            group = None
        elif group is None:
            shape.append(sizes[word])
        else:
            group *= sizes[word]
    split = [word for word in theirs if word not in "()"]
    return Piece(
        name=rule.name.format(number),
        shape=tuple(shape),
        path=tuple(rule.path.format(number).split(".")),
        region=tuple(regions.get(word, slice(0, sizes[word])) for word in ours),
        _split=tuple(sizes[word] for word in split),
        _order=tuple(split.index(word) for word in ours),
    )


def _text_part(hf_config: Mapping[str, Any]) -> Config:
    """The config of the language model inside one of several modalities."""
    config = dict(hf_config)
    if isinstance(text := config.get("text_config"), Mapping):
        outer = {key: config[key] for key in ("quantization_config",) if key in config}
        config = {**outer, "model_type": f"{config.get('model_type')}_text", **text}
    return config


def _shown(value: Any, most: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def _json(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, repr(value)) if not isinstance(value, str) else value


_CURES = {"quantization_config": "Take the checkpoint that it was made from, in float32, bfloat16 or float16."}


# --- fields that need more than a name

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}


def _activation(key: str, default: str) -> Feature:
    def read(config: Config) -> dict[str, Any]:
        if str(config[key]) not in _ACTIVATIONS:
            raise UserError(
                f"config.json: {key}={_shown(config[key])}: no such activation here. Supported: {', '.join(_ACTIVATIONS)}."
            )
        return dict(activation=_ACTIVATIONS[config[key]])

    def write(c: ModelConfig, length: int) -> Config:
        names = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
        names[_ACTIVATIONS[default]] = default
        return {key: names[c.activation]}

    return Feature({key: default}, read, write)


def _heads(kv_default: int | None, head_dim: int | None) -> Feature:
    """Key heads and the size of a head, which may follow from others; None: as many as heads, the embedding's part."""

    def read(config: Config) -> dict[str, Any]:
        heads, embed = config["num_attention_heads"], config["hidden_size"]
        return dict(
            kv_heads=_number(config, "num_key_value_heads", heads, whole=True),
            head_dim=_number(config, "head_dim", whole=True)
            if config["head_dim"] is not None
            else _share(embed, heads),
        )

    def write(c: ModelConfig, length: int) -> Config:
        return dict(num_key_value_heads=c.kv_heads, head_dim=c.head_dim)

    return Feature(dict(num_key_value_heads=kv_default, head_dim=head_dim), read, write)


def _plain_heads(heads: str, embed: str) -> Feature:
    """As many key heads as heads, which divide the embedding."""

    def read(config: Config) -> dict[str, Any]:
        return dict(kv_heads=config[heads], head_dim=_share(config[embed], config[heads]))

    return Feature({}, read, lambda c, length: {})


def _share(embed: Any, heads: Any) -> int:
    if not isinstance(embed, int) or not isinstance(heads, int) or heads < 1 or embed % heads:
        raise UserError(
            f"config.json: hidden size {_shown(embed)} is not a multiple of {_shown(heads)} attention heads, and there is no "
            "head_dim."
        )
    return embed // heads


_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


def _rope(
    theta_key: str = "rope_theta", theta: float = 10_000.0, fraction_key: str = "", length: int = 2048
) -> Feature:
    """Rotary frequencies.

    `rope_scaling` of transformers 4 and `rope_parameters` of 5 say the same; `fraction_key` names the key of the part of a head
    that turns.
    """
    keys: Config = {theta_key: theta, "rope_scaling": None, "max_position_embeddings": length}
    if fraction_key:
        keys[fraction_key] = 0.25

    def read(config: Config) -> dict[str, Any]:
        scaling = _section(config, "rope_parameters") or _section(config, "rope_scaling")
        if isinstance(scaling.get("full_attention"), Mapping):  # transformers 5 names them by the kind of layer
            scaling = dict(scaling["full_attention"])
        fields: dict[str, Any] = dict(rope_theta=_number(scaling, "rope_theta", _number(config, theta_key)))
        if fraction_key:
            default = _number(config, fraction_key)
            fields["rotary_fraction"] = _number(scaling, "partial_rotary_factor", default)
        elif (part := scaling.get("partial_rotary_factor", config.get("partial_rotary_factor"))) not in (None, 1, 1.0):
            raise UserError(
                f"config.json: partial_rotary_factor={_shown(part)}: this family is supported with 1.0 only."
            )
        return {**fields, **_read_scaling(scaling, config)}

    def write(c: ModelConfig, length: int) -> Config:
        config = {theta_key: c.rope_theta, "rope_scaling": _write_scaling(c)}
        config["max_position_embeddings"] = c.rope_original_len if c.rope_type == "dynamic" else length
        if fraction_key:
            config[fraction_key] = c.rotary_fraction
        return config

    return Feature(keys, read, write)


def _read_scaling(scaling: Config, config: Config) -> dict[str, Any]:
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    if kind not in _ROPE_TYPES:
        raise UserError(
            f"config.json: rope_scaling has the type {_shown(kind)}, which is not supported. Supported: {', '.join(_ROPE_TYPES)}."
        )
    if kind == "default":
        return {}
    factor = _number(scaling, "factor")
    fields: dict[str, Any] = dict(rope_type=kind, rope_factor=factor)
    longest = _number(config, "max_position_embeddings")
    if kind == "dynamic":  # transformers reads no other length for it
        return {**fields, "rope_original_len": int(longest)}
    if kind == "llama3":
        fields["rope_original_len"] = int(_number(scaling, "original_max_position_embeddings"))
        fields["rope_low_freq"] = _number(scaling, "low_freq_factor")
        fields["rope_high_freq"] = _number(scaling, "high_freq_factor")
    if kind == "yarn":
        fields["rope_original_len"] = int(_number(scaling, "original_max_position_embeddings", longest) or longest)
        fields["rope_beta_fast"] = _number(scaling, "beta_fast", 32.0) or 32.0
        fields["rope_beta_slow"] = _number(scaling, "beta_slow", 1.0) or 1.0
        fields["rope_truncate"] = bool(scaling.get("truncate", True))
        fields["rope_attention_factor"] = _yarn_attention_factor(scaling, factor)
        if factor == 1 and fields["rope_attention_factor"] not in (0, 1):
            raise UserError(
                f"config.json: rope_scaling has the type yarn, factor 1 and attention_factor "
                f"{fields['rope_attention_factor']!r}, which is not supported: give a factor above 1."
            )
    return fields if factor != 1 else {}  # nothing is stretched


def _yarn_attention_factor(scaling: Config, factor: float) -> float:
    """0 where it is that of the paper: 0.1 ln(factor) + 1."""
    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor")
    mscale, mscale_all = _number(scaling, "mscale", 0), _number(scaling, "mscale_all_dim", 0)
    if not (mscale and mscale_all) or factor <= 1:
        return 0.0
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * mscale_all * math.log(factor) + 1.0)


def _write_scaling(c: ModelConfig) -> Config | None:
    if c.rope_type == "plain":
        return None
    scaling: Config = dict(rope_type=c.rope_type, factor=float(c.rope_factor))
    if c.rope_type in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = c.rope_original_len
    if c.rope_type == "llama3":
        scaling |= dict(low_freq_factor=float(c.rope_low_freq), high_freq_factor=float(c.rope_high_freq))
    if c.rope_type == "yarn":
        scaling |= dict(beta_fast=float(c.rope_beta_fast), beta_slow=float(c.rope_beta_slow))
        scaling |= dict(attention_factor=c.rope_attention_factor) if c.rope_attention_factor else {}
        scaling |= {} if c.rope_truncate else dict(truncate=False)
    return scaling


def _number(config: Config, key: str, default: Any = None, *, whole: bool = False) -> Any:
    """The number of a key; `default` where it is absent or null."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"config.json: {key}={_shown(config.get(key))}: expected a {'whole ' if whole else ''}number.")
    return value


def _section(config: Config, key: str) -> Config:
    """The keys below a key; {} where it is absent or null."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"config.json: {key}={_shown(value)}: expected an object with keys of its own.")
    return dict(value)


def _windows(every: int = 0, window: int | None = 4096, switch: str = "", from_key: str = "") -> Feature:
    """Which layers attend to a window.

    Args:
      every: every so manieth layer attends to all, where `layer_types` does not say.
      window: of transformers, where the config does not say.
      switch, from_key: Qwen's keys for whether there are windows at all, and from which layer.
    """
    keys: Config = {"sliding_window": window}
    if switch:
        keys |= {switch: False, from_key: 28}
    if every or switch:
        keys["layer_types"] = None

    def read(config: Config) -> dict[str, Any]:
        layers = config["num_hidden_layers"]
        size = config["sliding_window"] if not switch or config[switch] else None
        size = None if size is None else _number(config, "sliding_window", whole=True)
        kinds = config["layer_types"] if "layer_types" in keys else None
        if kinds is not None and (
            not isinstance(kinds, list) or len(kinds) != layers or any(k not in (_SLIDING, _FULL) for k in kinds)
        ):
            raise UserError(f"config.json: layer_types={_shown(kinds)}: expected {layers} times {_SLIDING} or {_FULL}.")
        if kinds is not None:
            sliding = [kind == _SLIDING for kind in kinds]
        elif every:
            saved = _number(config, "_sliding_window_pattern", every, whole=True)
            pattern = _number(config, "sliding_window_pattern", saved, whole=True) or every
            sliding = [bool((i + 1) % pattern) for i in range(layers)]
        else:
            first = _number(config, from_key, whole=True) if from_key else 0
            sliding = [i >= first for i in range(layers)]
        if size is None:
            if kinds is not None and any(sliding):
                raise UserError(f"config.json: layer_types has {_SLIDING}, but there is no sliding_window.")
            sliding = [False] * layers
        return dict(_pattern(sliding), window=size) if any(sliding) else {}

    def write(c: ModelConfig, length: int) -> Config:
        config: Config = {"sliding_window": c.window or None}
        if switch:
            config |= {switch: bool(c.window), from_key: c.window_from if c.window else c.layers}
        if every and not c.window:
            config["sliding_window"] = window  # of no layer
        if every or switch:
            config["layer_types"] = [_SLIDING if windowed else _FULL for windowed in c.windowed]
        if every and c.global_every:
            config["sliding_window_pattern"] = c.global_every  # older versions of transformers read this one
        return config

    return Feature(keys, read, write)


_SLIDING, _FULL = "sliding_attention", "full_attention"


def _pattern(sliding: list[bool]) -> dict[str, int]:
    """Our fields for the layers that have a window."""
    layers = len(sliding)
    if all(sliding):
        return {}
    for every in range(2, layers + 1):
        if sliding == [bool((i + 1) % every) for i in range(layers)]:
            return dict(global_every=every)
    first = sliding.index(True)
    if all(sliding[first:]):
        return dict(window_from=first)
    raise UserError(
        f"config.json: layer_types={_shown(sliding)} (true: {_SLIDING}) is not supported: every n-th layer may attend to all, "
        "or the first layers."
    )


def _query_scale(default: int) -> Feature:
    """Gemma's query_pre_attn_scalar: scores are divided by its root."""

    def read(config: Config) -> dict[str, Any]:
        scalar = _number(config, "query_pre_attn_scalar")
        if scalar <= 0:
            raise UserError(f"config.json: query_pre_attn_scalar={scalar}: expected a positive number.")
        return {} if scalar == config["head_dim"] else dict(attention_scale=scalar**-0.5)

    def write(c: ModelConfig, length: int) -> Config:
        if not c.attention_scale:
            return dict(query_pre_attn_scalar=c.head_dim)
        scalar = c.attention_scale**-2
        whole = round(scalar)
        return dict(query_pre_attn_scalar=whole if whole and whole**-0.5 == c.attention_scale else scalar)

    return Feature(dict(query_pre_attn_scalar=default), read, write)


def _softcaps(attention: float | None, logits: float | None, *, of_attention: bool = True) -> Feature:
    keys = dict(attn_logit_softcapping=attention) if of_attention else {}

    def read(config: Config) -> dict[str, Any]:
        fields = dict(logit_softcap=_number(config, "final_logit_softcapping", 0.0))
        if of_attention:
            fields["attention_softcap"] = _number(config, "attn_logit_softcapping", 0.0)
        return fields

    def write(c: ModelConfig, length: int) -> Config:
        config: Config = dict(final_logit_softcapping=c.logit_softcap or None)
        return {**config, "attn_logit_softcapping": c.attention_softcap or None} if of_attention else config

    return Feature({**keys, "final_logit_softcapping": logits}, read, write)


def _with_local_rope(rope: Feature, windows: Feature, theta: float) -> Feature:
    """Frequencies and windows of Gemma 3, whose layers with a window have frequencies of their own, never stretched."""

    def read(config: Config) -> dict[str, Any]:
        fields = {**rope.read(config), **windows.read(config)}
        local = _section(_section(config, "rope_parameters"), "sliding_attention")
        if local.get("rope_type", "default") != "default":
            raise UserError(
                f"config.json: rope_parameters of sliding_attention={_shown(local)}: supported with rope_type default only."
            )
        own = _number(local, "rope_theta", _number(config, "rope_local_base_freq"))
        if fields.get("global_every") or fields.get("window_from"):
            return {**fields, "rope_local_theta": own}
        if not fields.get("window"):
            return fields
        # Every layer has the window, and none turns by the others' frequencies.
        return {"rope_theta": own, "window": fields["window"]}

    def write(c: ModelConfig, length: int) -> Config:
        return {
            **rope.write(c, length),
            **windows.write(c, length),
            "rope_local_base_freq": c.rope_local_theta or c.rope_theta,
        }

    return Feature({**rope.keys, **windows.keys, "rope_local_base_freq": theta}, read, write)


def _gpt2_sizes() -> Feature:
    def read(config: Config) -> dict[str, Any]:
        fields: dict[str, Any] = dict(mlp=_number(config, "n_inner", 4 * config["n_embd"], whole=True))
        return fields if config["scale_attn_weights"] else {**fields, "attention_scale": 1.0}

    def write(c: ModelConfig, length: int) -> Config:
        return dict(n_inner=c.mlp, scale_attn_weights=c.attention_scale != 1.0, n_positions=c.table_positions or length)

    return Feature(dict(n_inner=None, scale_attn_weights=True), read, write)


# --- the families


def _keys(**values: Any) -> dict[str, tuple[str, Any]]:
    """Names of most families, with what each takes where a key is absent."""
    names = dict(
        embed="hidden_size",
        layers="num_hidden_layers",
        heads="num_attention_heads",
        mlp="intermediate_size",
        norm_eps="rms_norm_eps",
        init_std="initializer_range",
        tie_embeddings="tie_word_embeddings",
    )
    defaults = dict(norm_eps=1e-6, init_std=0.02, tie_embeddings=False) | values
    return {ours: (theirs, defaults[ours]) for ours, theirs in names.items()}


def _biases(default: bool = False) -> Feature:
    """The one key that gives all projections of attention their biases."""

    def read(config: Config) -> dict[str, Any]:
        return dict(qkv_bias=bool(config["attention_bias"]), out_bias=bool(config["attention_bias"]))

    return Feature(dict(attention_bias=default), read, lambda c, length: dict(attention_bias=c.qkv_bias))


def _pair(name: str, path: str, weight: str, bias: str) -> tuple[Rule, Rule]:
    """The weight of a projection, and the bias that some models have beside it."""
    return Rule(f"{name}.weight", path, weight), Rule(f"{name}.bias", f"{path}_bias", bias)


def _layer_norm(name: str, path: str) -> tuple[Rule, Rule]:
    return Rule(f"{name}.weight", f"{path}.scale", "d -> d"), Rule(f"{name}.bias", f"{path}.bias", "d -> d")


_ATTENTION = "model.layers.{}.self_attn."
_MLP = "model.layers.{}.mlp."
_QKV, _OUT = "layers.{}.attention.qkv", "layers.{}.attention.out"
_UP, _DOWN = "layers.{}.mlp.up", "layers.{}.mlp.down"
_BODY = (
    Rule("model.embed_tokens.weight", "embedding", "v d -> v d"),
    *_pair(f"{_ATTENTION}q_proj", _QKV, "(k query h) d -> d k query h", "(k query h) -> k query h"),
    *_pair(f"{_ATTENTION}k_proj", _QKV, "(k key h) d -> d k key h", "(k key h) -> k key h"),
    *_pair(f"{_ATTENTION}v_proj", _QKV, "(k value h) d -> d k value h", "(k value h) -> k value h"),
    *_pair(f"{_ATTENTION}o_proj", _OUT, "d (k g h) -> k g h d", "d -> d"),
    *_pair(f"{_MLP}gate_proj", _UP, "(gate f) d -> d gate f", "(gate f) -> gate f"),
    *_pair(f"{_MLP}up_proj", _UP, "(up f) d -> d up f", "(up f) -> up f"),
    *_pair(f"{_MLP}down_proj", _DOWN, "d f -> f d", "d -> d"),
    Rule("model.norm.weight", "final_norm.scale", "d -> d"),
    Rule("lm_head.weight", "head", "v d -> d v"),
)


def _norms(**names: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"model.layers.{{}}.{theirs}.weight", f"layers.{{}}.{ours}.scale", "d -> d")
        for ours, theirs in names.items()
    )


_PRE = _norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm")
_BOTH = _norms(
    attention_norm="input_layernorm",
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_POST = _norms(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
_HEAD_NORMS = (
    Rule(f"{_ATTENTION}q_norm.weight", "layers.{}.attention.q_norm.scale", "h -> h"),
    Rule(f"{_ATTENTION}k_norm.weight", "layers.{}.attention.k_norm.scale", "h -> h"),
)
_FULL_NORMS = (
    Rule(f"{_ATTENTION}q_norm.weight", "layers.{}.attention.q_norm.scale", "queries -> queries"),
    Rule(f"{_ATTENTION}k_norm.weight", "layers.{}.attention.k_norm.scale", "keys -> keys"),
)


_LLAMA = Family(
    title="Llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    vocab=32_000,
    keys=_keys(embed=4096, layers=32, heads=32, mlp=11008) | dict(mlp_bias=("mlp_bias", False)),
    fixed={},
    features=(_heads(None, None), _activation("hidden_act", "silu"), _rope(), _biases()),
    rules=_BODY + _PRE,
)

_MISTRAL = Family(
    title="Mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    vocab=32_000,
    keys=_keys(embed=4096, layers=32, heads=32, mlp=14336),
    fixed={},
    features=(_heads(8, None), _activation("hidden_act", "silu"), _rope(length=131_072), _windows()),
    rules=_BODY + _PRE,
)

_QWEN_WINDOWS = _windows(switch="use_sliding_window", from_key="max_window_layers")
_QWEN2 = Family(
    title="Qwen 2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    vocab=151_936,
    keys=_keys(embed=4096, layers=32, heads=32, mlp=22016),
    fixed=dict(qkv_bias=True),
    features=(_heads(32, None), _activation("hidden_act", "silu"), _rope(length=32_768), _QWEN_WINDOWS),
    rules=_BODY + _PRE,
)

_QWEN3 = Family(
    title="Qwen 3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    vocab=151_936,
    keys=_keys(embed=4096, layers=32, heads=32, mlp=22016),
    fixed=dict(qk_norm="head"),
    features=(_heads(32, 128), _activation("hidden_act", "silu"), _rope(length=32_768), _QWEN_WINDOWS, _biases()),
    rules=_BODY + _PRE + _HEAD_NORMS,
)

_GEMMA = Family(
    title="Gemma",
    model_type="gemma",
    architecture="GemmaForCausalLM",
    vocab=256_000,
    keys=_keys(embed=3072, layers=28, heads=16, mlp=24576, tie_embeddings=True),
    fixed=dict(norm_offset=1.0, embed_scale=True),
    features=(_heads(16, 256), _activation("hidden_act", "gelu_pytorch_tanh"), _rope(length=8192), _biases()),
    rules=_BODY + _PRE,
)

_GEMMA2 = Family(
    title="Gemma 2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    vocab=256_000,
    keys=_keys(embed=2304, layers=26, heads=8, mlp=9216, tie_embeddings=True),
    fixed=dict(norm_offset=1.0, embed_scale=True, norm_place="both"),
    features=(
        _heads(4, 256),
        _activation("hidden_activation", "gelu_pytorch_tanh"),
        _rope(length=8192),
        _windows(every=2),
        _biases(),
        _query_scale(256),
        _softcaps(50.0, 30.0),
    ),
    rules=_BODY + _BOTH,
)

_GEMMA3 = Family(
    title="Gemma 3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    vocab=262_208,
    keys=_keys(embed=2304, layers=26, heads=8, mlp=9216, tie_embeddings=True),
    fixed=dict(norm_offset=1.0, embed_scale=True, norm_place="both", qk_norm="head"),
    features=(
        _heads(4, 256),
        _activation("hidden_activation", "gelu_pytorch_tanh"),
        _with_local_rope(_rope(theta=1_000_000.0, length=131_072), _windows(every=6), 10_000.0),
        _biases(),
        _query_scale(256),
        _softcaps(None, None, of_attention=False),
    ),
    only=dict(attn_logit_softcapping=(None,), use_bidirectional_attention=(False, None)),
    rules=_BODY + _BOTH + _HEAD_NORMS,
    renames=(
        (r"^language_model\.model\.", "model."),
        (r"^model\.language_model\.", "model."),
        (r"^language_model\.lm_head\.", "lm_head."),
    ),
    ignored=(r"\.rotary_emb\.inv_freq$", r"^(model\.)?(vision_tower|multi_modal_projector)\."),
)

_NEOX_LAYER = "gpt_neox.layers.{}."
_NEOX = Family(
    title="GPT-NeoX",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    vocab=50_432,
    keys={
        **_keys(embed=6144, layers=44, heads=64, mlp=24576),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "parallel_residual": ("use_parallel_residual", True),
    },
    fixed=dict(norm="layer", gated=False, mlp_bias=True),
    features=(
        _plain_heads("num_attention_heads", "hidden_size"),
        _activation("hidden_act", "gelu"),
        _rope("rotary_emb_base", fraction_key="rotary_pct"),
        _biases(default=True),
    ),
    rules=(
        Rule("gpt_neox.embed_in.weight", "embedding", "v d -> v d"),
        *_layer_norm(f"{_NEOX_LAYER}input_layernorm", "layers.{}.attention_norm"),
        # Head by head its query, its key and its value.
        *_pair(f"{_NEOX_LAYER}attention.query_key_value", _QKV, "(k qkv h) d -> d k qkv h", "(k qkv h) -> k qkv h"),
        *_pair(f"{_NEOX_LAYER}attention.dense", _OUT, "d (k g h) -> k g h d", "d -> d"),
        *_layer_norm(f"{_NEOX_LAYER}post_attention_layernorm", "layers.{}.mlp_norm"),
        *_pair(f"{_NEOX_LAYER}mlp.dense_h_to_4h", _UP, "(one f) d -> d one f", "(one f) -> one f"),
        *_pair(f"{_NEOX_LAYER}mlp.dense_4h_to_h", _DOWN, "d f -> f d", "d -> d"),
        *_layer_norm("gpt_neox.final_layer_norm", "final_norm"),
        Rule("embed_out.weight", "head", "v d -> d v"),
    ),
    prefix="gpt_neox.",
    ignored=(r"\.rotary_emb\.inv_freq$", r"\.attention\.(bias|masked_bias)$"),
)

_GPT2_LAYER = "transformer.h.{}."
_GPT2 = Family(
    title="GPT-2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    vocab=50_257,
    keys=dict(
        embed=("n_embd", 768),
        layers=("n_layer", 12),
        heads=("n_head", 12),
        norm_eps=("layer_norm_epsilon", 1e-5),
        init_std=("initializer_range", 0.02),
        tie_embeddings=("tie_word_embeddings", True),
        max_positions=("n_positions", 1024),
    ),
    fixed=dict(norm="layer", gated=False, positions="learned", qkv_bias=True, out_bias=True, mlp_bias=True),
    features=(_plain_heads("n_head", "n_embd"), _activation("activation_function", "gelu_new"), _gpt2_sizes()),
    only=dict(scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,)),
    # Its matrices are stored as they multiply from the right: [in, out].
    rules=(
        Rule("transformer.wte.weight", "embedding", "v d -> v d"),
        Rule("transformer.wpe.weight", "positions", "p d -> p d"),
        *_layer_norm(f"{_GPT2_LAYER}ln_1", "layers.{}.attention_norm"),
        *_pair(f"{_GPT2_LAYER}attn.c_attn", _QKV, "d (qkv k h) -> d k qkv h", "(qkv k h) -> k qkv h"),
        *_pair(f"{_GPT2_LAYER}attn.c_proj", _OUT, "(k g h) d -> k g h d", "d -> d"),
        *_layer_norm(f"{_GPT2_LAYER}ln_2", "layers.{}.mlp_norm"),
        *_pair(f"{_GPT2_LAYER}mlp.c_fc", _UP, "d (one f) -> d one f", "(one f) -> one f"),
        *_pair(f"{_GPT2_LAYER}mlp.c_proj", _DOWN, "f d -> f d", "d -> d"),
        *_layer_norm("transformer.ln_f", "final_norm"),
        Rule("lm_head.weight", "head", "v d -> d v"),
    ),
    prefix="transformer.",
    ignored=(r"\.attn\.(bias|masked_bias)$",),
)

_OLMO2 = Family(
    title="OLMo 2",
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    vocab=50_304,
    keys=_keys(embed=4096, layers=32, heads=32, mlp=11008, norm_eps=1e-5),
    fixed=dict(norm_place="post", qk_norm="full"),
    features=(_heads(None, None), _activation("hidden_act", "silu"), _rope(), _biases()),
    rules=_BODY + _POST + _FULL_NORMS,
)

# By model_type; the first that fits is the one a model of ours is written as.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (_LLAMA, _MISTRAL, _QWEN2, _QWEN3, _GEMMA, _GEMMA2, _GEMMA3, _NEOX, _GPT2, _OLMO2)
}
