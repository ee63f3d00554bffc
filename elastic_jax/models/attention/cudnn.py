"""How is attention computed on an NVIDIA GPU? By cuDNN's fused kernel.

Shapes: b batch, t position, k kv_heads, g query heads per kv head, n = k * g heads, h head_dim.
"""

import jax
import jax.numpy as jnp

from elastic_jax.models import remat
from elastic_jax.models.attention.backend import Backend
from elastic_jax.models.attention.view import View


def attend(
    q_btkgh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    view: View,
    *,
    window: int = 0,
    softcap: float = 0.0,
    scale: float = 0.0,
) -> jax.Array:
    """Attention within whole rows; `softcap` must be 0.

    The public interface takes no segment ids and would not miss them. Packed rows are given a dense mask instead,
    [b, 1, t, t] in bfloat16, which all heads share: exact, at the price of its memory and of blocks that are computed in vain.
    """
    assert not softcap, "declared as unsupported"
    b, t, k, g, h = q_btkgh.shape
    q_btnh = q_btkgh.reshape(b, t, k * g, h)
    if t % 2:  # jax's check of the backward pass wants even lengths; no query looks at the end of a row
        q_btnh, k_bskh, v_bskh = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q_btnh, k_bskh, v_bskh))
        view = View(None if view.segments_bt is None else jnp.pad(view.segments_bt, ((0, 0), (0, 1))))
    mask = None
    if view.segments_bt is not None:
        # The window goes into the mask: cuDNN does not combine its own with one.
        mask, window = view.mask(q_btnh.shape[1], k_bskh.shape[1], window)[:, None], 0
    out_btnh = jax.nn.dot_product_attention(
        q_btnh,
        k_bskh,
        v_bskh,
        mask=mask,
        scale=scale or None,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )
    return remat.named(out_btnh[:, :t].reshape(b, t, k, g, h), remat.CONTEXT)


BACKEND = Backend(
    name="cudnn",
    attend=attend,
    platforms=("gpu",),
    dtypes=("bfloat16",),
    head_dim_step=8,
    head_dim_max=((9.0, 256), (0.0, 128)),
    capability=8.0,
    segments=True,
    window=True,
)
