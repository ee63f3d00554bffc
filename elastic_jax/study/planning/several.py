"""How many runs does a study train at the same time, and what does one update then take of its time?"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from jax.sharding import Mesh

from elastic_jax.config import Config
from elastic_jax.parallel import ahead
from elastic_jax.parallel.mesh import make_mesh
from elastic_jax.parallel.topology import Topology
from elastic_jax.study import population, threads


def at_once(config: Config, mesh: Mesh, params: int, runs: int) -> int:
    """Threads that have a run each.

    Args:
      params: of the model.
      runs: of the study: more of them are not at work.

    Raises:
      UserError: `at_once` of the config cannot work on this mesh.
    """
    return min(threads.count(config.at_once, mesh, params, population.width(config.population, mesh, params)), runs)


def at_once_elsewhere(config: Config, topology: Topology, params: int, runs: int) -> int | None:
    """The same for devices that are not here; None where they are not one CPU, on which threads depend.

    The cores are those of this machine, as the memory of `cpu:1` is.
    """
    if config.at_once == "off":
        return 1
    if topology.chip.platform != "cpu" or topology.devices > 1:
        return None
    return at_once(config, make_mesh(1, 1, 1, devices=ahead.devices(topology)), params, runs)


def seconds_each(count: int, rounds: int, call: Callable[[int], None]) -> float:
    """Seconds of the study's time for one call, while `count` threads call again and again; each gives `call` its number.

    The median: what else the machine does meanwhile should not decide.
    """

    def repeat(number: int) -> list[float]:
        spent = []
        for _ in range(rounds):
            began = time.perf_counter()
            call(number)
            spent.append(time.perf_counter() - began)
        return spent

    if count == 1:
        found = [repeat(0)]
    else:
        with ThreadPoolExecutor(count, "timed") as pool:
            found = list(pool.map(repeat, range(count)))
    return statistics.median(seconds for spent in found for seconds in spent) / count
