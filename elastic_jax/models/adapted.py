"""What is trained of a model under LoRA (arXiv 2106.09685), and how does it join the rest?

W + (alpha / rank) A B takes the place of a weight W, which stays as it is. A and B are trained, and are all that optimiser,
gradients and checkpoints hold. B begins as zeros, so the model begins as the one it adapts.

The adapters of all layers are a tree of the form of the parameters: {"layers": {"0": {"qkv": {"a": A, "b": B}, ...}, ...}}, or
under layout "scan" with a leading layer dim. They are float32, whatever the dtype of the frozen parameters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elastic_jax.models import flops
from elastic_jax.models.adapter import ADAPTERS, ROW_KEYS, Adapter
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.lora import TARGETS, LoraConfig, check_rank
from elastic_jax.models.transformer import Decoder, Params, unstack
from elastic_jax.objectives import Policy
from elastic_jax.parallel import mesh as mesh_lib

# Field of a batch: the keys of its rows.
KEYS = "row_keys"


@dataclasses.dataclass(frozen=True)
class Adapted:
    """The adapters of a model, with what training asks of the parameters of a `Decoder`: dims, shapes, places, first values.

    Raises:
      UserError: the rank is larger than a matrix that it should be the rank of.
    """

    config: ModelConfig
    lora: LoraConfig

    def __post_init__(self):
        check_rank(self.lora, self.config)

    @cached_property
    def decoder(self) -> Decoder:
        """The model that is adapted."""
        return Decoder(self.config)

    @cached_property
    def _weights(self) -> dict[str, tuple[tuple[str, ...], Any, int]]:
        """Of each target: its dims, its shape in one layer, and how many of its dims are contracted."""
        one = Decoder(dataclasses.replace(self.config.uniform(1), layout="unroll"))
        dims, shapes = one.dims["layers"]["0"], one.shapes["layers"]["0"]
        return {
            name: (dims[module][name], shapes[module][name], count)
            for name, (module, count) in TARGETS.items()
            if name in self.lora.targets
        }

    def _tree(self, layer: Any, stacked: Any) -> Params:
        """One layer's tree for every layer, or under "scan" with `stacked` applied to its leaves."""
        if self.config.layout == "scan":
            return {"layers": jax.tree.map(stacked, layer, is_leaf=lambda leaf: isinstance(leaf, tuple))}
        return {"layers": {str(i): layer for i in range(self.config.layers)}}

    @cached_property
    def dims(self) -> Params:
        """The logical dims of every adapter, as a tree of tuples."""
        layer = {
            name: {"a": (*dims[:count], "rank"), "b": ("rank", *dims[count:])}
            for name, (dims, _, count) in self._weights.items()
        }
        return self._tree(layer, lambda dims: ("layers", *dims))

    @cached_property
    def shapes(self) -> Params:
        """Shape and dtype of every adapter."""
        r = self.lora.rank
        layer = {
            name: {"a": (*leaf.shape[:count], r), "b": (r, *leaf.shape[count:])}
            for name, (_, leaf, count) in self._weights.items()
        }
        tree = self._tree(layer, lambda shape: (self.config.layers, *shape))
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), tree, is_leaf=lambda leaf: isinstance(leaf, tuple)
        )

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes))

    def shardings(self, mesh: Mesh) -> Params:
        """Beside the weights: what lies on a dim of the weight lies where that dim does. Raises as `Decoder.shardings`."""
        mesh_lib.check_dims(self.dims, self.shapes, mesh)
        return mesh_lib.tree_shardings(mesh, self.dims)

    def init(self, key: jax.Array, mesh: Mesh) -> Params:
        """First values: B zero, and A normal with the variance 1 / (3 inner) of the paper's own code, which draws it uniformly.

        The same numbers on every mesh and in both layouts; those of one target do not depend on the others.
        """
        return _jitted_create(self, mesh)(key)

    def _create(self, key: jax.Array) -> Params:
        def layer(key: jax.Array) -> Params:
            made = {}
            for name, (_, leaf, count) in self._weights.items():
                inner = math.prod(leaf.shape[:count])
                drawn = jax.random.normal(
                    jax.random.fold_in(key, list(TARGETS).index(name)), (*leaf.shape[:count], self.lora.rank)
                )
                made[name] = {
                    "a": drawn * (3 * inner) ** -0.5,
                    "b": jnp.zeros((self.lora.rank, *leaf.shape[count:]), jnp.float32),
                }
            return made

        adapters = {"layers": jax.vmap(layer)(jax.random.split(key, self.config.layers))}
        return adapters if self.config.layout == "scan" else unstack(adapters, self.config.layers)

    def compute_params(self, adapters: Params) -> Params:
        """The adapters in the dtype that they are multiplied in, as `Decoder.compute_params`."""
        return jax.tree.map(lambda leaf: leaf.astype(self.config.dtype), adapters)

    def joined(self, frozen: Params, adapters: Params, row_keys: jax.Array | None = None) -> Params:
        """Parameters for `decoder` that hold both: every product adds what its adapter adds.

        Args:
          row_keys: those that `with_row_keys` gives a batch; None: no dropout.
        """
        names = [name for name in TARGETS if name in self.lora.targets]

        def of(pairs: Params, number: Any) -> dict[str, Adapter]:
            return {
                name: Adapter(
                    pairs[name]["a"],
                    pairs[name]["b"],
                    number * len(TARGETS) + list(TARGETS).index(name),
                    self.lora.scale,
                    self.lora.dropout,
                )
                for name in names
            }

        layers, pairs = frozen["layers"], adapters["layers"]
        if self.config.layout == "scan":
            both = {**layers, ADAPTERS: of(pairs, jnp.arange(self.config.layers))}
        else:
            both = {name: {**layers[name], ADAPTERS: of(pairs[name], jnp.asarray(int(name)))} for name in layers}
        keys = {} if row_keys is None else {ROW_KEYS: row_keys}
        return {**frozen, "layers": both, **keys}

    def merge(self, params: Params, adapters: Params) -> Params:
        """The parameters with W + (alpha / rank) A B for every adapted W: computed in float32, kept in the dtype of W.

        Where an adapter adds nothing, W keeps its bits.
        """
        add = merged_weight if self.config.layout == "unroll" else jax.vmap(merged_weight, in_axes=(0, 0, 0, None))
        scale = self.lora.scale
        is_pair = lambda node: isinstance(node, dict) and "a" in node  # noqa: E731
        merged = jax.tree.map(
            lambda pair, weight: add(weight, pair["a"], pair["b"], scale),
            adapters,
            self.weights(params),
            is_leaf=is_pair,
        )
        return self._with_weights(params, merged)

    def merger(self, mesh: Mesh) -> Callable[[Params, Params], Params]:
        """`merge`, compiled for arrays on `mesh`: every weight is made in its place, and what has no adapter is not copied."""
        return _merger(self, mesh)

    def weights(self, params: Any) -> Params:
        """The weights that are adapted, of a tree of the form of the parameters: {"layers": {"0": {"qkv": W, ...}, ...}}."""

        def of(layer: Params) -> Params:
            return {name: layer[TARGETS[name][0]][name] for name in self.lora.targets}

        layers = params["layers"]
        if self.config.layout == "scan":
            return {"layers": of(layers)}
        return {"layers": {number: of(layer) for number, layer in layers.items()}}

    def _with_weights(self, params: Params, weights: Params) -> Params:
        """The parameters with those of `weights` in place of theirs."""

        def of(layer: Params, found: Params) -> Params:
            layer = dict(layer)
            for name, weight in found.items():
                module = TARGETS[name][0]
                layer[module] = {**layer[module], name: weight}
            return layer

        layers, found = params["layers"], weights["layers"]
        if self.config.layout == "scan":
            return {**params, "layers": of(layers, found)}
        return {**params, "layers": {number: of(layer, found[number]) for number, layer in layers.items()}}

    def training_flops(self, length: int, *, causal: bool = True) -> float:
        """FLOPs per token of a row of `length`: as `flops.training_flops`, without the gradients of the frozen weights.

        Forward, the gradients of the activations, and three products of each adapter.
        """
        c = self.config
        attention = flops.attention_flops(c, length, causal=causal)
        return 2.0 * flops.forward_flops(c, length, causal=causal) + attention + 6.0 * self.size

    def per_token(self, length: int) -> flops.PerToken:
        """As `flops.per_token`."""
        causal, full = self.training_flops(length), self.training_flops(length, causal=False)
        return flops.PerToken(causal, full, causal + flops.recomputed_flops(self.config, length))


@dataclasses.dataclass(frozen=True)
class AdaptedPolicy:
    """An `objectives.Policy` whose parameters are the adapters; no gradient is taken of `frozen`."""

    model: Adapted
    frozen: Params
    row_keys: jax.Array | None

    def nll_sum(self, params: Params, *rows: jax.Array, **packed: jax.Array | None) -> jax.Array:
        return self.model.decoder.nll_sum(self._joined(params), *rows, **packed)

    def log_probs(self, params: Params, *rows: jax.Array, **packed: jax.Array | None) -> jax.Array:
        return self.model.decoder.log_probs(self._joined(params), *rows, **packed)

    def _joined(self, adapters: Params) -> Params:
        return self.model.joined(self.frozen, adapters, self.row_keys)


Trained = Decoder | Adapted  # what a run trains: all parameters, or adapters


def trained(model: Decoder, lora: LoraConfig | None) -> Trained:
    """What a run of this model trains."""
    return model if lora is None else Adapted(model.config, lora)


def policy(model: Trained, frozen: Params | None, row_keys: jax.Array | None = None) -> Policy:
    """What an objective is given with the parameters that are trained."""
    if not isinstance(model, Adapted):
        return model
    assert frozen is not None
    return AdaptedPolicy(model, frozen, row_keys)


def joined(model: Trained, frozen: Params | None, params: Params) -> Params:
    """Parameters for the decoder: those given, or those of which they are the adapters."""
    if not isinstance(model, Adapted):
        return params
    assert frozen is not None
    return model.joined(frozen, params)


def with_row_keys(model: Trained, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """The batch with a key for each of its rows, where the model drops anything.

    They follow from the number of the row in the whole batch: neither the mesh nor accumulation changes what is dropped.
    """
    if not isinstance(model, Adapted) or not model.lora.dropout:
        return batch
    rows = len(next(iter(batch.values())))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
    return {**batch, KEYS: jax.random.key_data(keys)}


def abstract_frozen(model: Trained, mesh: Mesh) -> Params | None:
    """Shapes, dtypes and places of what `frozen_for` gives; None where nothing is frozen."""
    if not isinstance(model, Adapted):
        return None
    shapes = jax.eval_shape(model.decoder.compute_params, model.decoder.shapes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        model.decoder.shardings(mesh),
    )


def frozen_for(model: Decoder, params: Params) -> Params:
    """`params` as training reads them: in the dtype that they are multiplied in, those that have it already not copied."""
    cast = jax.eval_shape(model.compute_params, params)
    return jax.tree.map(lambda leaf, to: leaf if leaf.dtype == to.dtype else leaf.astype(to.dtype), params, cast)


def merged_weight(weight: jax.Array, a: jax.Array, b: jax.Array, scale: Any) -> jax.Array:
    """W + scale A B of one layer, see `Adapted.merge`."""
    # Accelerators would round the factors to fewer digits: a merge is done once, and should be that of every machine.
    added = scale * jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), 1, precision="highest")
    # Adding a zero would turn a weight of -0 into +0.
    whole = (weight.astype(jnp.float32) + added).astype(weight.dtype)
    return jnp.where(added == 0, weight, whole)


@functools.cache
def _merger(model: Adapted, mesh: Mesh) -> Callable[[Params, Params], Params]:
    places = model.weights(model.decoder.shardings(mesh))
    jitted = jax.jit(lambda params, adapters: model.weights(model.merge(params, adapters)), out_shardings=places)
    return lambda params, adapters: model._with_weights(params, jitted(params, adapters))


@functools.cache
def _jitted_create(model: Adapted, mesh: Mesh) -> Any:
    return jax.jit(model._create, out_shardings=model.shardings(mesh))
