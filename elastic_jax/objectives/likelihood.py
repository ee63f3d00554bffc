"""How well does the model predict the tokens that count?"""

import optax
from jaxtyping import Array, Float, Int


# b batch, t position, v vocabulary
def token_nll(logits_btv: Float[Array, "b t v"], targets_bt: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """Negative log-likelihood of each target, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_btv, targets_bt)
