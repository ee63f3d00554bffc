"""Does every remat policy give the same numbers, for less memory in the order that is documented?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from elastic_jax.models.config import ModelConfig
from elastic_jax.models.remat import POLICIES

ROWS, LENGTH = 16, 32
# From the one that keeps most. On CPU `offload` keeps what it would send away: the host's memory is the device's.
ORDER = ["none", "save_qkv_attn_mlp_in", "dots", "save_dot_with_context_except_mlp", "full"]


def measured(remat, family="llama", **fields):
    """Temporary bytes, loss and gradient. Scanned, since XLA on CPU may undo rematerialisation where it sees all layers."""
    model = tiny.decoder(family, layout="scan", remat=remat, **fields)
    tokens = tiny.tokens(ROWS, LENGTH)

    def loss(params, tokens):
        return model.nll_sum(params, tokens[:, :-1], tokens[:, 1:], jnp.ones((ROWS, LENGTH - 1)))

    compiled = jax.jit(jax.value_and_grad(loss)).lower(model.shapes, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes, *compiled(tiny.random_params(model, std=0.1), tokens)


@pytest.fixture(scope="module")
def all_of_them():
    fields = dict(layers=4, embed=32, mlp=86, kv_heads=4)
    return {remat: measured(remat, **fields) for remat in (*ORDER, "offload")}


@pytest.mark.slow
def test_memory_falls_in_the_documented_order(all_of_them):
    sizes = [all_of_them[remat][0] for remat in ORDER]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert all_of_them["offload"][0] <= all_of_them["save_qkv_attn_mlp_in"][0]


@pytest.mark.slow
def test_no_policy_changes_a_number(all_of_them):
    _, loss, gradient = all_of_them["none"]
    for remat in POLICIES:
        np.testing.assert_allclose(all_of_them[remat][1], loss, rtol=1e-5)
        tiny.assert_trees_close(all_of_them[remat][2], gradient, rtol=1e-4, atol=1e-4)


def test_every_policy_can_be_chosen():
    (field,) = (field for field in ModelConfig.__dataclass_fields__.values() if field.name == "remat")
    assert set(field.type.__args__) == {"none", *POLICIES}
