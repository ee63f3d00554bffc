"""How is attention computed on a TPU? By the Pallas splash kernel, which skips the blocks that no query may see.

Shapes: b batch, t position, k kv_heads, g query heads per kv head, n = k * g heads, h head_dim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from elastic_jax.models import remat
from elastic_jax.models.attention.backend import Backend
from elastic_jax.models.attention.view import View
from elastic_jax.parallel.mesh import RULES

LANES = 128  # of a TPU's vector unit: blocks are multiples of it, and so are rows after padding
BLOCKS = (512, 256, LANES)  # tried in this order; above 512 the scores of a block no longer fit beside the rest in VMEM


def attend(
    q_btkgh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    view: View,
    *,
    window: int = 0,
    softcap: float = 0.0,
    scale: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """Attention within whole rows. A length that is not a multiple of 128 is padded at its end, where no query looks.

    Runs under `shard_map` over the mesh axes of batch and heads, since XLA cannot partition a Pallas call.

    Args:
      interpret: run the kernel in Pallas' interpreter, on any platform.
    """
    # Imported by those who use it: Pallas takes a third of a second.
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    b, t, k, g, h = q_btkgh.shape
    length = -(-t // LANES) * LANES
    block = next(block for block in BLOCKS if length % block == 0)
    q_bnth = jnp.transpose(q_btkgh.reshape(b, t, k * g, h) * (scale or h**-0.5), (0, 2, 1, 3))
    k_bkth, v_bkth = (jnp.transpose(x, (0, 2, 1, 3)) for x in (k_bskh, v_bskh))
    rows = [jnp.pad(x, ((0, 0), (0, 0), (0, length - t), (0, 0))) for x in (q_bnth, k_bkth, v_bkth)]
    if view.segments_bt is not None:
        rows.append(jnp.pad(view.segments_bt, ((0, 0), (0, length - t))))

    def local(q_bnth: jax.Array, k_bkth: jax.Array, v_bkth: jax.Array, segments_bt: jax.Array | None = None) -> Any:
        kernel = _kernel(q_bnth.shape[1], length, window, softcap, block, interpret)
        if segments_bt is None:
            return jax.vmap(kernel)(q_bnth, k_bkth, v_bkth)
        return jax.vmap(kernel)(q_bnth, k_bkth, v_bkth, SegmentIds(segments_bt, segments_bt))

    out_bnth = _over_mesh(local, rows)(*rows)[:, :, :t]
    return jnp.transpose(out_bnth, (0, 2, 1, 3)).reshape(b, t, k, g, h)


def _kernel(heads: int, length: int, window: int, softcap: float, block: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    seen = (
        masks.LocalMask((length, length), (window - 1, 0), offset=0) if window else masks.CausalMask((length, length))
    )
    # The fused backward kernel would hold one partial dq for every block of keys.
    sizes = kernels.BlockSizes(
        **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), block),
        **dict.fromkeys(("block_kv", "block_kv_compute"), block),
        **dict.fromkeys(("block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"), block),
    )
    return kernels.make_splash_mha(
        mask=masks.MultiHeadMask([seen] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name=remat.CONTEXT,  # output and log-sum-exp: where they are kept, backward needs no forward
        interpret=interpret,
    )


def _over_mesh(local: Callable[..., jax.Array], rows: list[jax.Array]) -> Callable[..., jax.Array]:
    """`local` on each device's rows and heads; the axes that an outer shard_map has already split are left alone."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis for axis in mesh.axis_names if axis not in mesh.manual_axes}
    if mesh.empty or mesh.size == 1 or not free:
        return local
    batch, heads = (tuple(axis for axis in RULES[dim] if axis in free) for dim in ("batch", "kv_heads"))
    specs = tuple(PartitionSpec(batch, heads) if x.ndim == 4 else PartitionSpec(batch) for x in rows)
    return jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(batch, heads), axis_names=free, check_vma=False
    )


BACKEND = Backend(
    name="splash",
    attend=attend,
    platforms=("tpu",),
    dtypes=("bfloat16", "float32"),
    head_dim_below=LANES,
    segments=True,
    window=True,
    softcap=True,
)
