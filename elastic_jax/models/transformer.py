"""How do tokens become logits?

Flax NNX defines the model, pure pytrees execute it: `Decoder` splits the module once and everything after that is a function
of a nested dict of arrays.
"""

import dataclasses
import functools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from elastic_jax.models import adapter, cross_entropy, remat
from elastic_jax.models.attention import Cache, Caches, View
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.layers import Block, Norm, param
from elastic_jax.parallel import mesh as mesh_lib

Params = dict[str, Any]


class Transformer(nnx.Module):
    """Embeddings, blocks, final norm and head: the weights between [b, t] tokens and [b, t, v] logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = param(c, rngs, ("vocab", "embed"), (c.vocab_size, c.embed), c.init_std)
        self.positions = (
            param(c, rngs, ("positions", "embed"), (c.table_positions, c.embed), c.init_std)
            if c.positions == "learned"
            else None
        )
        self.layers = nnx.List([Block(c, rngs) for _ in range(c.layers)])
        self.final_norm = Norm(c, c.embed, rngs)
        self.head = (
            None if c.tie_embeddings else param(c, rngs, ("embed", "vocab"), (c.embed, c.vocab_size), c.init_std)
        )

    def embed(self, tokens_bt: jax.Array, positions_bt: jax.Array) -> jax.Array:
        # Gathered over fsdp before the look-up: otherwise the partitioner replicates the whole activation instead.
        table = mesh_lib.shard(self.embedding[...].astype(self.config.dtype), "vocab", None)
        x = jnp.take(table, tokens_bt, axis=0)
        if self.config.embed_scale:
            x = x * jnp.asarray(self.config.embed**0.5, x.dtype)  # rounded as Gemma was trained
        if self.positions is not None:
            rows = mesh_lib.shard(self.positions[...].astype(x.dtype), None, None)
            x = x + jnp.take(rows, positions_bt, axis=0)
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
        config = self.config.uniform(0)
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
        shell_config = self.config.uniform(0)
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
            return leaf if {"scale", "bias", "vocab", "positions"} & set(dims) else leaf.astype(self.config.dtype)

        return jax.tree.map(cast, self.dims, params, is_leaf=lambda node: isinstance(node, tuple))

    def hidden(
        self,
        params: Params,
        tokens_bt: jax.Array,
        *,
        segments_bt: jax.Array | None = None,
        positions_bt: jax.Array | None = None,
        caches: Caches | None = None,
    ) -> tuple[jax.Array, Caches | None]:
        """Final hidden states [b, t, d], and the caches with these tokens appended.

        Args:
          segments_bt: which document a token belongs to; tokens of different documents do not see each other. Not with caches,
            whose rows are one document each.
          positions_bt: position of each token in its document; by default counted along the row.
          caches: of the tokens before these (`prefill`, or `empty_caches`), with room for them.
        """
        if caches is not None and segments_bt is not None:
            raise ValueError("segments_bt cannot be used with caches: the keys of a cache belong to no document.")
        t = tokens_bt.shape[1]
        if positions_bt is None:
            positions_bt = jnp.arange(t)[None] if caches is None else caches.positions(t)
        view = View(segments_bt) if caches is None else caches.view
        return self._run(params, tokens_bt, jnp.broadcast_to(positions_bt, tokens_bt.shape), view, caches)

    def prefill(
        self, params: Params, tokens_bt: jax.Array, first_b: jax.Array, columns: int
    ) -> tuple[jax.Array, Caches]:
        """Final hidden states [b, t, d] of prompts that are padded on the left, and caches that begin with them.

        One pass over whole rows, with the attention of training: `hidden` with empty caches gives the same, but looks at all
        columns.

        Args:
          first_b: where each prompt begins; the hidden states before it mean nothing.
          columns: room of the caches, t or more.
        """
        b, t = tokens_bt.shape
        positions_bt = jnp.arange(t)[None] - first_b[:, None]
        view = View((positions_bt >= 0).astype(jnp.int32))
        caches = self.empty_caches(b, columns, first_b)
        hidden_btd, filled = self._run(params, tokens_bt, jnp.maximum(positions_bt, 0), view, caches)
        assert filled is not None
        return hidden_btd, filled

    def _run(
        self, params: Params, tokens_bt: jax.Array, positions_bt: jax.Array, view: View, caches: Caches | None
    ) -> tuple[jax.Array, Caches | None]:
        c = self.config
        graph, state = self._block
        keys_b = adapter.row_keys(params, tokens_bt.shape[0])

        def block(windowed: bool) -> Any:
            def run(layer_params: Params, x: jax.Array, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
                adapters = adapter.of_layer(layer_params, keys_b)
                return _merge(graph, state, layer_params)(x, positions_bt, view, windowed, cache, adapters)

            if c.remat == "none" or caches is not None:
                return run
            return jax.checkpoint(run, policy=remat.POLICIES[c.remat])

        blocks = {windowed: block(windowed) for windowed in set(c.windowed)}
        shell = self._outer(params)
        x = shell.embed(tokens_bt, positions_bt)
        layers = params["layers"]
        if caches is not None:
            layers = layers if "0" in layers else unstack(params, c.layers)["layers"]
            filled = {}
            for name, windowed in zip(map(str, range(c.layers)), c.windowed, strict=True):
                x, filled[name] = blocks[windowed](layers[name], x, caches.layers[name])
            caches = dataclasses.replace(caches, layers=filled, length=caches.length + tokens_bt.shape[1])
        elif c.layout == "scan":
            x = _scan(blocks, c.windowed, layers, x)
        else:
            for name, windowed in zip(map(str, range(c.layers)), c.windowed, strict=True):
                x, _ = blocks[windowed](layers[name], x, None)
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

    def empty_caches(self, batch: int, columns: int, first_b: jax.Array | None = None) -> Caches:
        """Room for `columns` tokens a row, none of them there; row b will begin in column `first_b`, by default 0."""
        c = self.config
        keys = jnp.zeros((batch, c.kv_heads, c.head_dim, columns), c.dtype)
        layers = {str(i): Cache(keys, jnp.swapaxes(keys, 2, 3)) for i in range(c.layers)}
        first_b = jnp.zeros((batch,), jnp.int32) if first_b is None else first_b
        return Caches(layers, jnp.zeros((), jnp.int32), first_b)

    def for_decoding(self, params: Params) -> Params:
        """The parameters as a loop over tokens reads them: all but the norms in the dtype of the activations, since no gradient of a
        table is asked for, and every layer by itself."""

        def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            # Of adapters, which may be among the layers, the numbers of their places stay as well.
            kept = str(getattr(path[-1], "key", "")) in ("scale", "bias") or not jnp.issubdtype(
                leaf.dtype, jnp.floating
            )
            return leaf if kept else leaf.astype(self.config.dtype)

        params = jax.tree_util.tree_map_with_path(cast, params)
        return params if "0" in params["layers"] else unstack(params, self.config.layers)

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


def periods(kinds: Sequence[bool]) -> list[tuple[tuple[bool, ...], int]]:
    """A sequence as repeated patterns, each with its number of repetitions: the bodies and lengths of scans.

    From the left, the pattern that explains most of what remains, and of several the shortest.

    >>> periods([True, False, True, False, True])
    [((True, False), 2), ((True,), 1)]
    """
    found: list[tuple[tuple[bool, ...], int]] = []
    rest = tuple(kinds)
    while rest:

        def times(size: int, rest: tuple[bool, ...] = rest) -> int:
            starts = range(0, len(rest), size)
            return next((n for n, i in enumerate(starts) if rest[i : i + size] != rest[:size]), len(starts))

        # A pattern that occurs once explains no more than its first layer.
        size = max(range(1, len(rest) // 2 + 2), key=lambda size: (size * times(size) if times(size) > 1 else 1, -size))
        found.append((rest[:size], times(size)))
        rest = rest[size * times(size) :]
    return found


def _scan(blocks: dict[bool, Any], kinds: Sequence[bool], layers: Params, x: jax.Array) -> jax.Array:
    """Through stacked layers of these kinds; one scan where all are alike, or where their pattern divides them."""

    def period(pattern: tuple[bool, ...], x: jax.Array, layers: Params) -> tuple[jax.Array, None]:
        for kind, layer in zip(pattern, _singles(layers, len(pattern)), strict=True):
            x, _ = blocks[kind](layer, x, None)
        return x, None

    stretches = periods(kinds)
    parts = _cut(layers, [len(pattern) * times for pattern, times in stretches])
    for (pattern, times), part in zip(stretches, parts, strict=True):
        if len(pattern) == 1:
            x, _ = jax.lax.scan(lambda x, layer, kind=pattern[0]: (blocks[kind](layer, x, None)[0], None), x, part)
        else:
            part = jax.tree.map(lambda leaf, n=times: leaf.reshape(n, -1, *leaf.shape[1:]), part)
            x, _ = jax.lax.scan(functools.partial(period, pattern), x, part)
    return x


def _cut(layers: Params, sizes: list[int]) -> list[Params]:
    """Stacked layers as stretches of so many layers. The transpose of `split` is a concatenation; that of slices would pad each of
    them to the size of the whole."""
    if len(sizes) == 1:
        return [layers]
    leaves, structure = jax.tree.flatten(layers)
    parts = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]


def _singles(layers: Params, count: int) -> list[Params]:
    """`count` stacked layers one by one."""
    parts = _cut(layers, [1] * count)
    return [jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), part) for part in parts]


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
