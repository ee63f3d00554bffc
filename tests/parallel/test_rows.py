"""Does every row have its turn once, whatever the batches and the mesh?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from elastic_jax.parallel.mesh import replicated
from elastic_jax.parallel.rows import in_batches


@pytest.mark.parametrize(("axes", "batch_size", "size"), [((1, 1, 1), 4, 4), ((2, 2, 1), 3, 4), ((8, 1, 1), 50, 56)])
@pytest.mark.parametrize("n", [1, 8, 11])
def test_rows_come_back_in_their_order(cpu_devices, axes, batch_size, size, n):
    mesh, shapes = tiny.mesh(*axes), []

    def program(batch):
        shapes.append(len(batch["x"]))
        return {"sum": jnp.sum(batch["x"], axis=1), "same": batch["y"]}

    rows = {"x": np.arange(3.0 * n, dtype=np.float32).reshape(n, 3), "y": np.arange(n, dtype=np.int32)}
    found = in_batches(jax.jit(program, out_shardings=replicated(mesh)), rows, mesh, batch_size)
    np.testing.assert_array_equal(found["sum"], rows["x"].sum(axis=1))
    np.testing.assert_array_equal(found["same"], rows["y"], strict=True)
    assert shapes == [size]  # traced once: the last batch has the shape of the others
