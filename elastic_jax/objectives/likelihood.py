"""How well does the model predict the tokens that count?"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


# b batch, t position, v vocabulary
def token_nll(logits_btv: Float[Array, "b t v"], targets_bt: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """Negative log-likelihood of each target, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_btv, targets_bt)


def sequence_log_prob(
    logits_btv: Float[Array, "b t v"], targets_bt: Int[Array, "b t"], mask_bt: Float[Array, "b t"]
) -> Float[Array, " b"]:
    """log p(answer | prompt) of each row, in nats: the sum over the targets that count."""
    return -jnp.sum(token_nll(logits_btv, targets_bt) * mask_bt, axis=-1)


def nll_sum(
    logits_btv: Float[Array, "b t v"], targets_bt: Int[Array, "b t"], mask_bt: Float[Array, "b t"]
) -> tuple[jax.Array, jax.Array]:
    """Summed loss and number of targets that count: their ratio is the mean loss of a batch cut into any parts."""
    mask = mask_bt.astype(jnp.float32)
    return jnp.sum(token_nll(logits_btv, targets_bt) * mask), jnp.sum(mask)
