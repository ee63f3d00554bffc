"""How are matrices multiplied where the compiler has a fast way and does not find it by itself?

XLA on a CPU with bfloat16 units (AMX) multiplies a 2048 x 512 by 512 x 3584 in 5 ms when both are bfloat16 with rows along the
contraction and the result is float32, and in 40 ms otherwise (jax 0.10.2, two cores; in float32 it takes 25 ms). So there, and there
alone, results are taken in float32 and rounded, and a factor that has to be transposed is first written out transposed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax.parallel.device import current_device


def _cpu_bfloat16(*factors: jax.Array) -> bool:
    return all(factor.dtype == jnp.bfloat16 for factor in factors) and current_device().platform == "cpu"


def matmul(a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """a b over the last two dims, the others being a batch; `dtype` of the result, by default that of the factors."""
    return _dot(a, b, a.ndim - 1, b.ndim - 2, dtype)


def matmul_nt(a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """a b^T, likewise."""
    return _dot(a, b, a.ndim - 1, b.ndim - 1, dtype)


def matmul_tn(a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """a^T b, likewise."""
    if _cpu_bfloat16(a, b):
        return matmul(_written_transposed(a), b, dtype)
    return _dot(a, b, a.ndim - 2, b.ndim - 2, dtype)


def _dot(a: jax.Array, b: jax.Array, of_a: int, of_b: int, dtype: Any) -> jax.Array:
    dtype = jnp.result_type(a, b) if dtype is None else dtype
    batch = tuple(range(a.ndim - 2))
    widened = jnp.float32 if _cpu_bfloat16(a, b) else dtype
    product = jax.lax.dot_general(a, b, (((of_a,), (of_b,)), (batch, batch)), preferred_element_type=widened)
    return product.astype(dtype)


def _written_transposed(a: jax.Array) -> jax.Array:
    """a^T over the last two dims, in memory: a plain transpose would become a part of the product again."""
    *batch, rows, columns = a.shape
    part = next((size for size in (128, 64, 32, 16, 8, 4, 2) if rows % size == 0), 1)
    cut = a.reshape(*batch, rows // part, part, columns)
    return jnp.moveaxis(cut, -1, -3).reshape(*batch, columns, rows)


@jax.custom_vjp
def linear(x_nd: jax.Array, w_df: jax.Array) -> jax.Array:
    """x w, whose backward pass is made of the products above."""
    return matmul(x_nd, w_df)


def _linear_backward(saved: tuple[jax.Array, jax.Array], grad_nf: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_nd, w_df = saved
    return matmul_nt(grad_nf, w_df), matmul_tn(x_nd, grad_nf)


linear.defvjp(lambda x_nd, w_df: (linear(x_nd, w_df), (x_nd, w_df)), _linear_backward)
