"""How are runs that do not depend on one another trained at the same time, on one device?

A small model leaves most of a processor idle: its products are too small to be cut into parts for other cores, and nothing is computed
while Python prepares the next update or scores samples. So several runs go on side by side, each in a thread, on programs that they
share. The numbers of a run do not depend on it: it is the same program, on the same arrays.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import jax
from jax.sharding import Mesh

from elastic_jax.errors import UserError
from elastic_jax.parallel import hardware
from elastic_jax.study.tree import Run

# Above it one update keeps the cores of a processor busy by itself.
_SMALL = 1_000_000


def count(setting: str | int, mesh: Mesh, params: int, lanes: int) -> int:
    """How many runs at the same time.

    Args:
      setting: `at_once` of the config: "auto" (on a CPU as many as it has cores, while the model is small), "off" or a number.
      params: of the model.
      lanes: of a population; 1 where runs are trained one by one.

    Raises:
      UserError: more than one, where programs of different runs would wait for each other.
    """
    if setting == "off":
        return 1
    apart = mesh.size == 1 and jax.process_count() == 1 and lanes == 1
    if setting == "auto":
        alone = not apart or params > _SMALL or mesh.devices.flat[0].platform != "cpu"
        return 1 if alone else max(1, hardware.host_cores())
    if int(setting) > 1 and not apart:
        what = f"a population of {lanes}" if lanes > 1 else "several devices, whose programs would wait for each other"
        raise UserError(f"at_once={setting} with {what}. Use at_once=off, or auto.")
    return int(setting)


def run_all(
    runs: Sequence[Run], count: int, execute: Callable[[Run], None], stop: Callable[[], None] = lambda: None
) -> None:
    """Execute every run, up to `count` at the same time, none before what it requires.

    Args:
      stop: called when this thread is interrupted: asks those that are at work to end early.

    Raises:
      what the first run raised that failed, when the others at work are at their ends; none is begun after it.
    """
    open_keys = {run.key for run in runs}
    waiting, working = list(runs), dict[Future[None], Run]()
    failed: BaseException | None = None
    with ThreadPoolExecutor(count, "run") as threads:
        try:
            while working or (waiting and failed is None):
                ready = [] if failed else _ready(waiting, open_keys)[: count - len(working)]
                for run in ready:
                    waiting.remove(run)
                    working[threads.submit(execute, run)] = run
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    open_keys.discard(working.pop(future).key)
                    failed = failed or future.exception()
        except BaseException:
            stop()
            raise
    if failed is not None:
        raise failed


def _ready(waiting: Sequence[Run], open_keys: Collection[str]) -> list[Run]:
    return [run for run in waiting if not any(needed.key in open_keys for needed in run.requires)]
