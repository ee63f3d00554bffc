"""Which numbers describe a checkpoint?

A measure is a function `(model, params, data, rng) -> rows`: it neither plots nor writes. `Protocol` binds the data, compiles
each measure once and runs them all.
"""

from elastic_jax.callable_modules import calls

calls(__name__, "elastic_jax.analysis.table:load")  # `ej.measures(path)`
