"""What of a block is kept for the backward pass, and what is computed again?

The large arrays of a block have names; a policy says which are kept beside the block's input. Numbers kept per token and layer,
with d embed, f mlp and as many key heads as query heads:

  none                              everything that a derivative needs
  save_qkv_attn_mlp_in              6 d + 2 f: qkv, attention output, its projection, gate and up
  dots                              5 d + 2 f: the same without the attention output
  save_dot_with_context_except_mlp  6 d: the same without gate and up, so that one product of the feed-forward is repeated
  offload                           d: what save_qkv_attn_mlp_in keeps lies in the memory of the host
  full                              d: the whole block is repeated

Norms, rotary embedding and activation function are repeated by all but "none", and so is the last product of a feed-forward whose
result goes through a norm. So is the softmax of the reference attention; the forward kernel of another backend runs again where
its own residuals are not kept.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

QKV, CONTEXT, ATTENTION_OUT, MLP_IN = "qkv", "context", "attention_out", "mlp_in"

POLICIES: dict[str, Callable[..., Any]] = {
    "save_qkv_attn_mlp_in": jax.checkpoint_policies.save_only_these_names(QKV, CONTEXT, ATTENTION_OUT, MLP_IN),
    "dots": jax.checkpoint_policies.save_only_these_names(QKV, ATTENTION_OUT, MLP_IN),
    "save_dot_with_context_except_mlp": jax.checkpoint_policies.save_only_these_names(QKV, CONTEXT, ATTENTION_OUT),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[QKV, CONTEXT, ATTENTION_OUT, MLP_IN],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def named(x: jax.Array, name: str) -> jax.Array:
    """x itself, under the name that the policies know it by."""
    return checkpoint_name(x, name)
