"""Which class does a text belong to, for an encoder of RoBERTa's kind?

The sequence classifiers that transformers calls `RobertaForSequenceClassification` and `XLMRobertaForSequenceClassification`, as
pure functions of a tree of arrays: the forward pass alone, for judges. Norms, softmax and head compute in float32.

Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", arXiv 1907.11692. Shapes: b batch, t position, d embed, n
heads, h head_dim, f mlp, l layers, v vocabulary, p rows of the position table, c labels.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from elastic_jax.errors import UserError
from elastic_jax.hf.tensors import Tensors
from elastic_jax.models.layers import ACTIVATIONS, contract
from elastic_jax.parallel import mesh as mesh_lib

Params = dict[str, Any]

ARCHITECTURES = ("RobertaForSequenceClassification", "XLMRobertaForSequenceClassification")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class RobertaConfig:
    """An encoder and its classification head.

    Attributes:
      positions: rows of the table of positions; the first `pad_id + 1` of them belong to no token of a text.
      labels: names of the classes, in the order of the logits.
    """

    vocab_size: int
    layers: int
    embed: int
    heads: int
    mlp: int
    positions: int
    norm_eps: float
    activation: str
    pad_id: int
    labels: tuple[str, ...]

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    @property
    def longest(self) -> int:
        """Tokens of the longest text that has positions, `<s>` and `</s>` included."""
        return self.positions - self.pad_id - 1

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> "RobertaConfig":
        """From a `config.json`.

        Raises:
          UserError: another architecture, or a switch that this model does not have.
        """
        given = (config.get("architectures") or ["none named"])[0]
        if given not in ARCHITECTURES:
            raise UserError(f"{where}: {given} is no {' or '.join(ARCHITECTURES)}.")
        try:
            c = cls(
                vocab_size=int(config["vocab_size"]),
                layers=int(config["num_hidden_layers"]),
                embed=int(config["hidden_size"]),
                heads=int(config["num_attention_heads"]),
                mlp=int(config["intermediate_size"]),
                positions=int(config.get("max_position_embeddings", 512)),
                norm_eps=float(config.get("layer_norm_eps", 1e-12)),
                activation=str(config.get("hidden_act", "gelu")),
                pad_id=int(config.get("pad_token_id", 1)),
                labels=labels_of(config),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: {type(error).__name__} {error}: not the config of a {given}.") from error
        if c.activation not in _ACTIVATIONS:
            raise UserError(f"{where}: hidden_act={c.activation!r}; supported: {', '.join(_ACTIVATIONS)}.")
        kind = config.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise UserError(f"{where}: position_embedding_type={kind!r}; supported: absolute.")
        if c.heads < 1 or c.embed % c.heads or c.longest < 3:
            raise UserError(
                f"{where}: hidden_size={c.embed} with {c.heads} heads and {c.positions} positions: expected whole heads and "
                f"more than {c.pad_id + 3} positions."
            )
        return c


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order, as transformers reads them from a `config.json`."""
    named = config.get("id2label")
    if named:
        return tuple(str(named[key]) for key in sorted(named, key=int))
    return tuple(f"LABEL_{i}" for i in range(int(config.get("num_labels", 2))))


@dataclasses.dataclass(frozen=True)
class _Part:
    """One of our arrays: its logical dims and shape, the tensors it is made of, and how."""

    dims: tuple[str | None, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    make: Callable[..., np.ndarray] = lambda tensor: tensor
    disk: tuple[int, ...] | None = None  # shape of each tensor on disk; None: that of the part


def _transposed(tensor: np.ndarray) -> np.ndarray:
    return tensor.T


def _parts(c: RobertaConfig) -> dict[str, Any]:
    d, n, h, f = c.embed, c.heads, c.head_dim, c.mlp
    layer = "roberta.encoder.layer.{}."

    def norm(at: str) -> dict[str, _Part]:
        return {
            "scale": _Part(("scale",), (d,), (f"{at}.LayerNorm.weight",)),
            "bias": _Part(("bias",), (d,), (f"{at}.LayerNorm.bias",)),
        }

    def qkv(*tensors: np.ndarray) -> np.ndarray:
        return np.stack([tensor.T.reshape(d, n, h) for tensor in tensors], axis=2)

    def qkv_bias(*tensors: np.ndarray) -> np.ndarray:
        return np.stack([tensor.reshape(n, h) for tensor in tensors], axis=1)

    def three(end: str) -> tuple[str, ...]:
        return tuple(f"{layer}attention.self.{name}.{end}" for name in ("query", "key", "value"))

    return {
        "words": _Part((None, "embed"), (c.vocab_size, d), ("roberta.embeddings.word_embeddings.weight",)),
        "positions": _Part((None, "embed"), (c.positions, d), ("roberta.embeddings.position_embeddings.weight",)),
        "norm": norm("roberta.embeddings"),
        "layers": {
            "qkv": _Part(("embed", "kv_heads", None, None), (d, n, 3, h), three("weight"), qkv, (d, d)),
            "qkv_bias": _Part(("kv_heads", None, None), (n, 3, h), three("bias"), qkv_bias, (d,)),
            "out": _Part(
                ("kv_heads", None, "embed"),
                (n, h, d),
                (f"{layer}attention.output.dense.weight",),
                lambda tensor: tensor.T.reshape(n, h, d),
                (d, d),
            ),
            "out_bias": _Part(("bias",), (d,), (f"{layer}attention.output.dense.bias",)),
            "attention_norm": norm(f"{layer}attention.output"),
            "up": _Part(("embed", "mlp"), (d, f), (f"{layer}intermediate.dense.weight",), _transposed, (f, d)),
            "up_bias": _Part(("mlp",), (f,), (f"{layer}intermediate.dense.bias",)),
            "down": _Part(("mlp", "embed"), (f, d), (f"{layer}output.dense.weight",), _transposed, (d, f)),
            "down_bias": _Part(("bias",), (d,), (f"{layer}output.dense.bias",)),
            "mlp_norm": norm(f"{layer}output"),
        },
        "head": {
            "dense": _Part((None, None), (d, d), ("classifier.dense.weight",), _transposed, (d, d)),
            "dense_bias": _Part(("bias",), (d,), ("classifier.dense.bias",)),
            "out": _Part(
                (None, None), (d, len(c.labels)), ("classifier.out_proj.weight",), _transposed, (len(c.labels), d)
            ),
            "out_bias": _Part(("bias",), (len(c.labels),), ("classifier.out_proj.bias",)),
        },
    }


# Every text is of the first of RoBERTa's kinds of token (there is one), so that row of the table is all that is read of it.
_KINDS = "roberta.embeddings.token_type_embeddings.weight"


def check(c: RobertaConfig, tensors: Tensors) -> None:
    """Raises UserError that lists the tensors which are missing or of another shape; nothing of them is read."""
    there, missing, wrong = set(tensors.names), [], []

    def look(name: str, shape: tuple[int, ...] | None) -> None:
        if name not in there:
            missing.append(name)
        elif shape is not None and tensors.shape(name) != shape:
            wrong.append(f"{name} has shape {list(tensors.shape(name))}, expected {list(shape)}")

    for part in jax.tree.leaves(_parts(c), is_leaf=lambda node: isinstance(node, _Part)):
        for name in part.names:
            for i in range(c.layers) if "{}" in name else (0,):
                look(name.format(i), part.shape if part.disk is None else part.disk)
    look(_KINDS, None)
    if missing and all(name.startswith("classifier.") for name in missing):
        raise UserError(
            f"{tensors.folder} has no classification head: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. "
            "It is an encoder that was not fine-tuned to classify. Give a sequence classifier."
        )
    if missing or wrong:
        said = [f"{len(missing)} tensors are missing: {_some(missing)}"] if missing else []
        said += [f"{len(wrong)} tensors have another shape: {_some(wrong)}"] if wrong else []
        raise UserError(f"{tensors.folder} does not hold the model of its config.json. {'. '.join(said)}.")


def _some(items: list[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f", and {len(items) - most} more" if len(items) > most else "")


def load(c: RobertaConfig, tensors: Tensors, mesh: Mesh, dtype: str = "float32") -> Params:
    """The parameters, read straight into their places on the mesh. Layers are stacked: their arrays begin with dim l.

    Args:
      dtype: "float32", or "bfloat16", in which the weights of all products are then held and multiplied.

    Raises:
      UserError: as `check`.
    """
    check(c, tensors)

    def read(part: _Part, stacked: bool, keep: bool) -> jax.Array:
        of = np.dtype(jnp.float32 if keep else jnp.dtype(dtype))
        shape = (c.layers, *part.shape) if stacked else part.shape
        sharding = mesh_lib.tree_shardings(
            mesh, _fitting(("layers", *part.dims) if stacked else part.dims, shape, mesh)
        )

        def one(i: int, index: tuple[slice, ...]) -> np.ndarray:
            return part.make(*(tensors.read(name.format(i)) for name in part.names))[index].astype(of)

        def region(index: Any) -> np.ndarray:
            if not stacked:
                return one(0, index)
            return np.stack([one(i, index[1:]) for i in range(c.layers)[index[0]]])

        return jax.make_array_from_callback(shape, sharding, region)

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, _Part):
            # What is added or computes in float32 stays in it.
            keep = len(node.shape) == 1 or path[0] == "head"
            return read(node, stacked=path[0] == "layers", keep=keep)
        return {key: walk(child, (*path, key)) for key, child in node.items()}

    params = walk(_parts(c), ())
    kind = tensors.read(_KINDS)[0].astype(np.float32)
    params["kind"] = mesh_lib.put_global(kind, mesh_lib.replicated(mesh))
    return params


def _fitting(dims: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> tuple[str | None, ...]:
    """Dims without those that the mesh does not divide: these are whole on every device. A judge does not choose the mesh."""

    def divides(dim: str | None, size: int) -> bool:
        return size % int(np.prod([mesh.shape[axis] for axis in mesh_lib.RULES.get(dim or "", ())])) == 0

    return tuple(dim if divides(dim, size) else None for dim, size in zip(dims, shape, strict=True))


def _norm(x: jax.Array, p: Params, eps: float) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return y * jnp.expand_dims(p["scale"], (0, 1)) + jnp.expand_dims(p["bias"], (0, 1))


def logits(
    c: RobertaConfig, params: Params, tokens_bt: Int[Array, "b t"], mask_bt: Bool[Array, "b t"]
) -> Float[Array, "b c"]:
    """Of every class, float32.

    Args:
      tokens_bt: `<s>` text `</s>`, padded on the right with `pad_id`; at most `longest` columns.
      mask_bt: whether a token is of the text.
    """
    dtype = params["layers"]["up"].dtype
    # Positions count the tokens that are no padding, from the row after that of the padding.
    real_bt = (tokens_bt != c.pad_id).astype(jnp.int32)
    positions_bt = jnp.cumsum(real_bt, axis=1) * real_bt + c.pad_id
    x = jnp.take(params["words"], tokens_bt, axis=0).astype(jnp.float32)
    x = x + jnp.expand_dims(params["kind"], (0, 1))
    x = x + jnp.take(params["positions"], positions_bt, axis=0).astype(jnp.float32)
    x = mesh_lib.shard(_norm(x, params["norm"], c.norm_eps).astype(dtype), "batch", "seq", None)
    b, t = tokens_bt.shape
    hidden = jnp.where(mask_bt, 0.0, -jnp.inf)[:, None, None, :]
    activation = ACTIVATIONS[_ACTIVATIONS[c.activation]]

    def added(x: jax.Array, bias: jax.Array) -> jax.Array:
        return x + jnp.expand_dims(bias, range(x.ndim - bias.ndim)).astype(x.dtype)

    # Tokens are flattened around the products, as in `models.layers`.
    def block(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
        qkv = added(contract(x.reshape(b * t, -1), p["qkv"]), p["qkv_bias"]).reshape(b, t, c.heads, 3, c.head_dim)
        q, k, v = (qkv[:, :, :, i].swapaxes(1, 2) for i in range(3))
        scores = jnp.einsum("bnqh,bnth->bnqt", q, k, preferred_element_type=jnp.float32) * c.head_dim**-0.5
        weights = jax.nn.softmax(scores + hidden, axis=-1).astype(dtype)
        mixed = jnp.einsum("bnqt,bnth->bnqh", weights, v).swapaxes(1, 2)
        attended = added(contract(mixed.reshape(b * t, c.heads, c.head_dim), p["out"], 2), p["out_bias"])
        x = _norm(x + attended.reshape(x.shape), p["attention_norm"], c.norm_eps).astype(dtype)
        inner = activation(added(contract(x.reshape(b * t, -1), p["up"]), p["up_bias"]))
        x = x + added(contract(inner, p["down"]), p["down_bias"]).reshape(x.shape)
        return mesh_lib.shard(_norm(x, p["mlp_norm"], c.norm_eps).astype(dtype), "batch", "seq", None), None

    x, _ = jax.lax.scan(block, x, params["layers"])
    head = params["head"]
    first_bd = x[:, 0].astype(jnp.float32)
    inner_bd = jnp.tanh(added(first_bd @ head["dense"], head["dense_bias"]))
    return added(inner_bd @ head["out"], head["out_bias"])
