"""How do tokens become logits?

Flax NNX defines the model, pure pytrees execute it: `Decoder` splits the module once and everything after that is a function
of a nested dict of arrays.
"""

import dataclasses
import functools
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from elastic_jax.models import cross_entropy, remat
from elastic_jax.models.attention import Cache, View
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.layers import Block, Norm, param
from elastic_jax.parallel import mesh as mesh_lib

Params = dict[str, Any]


class Transformer(nnx.Module):
    """Embedding, blocks, final norm and head: the weights between [b, t] tokens and [b, t, v] logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = param(c, rngs, ("vocab", "embed"), (c.vocab_size, c.embed), c.init_std)
        self.layers = nnx.List([Block(c, rngs) for _ in range(c.layers)])
        self.final_norm = Norm(c, c.embed, rngs)
        self.head = (
            None if c.tie_embeddings else param(c, rngs, ("embed", "vocab"), (c.embed, c.vocab_size), c.init_std)
        )

    def embed(self, tokens_bt: jax.Array) -> jax.Array:
        # Gathered over fsdp before the look-up: otherwise the partitioner replicates the whole activation instead.
        table = mesh_lib.shard(self.embedding[...].astype(self.config.dtype), "vocab", None)
        x = jnp.take(table, tokens_bt, axis=0)
        if self.config.embed_scale:
            x = x * jnp.asarray(self.config.embed**0.5, x.dtype)
        return mesh_lib.shard(x, "batch", "seq", None)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A transformer as pure functions of its parameters.

    Parameters are a nested dict. Under `layout="unroll"` `params["layers"]` maps layer numbers to blocks, under "scan" it is
    one block whose arrays carry a leading layer dim; `unstack` and `stack` go between the two.
    """

    config: ModelConfig

    @cached_property
    def _module(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: Transformer(self.config, nnx.Rngs(0))))

    @cached_property
    def _shell(self) -> tuple[nnx.GraphDef, nnx.State]:
        config = dataclasses.replace(self.config, layers=0)
        return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))

    @cached_property
    def _block(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: Block(self.config, nnx.Rngs(0))))

    @cached_property
    def dims(self) -> Params:
        """The logical dims of every parameter, as a tree of tuples."""
        _, state = self._module
        tree: Params = {}
        for path, variable in nnx.to_flat_state(state):
            node = tree
            for key in path[:-1]:
                node = node.setdefault(str(key), {})
            node[str(path[-1])] = variable.get_metadata()["dims"]
        if self.config.layout == "scan":
            tree["layers"] = jax.tree.map(
                lambda dims: ("layers", *dims), tree["layers"]["0"], is_leaf=lambda leaf: isinstance(leaf, tuple)
            )
        return tree

    def _create(self, key: jax.Array) -> Params:
        # Blocks are made by one vmap: compilation then takes as long for 80 layers as for 2.
        shell_key, block_key = jax.random.split(key)
        shell_config = dataclasses.replace(self.config, layers=0)
        params = _pure(Transformer(shell_config, nnx.Rngs(params=shell_key)))
        block_keys = jax.random.split(block_key, self.config.layers)
        params["layers"] = jax.vmap(lambda key: _pure(Block(self.config, nnx.Rngs(params=key))))(block_keys)
        return params if self.config.layout == "scan" else unstack(params, self.config.layers)

    @cached_property
    def shapes(self) -> Params:
        """Shape and dtype of every parameter."""
        return jax.eval_shape(self._create, jax.random.key(0))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes))

    def shardings(self, mesh: Mesh) -> Params:
        """Raises UserError when a dim does not divide over its mesh axes."""
        mesh_lib.check_dims(self.dims, self.shapes, mesh)
        return mesh_lib.tree_shardings(mesh, self.dims)

    def init(self, key: jax.Array, mesh: Mesh) -> Params:
        """Parameters created in their place: the same random bits, and so the same numbers but for their rounding, on every mesh
        and in every layout."""
        return _jitted_create(self, mesh)(key)

    def compute_params(self, params: Params) -> Params:
        """The parameters in the dtype that they are multiplied in, cast once instead of wherever they are used.

        Norms stay as they are, since they compute in float32, and so do the tables of the vocabulary: the gradient of the head
        is added up in float32, which a cast in front of it would round.
        """

        def cast(dims: tuple[str, ...], leaf: jax.Array) -> jax.Array:
            return leaf if {"scale", "bias", "vocab"} & set(dims) else leaf.astype(self.config.dtype)

        return jax.tree.map(cast, self.dims, params, is_leaf=lambda node: isinstance(node, tuple))

    def hidden(
        self,
        params: Params,
        tokens_bt: jax.Array,
        *,
        segments_bt: jax.Array | None = None,
        positions_bt: jax.Array | None = None,
        caches: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Final hidden states [b, t, d], and the caches with these tokens appended.

        Args:
          segments_bt: which document a token belongs to; tokens of different documents do not see each other.
          positions_bt: position of each token in its document; by default counted along the row.
        """
        c = self.config
        _, t = tokens_bt.shape
        view = View(segments_bt, None if caches is None else caches["0"].length)
        if positions_bt is None:
            first = 0 if view.start is None else view.start
            positions_bt = jnp.broadcast_to((first + jnp.arange(t))[None], tokens_bt.shape)

        graph, state = self._block

        def block(layer_params: Params, x: jax.Array, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
            return _merge(graph, state, layer_params)(x, positions_bt, view, c.window, cache)

        if c.remat != "none" and caches is None:
            block = jax.checkpoint(block, policy=remat.POLICIES[c.remat])

        shell = self._outer(params)
        x = shell.embed(tokens_bt)
        layers = params["layers"]
        if caches is not None:
            layers = layers if c.layout == "unroll" else unstack(params, c.layers)["layers"]
            caches = dict(caches)
            for name in map(str, range(c.layers)):
                x, caches[name] = block(layers[name], x, caches[name])
        elif c.layout == "scan":
            x, _ = jax.lax.scan(lambda x, layer: (block(layer, x, None)[0], None), x, layers)
        else:
            for name in map(str, range(c.layers)):
                x, _ = block(layers[name], x, None)
        return shell.final_norm(x), caches

    def logits(self, params: Params, hidden_btd: jax.Array) -> jax.Array:
        """[b, t, v], all of them at once: for sampling and for divergences; a loss is better off with `nll_sum`."""
        hidden_nd = hidden_btd.reshape(-1, self.config.embed)
        logits_nv = cross_entropy.logits(hidden_nd, self._head_weight(params), self._head)
        return logits_nv.reshape(*hidden_btd.shape[:-1], -1)

    def nll_sum(
        self,
        params: Params,
        tokens_bt: jax.Array,
        targets_bt: jax.Array,
        mask_bt: jax.Array,
        *,
        segments_bt: jax.Array | None = None,
        positions_bt: jax.Array | None = None,
    ) -> jax.Array:
        """Sum of -log p(target) over the targets that count, in nats: float32, and the logits are never whole.

        Args:
          mask_bt: 1 where the target counts, else 0; other weights weigh.
          segments_bt, positions_bt: of packed rows, as for `hidden`.
        """
        rows = self._rows(params, tokens_bt, targets_bt, segments_bt, positions_bt)
        return cross_entropy.nll_sum(*rows, mask_bt.reshape(-1), self._head)

    def log_probs(
        self,
        params: Params,
        tokens_bt: jax.Array,
        targets_bt: jax.Array,
        mask_bt: jax.Array,
        *,
        segments_bt: jax.Array | None = None,
        positions_bt: jax.Array | None = None,
    ) -> jax.Array:
        """log p(target) of every target that counts and 0 elsewhere, in nats: float32 [b, t], and the logits are never whole."""
        rows = self._rows(params, tokens_bt, targets_bt, segments_bt, positions_bt)
        log_p_bt = cross_entropy.log_probs(*rows, self._head).reshape(targets_bt.shape)
        return jnp.where(mask_bt != 0, log_p_bt, 0.0)

    def _rows(
        self,
        params: Params,
        tokens_bt: jax.Array,
        targets_bt: jax.Array,
        segments_bt: jax.Array | None,
        positions_bt: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Hidden states [n, d], the weight of the head, and targets [n]."""
        hidden_btd, _ = self.hidden(params, tokens_bt, segments_bt=segments_bt, positions_bt=positions_bt)
        return hidden_btd.reshape(-1, self.config.embed), self._head_weight(params), targets_bt.reshape(-1)

    @property
    def _head(self) -> cross_entropy.Head:
        c = self.config
        return cross_entropy.Head(c.tie_embeddings, c.logit_softcap, c.used_vocab, c.loss_chunk)

    def _head_weight(self, params: Params) -> jax.Array:
        return params["embedding"] if self.config.tie_embeddings else params["head"]

    def __call__(self, params: Params, tokens_bt: jax.Array, **kwargs: Any) -> jax.Array:
        """Logits [b, t, v] in float32."""
        return self.logits(params, self.hidden(params, tokens_bt, **kwargs)[0])

    def empty_caches(self, batch: int, length: int) -> dict[str, Cache]:
        c = self.config
        zeros = jnp.zeros((batch, length, c.kv_heads, c.head_dim), c.dtype)
        return {str(i): Cache(zeros, zeros, jnp.zeros((), jnp.int32)) for i in range(c.layers)}

    def _outer(self, params: Params) -> Transformer:
        graph, state = self._shell
        return _merge(graph, state, {k: v for k, v in params.items() if k != "layers"})


@functools.cache
def _jitted_create(model: Decoder, mesh: Mesh) -> Any:
    return jax.jit(model._create, out_shardings=model.shardings(mesh))


def _pure(module: nnx.Module) -> Params:
    return _text_keys(nnx.to_pure_dict(nnx.state(module)))


def _merge(graph: nnx.GraphDef, abstract: nnx.State, params: Params) -> Any:
    leaves = dict(_flat(params))
    state = nnx.from_flat_state(
        [(path, variable.replace(leaves[tuple(map(str, path))])) for path, variable in nnx.to_flat_state(abstract)]
    )
    return nnx.merge(graph, state)


def _flat(tree: Params, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    return [
        item
        for key, value in tree.items()
        for item in (_flat(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)])
    ]


def _text_keys(tree: Any) -> Any:
    return {str(k): _text_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def stack(params: Params) -> Params:
    """Blocks numbered "0", "1", ... become one block with a leading layer dim."""
    layers = params["layers"]
    ordered = [layers[str(i)] for i in range(len(layers))]
    return {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)}


def unstack(params: Params, layers: int) -> Params:
    """The inverse of `stack`."""
    return {
        **params,
        "layers": {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(layers)},
    }
