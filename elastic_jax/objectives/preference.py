"""By how much does the model prefer the chosen answer to the rejected one, beyond what its reference did?

h = log pi(y|x) - log pi_ref(y|x), summed over the answer; D = h_chosen - h_rejected.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dpo(
    chosen_b: Float[Array, " b"],
    rejected_b: Float[Array, " b"],
    ref_chosen_b: Float[Array, " b"],
    ref_rejected_b: Float[Array, " b"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, " b"]:
    """DPO per pair: -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D) (arXiv 2305.18290, eq. 7; e > 0 is cDPO).

    Args:
      chosen_b, rejected_b: sequence log-probabilities under the model, in nats.
      ref_chosen_b, ref_rejected_b: the same under the frozen reference.
    """
    margin_b = beta * ((chosen_b - ref_chosen_b) - (rejected_b - ref_rejected_b))
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(margin_b) - label_smoothing * jax.nn.log_sigmoid(-margin_b)


def preferred(
    chosen_b: Float[Array, " b"],
    rejected_b: Float[Array, " b"],
    ref_chosen_b: Float[Array, " b"],
    ref_rejected_b: Float[Array, " b"],
) -> Float[Array, " b"]:
    """1 where the implicit reward ranks the pair as its labels do, else 0."""
    return ((chosen_b - ref_chosen_b) > (rejected_b - ref_rejected_b)).astype(jnp.float32)
