"""What does one update need of every device: bytes, FLOPs, exchanges, seconds? Closed forms, nothing is compiled.

Memory is the largest of three moments of an update, each the sum of what is alive then:

    loss     the saved activations of all layers, and the head's logits, weights and gradients of one chunk of tokens
    layers   the same activations and gradients, one layer recomputed and differentiated, its weights gathered
    update   gradients and what the optimiser makes of them

What activations a layer saves is not tabulated: it is read off the program, by tracing (not compiling) two layers and one at
two lengths, so that it follows the model's switches and every remat policy. The rest are sizes of arrays that the step is known
to hold. `docs/plans.md` compares the sums with the compiler's.

Shapes: n tokens that a device computes at a time, d embed, f mlp, v vocabulary; a device holds 1/tensor of heads, f and v.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax.models import flops
from elastic_jax.models.adapted import Adapted
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.lora import LoraConfig
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel.mesh import RULES
from elastic_jax.parallel.topology import Topology
from elastic_jax.train.optim import OptimConfig

# Seconds before an exchange moves its first byte: launch and hops, some microseconds on either interconnect. It matters to models
# that are small for their devices.
LATENCY = 5e-6

CATEGORIES = (
    "parameters",
    "moments",
    "batch",
    "base model",
    "gradients",
    "accumulators",
    "cast parameters",
    "saved activations",
    "layer at work",
    "logits",
    "gathered weights",
    "compiler scratch",
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an update is spread over devices and time; the global batch is not part of it."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    accumulate: int = 1
    remat: str = "none"
    reduce: str = "step"

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def shards(self) -> int:
        """Parts of a batch."""
        return self.data * self.fsdp

    @property
    def mesh(self) -> dict[str, int]:
        return dict(data=self.data, fsdp=self.fsdp, tensor=self.tensor)

    def __str__(self) -> str:
        parts = [f"data={self.data} fsdp={self.fsdp} tensor={self.tensor}", f"remat={self.remat}"]
        parts.append(f"accumulate={self.accumulate}" + (f" reduce={self.reduce}" if self.accumulate > 1 else ""))
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Work:
    """One update of a stage: `rows` in the global batch, each of `answers` token rows (2 for preference pairs)."""

    model: ModelConfig
    optim: OptimConfig
    rows: int
    answers: int = 1
    packed: bool = False
    extra: int = 0  # further float32 numbers per row, such as a cached reference's log-probabilities
    lora: LoraConfig | None = None  # the adapters that are trained; None: all parameters
    compared: bool = False  # whether the base model is kept beside it, which the measures compare with

    @property
    def length(self) -> int:
        return self.model.seq_len

    @property
    def tokens(self) -> int:
        """Token positions of one update, all devices together."""
        return self.rows * self.answers * self.length


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One kind of collective of an update.

    Attributes:
      kind: all-gather, reduce-scatter or all-reduce.
      what: of what.
      axis: of the mesh.
      size: bytes that a device sends (and receives) in one update.
      count: exchanges in one update.
    """

    kind: str
    what: str
    axis: str
    size: float
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one update costs each device.

    Attributes:
      memory: bytes by category, alive at the peak; they add up to `total`.
      peak: at which moment: "loss", "layers" or "update".
      arguments: bytes of what an update is given: parameters, moments and the batch.
      of_update: bytes without the base model, which no update is given: what a compiler sees.
      model_flops, executed_flops: per update and device; causal. The second counts recomputation.
      hbm_bytes: that an update moves at least between memory and the arithmetic units.
      exchanges: by kind.
    """

    memory: Mapping[str, int]
    peak: str
    model_flops: float
    executed_flops: float
    hbm_bytes: float
    exchanges: tuple[Exchange, ...]

    @property
    def total(self) -> int:
        return sum(self.memory.values())

    @property
    def arguments(self) -> int:
        return sum(self.memory[name] for name in ("parameters", "moments", "batch"))

    @property
    def of_update(self) -> int:
        return self.total - self.memory["base model"]

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        return sorted(self.memory.items(), key=lambda item: -item[1])[:count]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one update if each resource worked alone at its peak; None where the peak is not known (CPU).

    Attributes:
      interconnect: for weights and gradients, which can be exchanged while something is computed.
      exposed: for activations, which the next product waits for, and for every exchange to begin.
    """

    compute: float | None
    hbm: float
    interconnect: float
    exposed: float = 0.0

    @property
    def bound(self) -> str:
        terms = dict(compute=self.compute or 0.0, memory=self.hbm, interconnect=self.interconnect + self.exposed)
        return max(terms, key=lambda name: terms[name])


def estimate(work: Work, layout: Layout) -> Estimate:
    """Closed form of one update."""
    c, lora = dataclasses.replace(work.model, remat=layout.remat), work.lora  # type: ignore[arg-type]
    sizes = _weights(c, layout)
    trained = sizes if lora is None else _weights(c, layout, lora)
    tokens = work.tokens / (layout.shards * layout.accumulate)  # of one device at a time
    act = jnp.dtype(c.dtype).itemsize
    moment = jnp.dtype(work.optim.moments).itemsize if hasattr(work.optim, "moments") else 4
    moments = {"adamw": 2, "sgd": 1 if work.optim.b1 else 0}[work.optim.name]
    row_bytes = work.answers * ((work.length + 1) * 4 + work.length * (1 + (8 if work.packed else 0))) + 4 * work.extra
    d, columns = c.embed, math.ceil(c.vocab_size / layout.tensor)
    table = columns * d  # weights of the embedding, or of the head, that a device uses
    spread = layout.shards > 1 or layout.tensor > 1

    many = layout.accumulate > 1
    by_device = many and layout.reduce == "step" and layout.shards > 1
    kept = trained.whole * 4 if by_device else trained.share * 4
    held = dict.fromkeys(CATEGORIES, 0.0)
    held["parameters"] = sizes.share * jnp.dtype(c.param_dtype).itemsize
    held["moments"] = trained.share * moments * moment
    held["batch"] = work.rows / layout.shards * row_bytes
    held["cast parameters"] = 0.0 if c.dtype == c.param_dtype else sizes.blocks_share * act
    if lora is not None:  # what is frozen is kept as it is multiplied, beside float32 adapters
        cast = sizes.blocks_share * (jnp.dtype(c.param_dtype).itemsize - act)
        held["parameters"] += trained.share * 4 - cast
        held["cast parameters"] = 0.0 if act == 4 else trained.share * act
    if work.compared and (lora is None or c.dtype != c.param_dtype):  # else it is what the adapters adapt
        held["base model"] = sizes.share * jnp.dtype(c.param_dtype).itemsize
    if many:
        held["accumulators"] = kept
        if by_device:
            held["gathered weights"] = sizes.blocks_whole * act + (1 if c.tie_embeddings else 2) * table * act

    chunk = _chunk(c, tokens, columns)
    saved = c.layers * saved_bytes(c, layout.tensor, lora) * tokens + tokens * d * act
    loss = dict(held)
    loss["saved activations"] = saved
    loss["gathered weights"] += table * act if spread and not by_device else 0
    # Float32 logits and their gradient in the compute dtype while the head's gradient, float32, is added up from its chunks; then
    # that gradient, and what comes out of its exchange. Some programs hold a third copy (docs/plans.md).
    logits = chunk * columns * (4 + act)
    head = 0 if lora is not None else table * 4
    loss["gradients"] = head
    loss["logits"] = max(logits, head if spread else 0) + 2 * tokens * d * act

    layers = dict(held)
    layers["saved activations"] = saved
    layers["gradients"] = kept
    layers["layer at work"] = tokens * _working(c, layout.tensor)
    # One layer's weights, and their gradient before it is scattered.
    scattered = layout.fsdp > 1 and not by_device and lora is None
    layers["gathered weights"] += sizes.block * act * (2 if scattered else 1)

    update = dict(held)
    update["gradients"] = trained.share * 4 * 2
    moments_of = dict(loss=loss, layers=layers, update=update)
    peak = max(moments_of, key=lambda name: sum(moments_of[name].values()))
    memory = moments_of[peak]
    # Seen in every program that was compiled (docs/plans.md): XLA's analysis counts the stack of the blocks' inputs, which the scan
    # over layers writes, twice; what a policy keeps beside them it counts once.
    memory["compiler scratch"] = c.layers * tokens * d * act if c.layout == "scan" and peak != "update" else 0.0
    per_token = flops.per_token(c, work.length) if lora is None else Adapted(c, lora).per_token(work.length)
    share = work.tokens / layout.devices
    return Estimate(
        memory={name: math.ceil(size) for name, size in memory.items()},
        peak=peak,
        model_flops=per_token.causal * share,
        executed_flops=per_token.executed * share,
        hbm_bytes=_traffic(c, layout, sizes, trained, tokens, saved, moments * moment),
        exchanges=tuple(_exchanges(c, layout, sizes, trained, tokens, by_device)),
    )


def roofline(found: Estimate, topology: Topology) -> Roofline:
    """Each resource's time alone. A step that overlapped them perfectly would take the largest."""
    chip = topology.chip

    def seconds(exposed: bool) -> float:
        sent = sum(e.size for e in found.exchanges if (e.what == "activations") == exposed)
        return sent / topology.bandwidth if sent else 0.0

    waits = LATENCY * sum(e.count for e in found.exchanges)
    return Roofline(
        compute=found.executed_flops / chip.flops if chip.flops else None,
        hbm=found.hbm_bytes / chip.hbm,
        interconnect=seconds(False),
        exposed=seconds(True) + waits,
    )


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Numbers of weights: of a device's share, and of what it uses at a time."""

    share: float  # all parameters, over fsdp and tensor
    whole: float  # all parameters, over tensor alone
    blocks_share: float  # weights of products in blocks, over fsdp and tensor
    blocks_whole: float
    block: float  # one block's, over tensor alone


@functools.lru_cache(maxsize=256)
def _leaves(c: ModelConfig, lora: LoraConfig | None = None) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Dims and size of every parameter, or of every adapter; those of the layers together. Traced for one layer: eighty take
    seconds."""
    one = dataclasses.replace(c.uniform(1), layout="scan", remat="none")
    model = Decoder(one) if lora is None else Adapted(one, lora)
    dims = jax.tree.leaves(model.dims, is_leaf=lambda leaf: isinstance(leaf, tuple))
    sizes = [leaf.size for leaf in jax.tree.leaves(model.shapes)]
    return tuple((d, size * (c.layers if "layers" in d else 1)) for d, size in zip(dims, sizes, strict=True))


def _weights(c: ModelConfig, layout: Layout, lora: LoraConfig | None = None) -> _Weights:
    share = whole = blocks_share = blocks_whole = 0.0
    for dims, size in _leaves(dataclasses.replace(c, remat="none"), lora):
        axes = {axis for dim in dims for axis in RULES.get(dim, ())}
        tensor = layout.tensor if "tensor" in axes else 1
        fsdp = layout.fsdp if "fsdp" in axes else 1
        whole += size / tensor
        share += size / (tensor * fsdp)
        if "layers" in dims and "embed" in dims:
            blocks_whole += size / tensor
            blocks_share += size / (tensor * fsdp)
    return _Weights(share, whole, blocks_share, blocks_whole, blocks_whole / max(c.layers, 1))


def _chunk(c: ModelConfig, tokens: float, columns: int) -> float:
    """Tokens whose logits a device holds at a time."""
    from elastic_jax.models.cross_entropy import Head

    head = Head(c.tie_embeddings, c.logit_softcap, c.used_vocab, c.loss_chunk)
    return math.ceil(tokens / head.chunks(math.ceil(tokens), columns))


def saved_bytes(c: ModelConfig, tensor: int, lora: LoraConfig | None = None) -> float:
    """Bytes per token that one layer keeps for the backward pass, on each of `tensor` devices; where layers differ, their mean.

    Read off the traced program. Attention's part that grows with the square of the length is dropped where the model's backend
    is a kernel, which keeps a float32 log-sum-exp of each head instead; windows leave a share of it.
    """
    # What "offload" keeps beyond a block's input lies in the memory of the host.
    policy = "full" if c.remat == "offload" else c.remat
    # Neither decides what is saved, and each would be traced again.
    learned = c.positions == "learned"  # adds nothing to a layer, and its table limits the length
    plain = dataclasses.replace(c.uniform(1), positions="none", max_positions=0) if learned else c.uniform(1)
    plain = dataclasses.replace(plain, remat=policy, seq_len=1, vocab_size=8, used_vocab=0, loss_chunk=0)
    plain = dataclasses.replace(plain, layout="unroll", attention="reference")
    # The rank of what is traced is 1, which fits every part of a weight; more of it is that much more of each x A.
    thin = None if lora is None else dataclasses.replace(lora, rank=1)
    linear, square = _saved_of(plain, thin)
    if tensor > 1:
        # Part of it is cut by the tensor axis, part is whole: whole + cut / tensor.
        halved = dataclasses.replace(plain, heads=c.heads // 2, kv_heads=c.kv_heads // 2, mlp=c.mlp // 2)
        half = _saved_of(halved, thin)
        linear, square = (
            (2 * part - whole) + 2 * (whole - part) / tensor for whole, part in zip((linear, square), half, strict=True)
        )
    if lora is not None and policy == "none":
        linear += (lora.rank - 1) * len(lora.targets) * jnp.dtype(c.dtype).itemsize
    if c.attention == "reference":
        share = flops.attended_keys(c, c.seq_len) / flops.attended_keys(plain, c.seq_len)
        return linear + square * c.seq_len * share
    return linear + (4 * c.heads / tensor if policy == "none" else 0)


@functools.lru_cache(maxsize=256)
def _saved_of(local: ModelConfig, lora: LoraConfig | None = None) -> tuple[float, float]:
    """(linear, square): a layer keeps constant + linear T + square T^2 bytes of a row of T tokens; the constant is weights, which
    are there anyway."""
    step = 48
    one, two, three = (_residuals(local, length, lora) for length in (step, 2 * step, 3 * step))
    square = (three - 2 * two + one) / (2 * step**2)
    return (two - one) / step - 3 * square * step, square


def _residuals(local: ModelConfig, length: int, lora: LoraConfig | None) -> int:
    """Bytes that a second layer adds to what the backward pass is given."""

    def of(layers: int) -> int:
        model = Decoder(dataclasses.replace(local, layers=layers, seq_len=length))
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        params = jax.eval_shape(model.compute_params, model.shapes)
        weights = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)}
        weights |= {(shape, local.dtype) for shape, _ in weights}

        if lora is None:
            trained, whole = params, lambda frozen, params, keys: params
        else:
            adapters = Adapted(model.config, lora)
            trained, whole = jax.eval_shape(adapters.compute_params, adapters.shapes), adapters.joined
            weights |= {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(trained)}
        dropped = lora is not None and lora.dropout > 0
        keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.split(jax.random.key(0), 1))) if dropped else None

        def backward(trained: Any, frozen: Any, tokens: Any, keys: Any) -> Any:
            return jax.vjp(lambda t: model.hidden(whole(frozen, t, keys), tokens)[0], trained)[1]

        kept = jax.tree.leaves(jax.eval_shape(backward, trained, params, tokens, keys))
        # Weights are there anyway.
        return sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in kept
            if (leaf.shape, leaf.dtype) not in weights and leaf.size > 1
        )

    return of(2) - of(1)


def _working(c: ModelConfig, tensor: int) -> float:
    """Bytes per token of a layer while its gradient is formed: its activations once more, and their gradients."""
    act = jnp.dtype(c.dtype).itemsize
    qkv = c.head_dim * (c.heads + 2 * c.kv_heads) / tensor
    up = c.mlp * (2 if c.gated else 1) / tensor
    return act * (2 * up + 2 * c.mlp / tensor + 2 * qkv + 4 * c.embed)


def _traffic(
    c: ModelConfig,
    layout: Layout,
    sizes: _Weights,
    trained: _Weights,
    tokens: float,
    saved: float,
    moment_bytes: float,
) -> float:
    """Bytes between memory and arithmetic units: weights for each of three products of each part (two where they are frozen),
    activations written and read, and the optimiser's pass over its state."""
    act = jnp.dtype(c.dtype).itemsize
    passes = (3 if trained is sizes else 2) + (1 if layout.remat != "none" else 0)
    weights = (sizes.blocks_whole + math.ceil(c.vocab_size / layout.tensor) * c.embed) * act * passes
    activations = 2 * saved + c.layers * tokens * _working(c, layout.tensor) * 2
    optimiser = trained.share * (2 * 4 + 2 * moment_bytes + 2 * 4)
    return (weights + activations) * layout.accumulate + optimiser


def _exchanges(
    c: ModelConfig, layout: Layout, sizes: _Weights, trained: _Weights, tokens: float, by_device: bool
) -> list[Exchange]:
    """Ring algorithms: a gather or a scatter of S bytes over k devices sends S (k - 1) / k from each, an all-reduce twice that."""
    act = jnp.dtype(c.dtype).itemsize
    times = 1 if by_device else layout.accumulate
    found = []
    if layout.fsdp > 1:
        ring = (layout.fsdp - 1) / layout.fsdp
        # Under remat the backward pass gathers a layer's weights again; without it too, since none are kept.
        gathers = 1 if by_device else 2 * times
        found.append(Exchange("all-gather", "weights", "fsdp", sizes.whole * act * ring * gathers, c.layers * gathers))
        found.append(
            Exchange(
                "reduce-scatter",
                "gradients",
                "fsdp",
                trained.whole * (4 if by_device else act) * ring * times,
                c.layers * times,
            )
        )
    if layout.data > 1:
        ring = 2 * (layout.data - 1) / layout.data
        found.append(Exchange("all-reduce", "gradients", "data", trained.share * 4 * ring * times, times))
    if layout.tensor > 1:
        ring = 2 * (layout.tensor - 1) / layout.tensor
        # Two in each layer's forward pass, two in its backward, and two more where it is recomputed.
        passes = 4 + (1 if layout.remat == "full" else 0)
        size = c.layers * passes * tokens * c.embed * act * ring * layout.accumulate
        found.append(Exchange("all-reduce", "activations", "tensor", size, c.layers * passes * layout.accumulate))
    return found
