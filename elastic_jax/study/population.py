"""Which runs can be trained as one program, and how do they go through it together?

Siblings have the same shapes and the same code; what differs is numbers: seeds, starts, lengths, and the hyper-parameters of
optimiser and objective, which the program is given as arrays. Runs that train adapters (`models.adapted`) share the frozen
parameters as well, once for all lanes. It holds `width` lanes, each the state of one run, over the `run`
axis of the mesh. A run takes a lane when it begins and leaves it when it ends, and another sibling takes its place; a lane that
nobody has is left as it is. So runs of different lengths, and a run that fails, cost the others nothing.

Two ways to go through the lanes of a device:
 - "loop": one after the other, only those in use. A lane's numbers are bit for bit what they are in any other company, or alone,
   on a mesh of the same kind. No launches in between, but no larger products either. For CPU: there one run alone keeps
   the cores busy, and the same bits are worth more than what could be won.
 - "vmap": all at once. Kernels of another shape round differently, so the width is fixed by the config and the mesh, never by
   how many runs there are or are left: a lane's numbers do not depend on its company, and are the same after a kill.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elastic_jax import objectives
from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError
from elastic_jax.models import adapted
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import batch_sharding, put_global, replicated
from elastic_jax.study.tree import Run
from elastic_jax.train import loop, optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.state import TrainState
from elastic_jax.train.step import frozen_places, make_update

Way = Literal["loop", "vmap"]
Frozen = Callable[[], Params | None]  # the parameters that adapters adapt; None where there are none

# Lanes for each device of the `run` axis under population="auto".
_LANES = {"cpu": 1}
_LANES_OF_ACCELERATORS = 8
# Above it a step is no longer a matter of launches, and eight states may not fit.
_SMALL = 10_000_000


def way(platform: str) -> Way:
    """How the lanes of one device are gone through."""
    return "loop" if platform == "cpu" else "vmap"


def width(setting: str | int, mesh: Mesh, params: int) -> int:
    """Lanes of a population; 1 where runs are better trained one by one.

    Args:
      setting: `population` of the config: "auto", "off" or the number of lanes.
      params: of the model.

    Raises:
      UserError: a run axis that would not be used, or over which the lanes do not divide.
    """
    over = mesh.shape["run"]
    if setting == "off":
        if over > 1:
            raise UserError(
                f"mesh.run={over} has no effect with population=off. Use --config.mesh.run=1, or population=auto."
            )
        return 1
    if setting != "auto":
        lanes = int(setting)
        if lanes % over:
            near = " or ".join(str(n) for n in (lanes // over * over, -(-lanes // over) * over) if n)
            raise UserError(f"population={lanes} does not divide over mesh axis run = {over}. Use {near}.")
        return lanes
    platform = mesh.devices.flat[0].platform
    return over * (_LANES.get(platform, _LANES_OF_ACCELERATORS) if params <= _SMALL else 1)


def lanes(width: int, siblings: int, mesh: Mesh) -> int:
    """Lanes for so many runs: none that stay empty where that changes no number."""
    over = mesh.shape["run"]
    return min(width, -(-siblings // over) * over) if way(mesh.devices.flat[0].platform) == "loop" else width


def kind(run: Run, rows: int | None = None) -> str:
    """Equal for runs that one compiled update serves.

    Args:
      rows: of a packed batch.
    """
    varying = objectives.numbers(run.objective)
    fixed = {k: v for k, v in run.objective.items() if k not in varying}
    lora = run.lora.identity if run.lora else None
    role = "task" if run.sequence else run.role  # the rows of all tasks have one shape
    how = [role, run.batch_size, run.accumulate, run.reduce, rows, lora, run.last_batch if run.last_rows else ""]
    return digest_of([fixed, optim.structure(run.optim), *how])


def frozen_under(run: Run) -> str:
    """Equal for runs whose adapters are of the same parameters; "" where a run trains all of them."""
    root = run.root
    return "" if run.lora is None else root.base.label if root.base is not None else root.key


def siblings(runs: Sequence[Run], rows: Callable[[Run], int | None] = lambda run: None) -> list[list[Run]]:
    """The runs in groups of one stage and kind, and of one base under LoRA, in an order in which parents come before children.

    It follows from the tree alone, not from what is done already. On-policy runs stay by themselves: they write their batches
    with their own parameters.
    """
    shape = {
        run.key: run.key
        if objectives.make(dict(run.objective)).rollout
        else run.stage + kind(run, rows(run)) + frozen_under(run)
        for run in runs
    }
    left, groups = list(runs), []
    while left:
        waiting = {run.key for run in left}
        ready = [run for run in left if waiting.isdisjoint(needed.key for needed in run.requires)]
        whole = collections.Counter(shape[run.key] for run in left)
        here = collections.Counter(shape[run.key] for run in ready)
        # A group all of which can begin, so that none is trained in pieces; where there is no such group, what can begin.
        chosen = next((s for s in here if here[s] == whole[s]), shape[ready[0].key])
        groups.append([run for run in ready if shape[run.key] == chosen])
        left = [run for run in left if run not in groups[-1]]
    return groups


def numbers(run: Run) -> dict[str, dict[str, float]]:
    """What a sibling may have of its own, beside its state and its batches."""
    return dict(optim=optim.numbers(run.optim, run.updates), objective=objectives.numbers(run.objective))


class Program:
    """The update of all runs of one kind, compiled for a single run and, on demand, for the lanes of a population.

    Attributes:
      tx: an optimiser with the structure of theirs, for shapes.
      places: shardings of a single state.
    """

    def __init__(self, model: Decoder, mesh: Mesh, like: Run):
        trained = self._model = adapted.trained(model, like.lora)
        self.mesh, self._like = mesh, like
        self.tx: optax.GradientTransformation = optim.make(like.optim, like.updates)
        self.places: TrainState = state_lib.shardings(trained, self.tx, mesh)
        self.frozen_places = frozen_places(trained, mesh)
        self.create = state_lib.creator(trained, self.tx, mesh)
        whole = replicated(mesh)
        self._alone = jax.jit(
            self.update,
            in_shardings=(self.places, batch_sharding(mesh), whole, whole, self.frozen_places),
            out_shardings=(self.places, whole),
            donate_argnums=0,
        )

    def update(
        self,
        state: TrainState,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        given: Mapping[str, Any],
        frozen: Params | None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """`make_update` for a run with these `numbers`."""
        run = self._like
        tx = optim.make(run.optim, run.updates, given["optim"])
        objective = objectives.make(dict(run.objective), given["objective"])
        update = make_update(self._model, objective, tx, self.mesh, run.accumulate, run.reduce, run.last_batch)
        return update(state, dict(batch), key, frozen)

    def alone(self, run: Run, frozen: Frozen = lambda: None) -> loop.Launch:
        """The step of one run by itself. It takes the numbers as lanes do, and so has the bits of a lane."""
        given = jax.device_put(_arrays(numbers(run)), replicated(self.mesh))

        def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            with jax.set_mesh(self.mesh):
                return self._alone(state, batch, key, given, frozen())

        return step


@dataclasses.dataclass(frozen=True)
class Lane:
    """The state of a run that lies in a population, as the training loop passes it on."""

    population: "Population"
    number: int

    def cut(self) -> TrainState:
        """A copy of its own, placed as that of a run by itself."""
        return self.population.cut(self.number)


class _Round:
    """The metrics of all lanes after one update: fetched once, when the first of them is looked at."""

    def __init__(self, metrics: dict[str, jax.Array]):
        self._metrics: Any = metrics
        self._fetched = False

    def value(self, name: str, lane: int) -> float:
        if not self._fetched:
            self._metrics, self._fetched = jax.device_get(self._metrics), True
        return float(self._metrics[name][lane])


@dataclasses.dataclass(frozen=True)
class _Metric:
    round: _Round
    name: str
    lane: int

    def __float__(self) -> float:
        return self.round.value(self.name, self.lane)


class Population:
    """`width` lanes for runs of one kind. A run comes in with its first update and has to `leave`.

    Args:
      frozen: the parameters that all of them adapt, asked for with the first update.
    """

    def __init__(self, program: Program, width: int, how: Way | None = None, frozen: Frozen = lambda: None):
        mesh = program.mesh
        over = mesh.shape["run"]
        if width % over:
            raise ValueError(f"{width} lanes do not divide over the run axis of {over}")
        self.program, self.width, self._frozen = program, width, frozen
        self.way: Way = how or way(mesh.devices.flat[0].platform)
        self._of: dict[str, int] = {}  # run key -> lane
        self._lanes = NamedSharding(mesh, PartitionSpec("run"))
        self._batches = NamedSharding(mesh, PartitionSpec("run", *batch_sharding(mesh).spec))
        self._places = jax.tree.map(
            lambda place: NamedSharding(mesh, PartitionSpec("run", *place.spec)), program.places
        )
        self._states: TrainState | None = None
        # On the host, lane by lane; `_on_device` is what the program is given of the first two.
        self._keys: Any = None
        self._given: Any = None
        self._on_device: Any = None
        self._batch_of: dict[str, np.ndarray] = {}

    @functools.cached_property
    def _step(self) -> Any:
        through = {"loop": self._looped, "vmap": self._mapped}[self.way]
        mesh, lanes = self.program.mesh, PartitionSpec("run")
        if mesh.shape["run"] > 1:
            # By hand over `run`, since nothing is exchanged there; the other axes stay the partitioner's.
            through = jax.shard_map(
                through,
                mesh=mesh,
                in_specs=(*(lanes,) * 5, PartitionSpec(), PartitionSpec()),
                out_specs=lanes,
                axis_names={"run"},
                check_vma=False,
            )
        return jax.jit(
            through,
            in_shardings=(
                self._places,
                self._batches,
                *(self._lanes,) * 3,
                replicated(mesh),
                self.program.frozen_places,
            ),
            # Every process reads the metrics of every lane.
            out_shardings=(self._places, self._lanes if jax.process_count() == 1 else replicated(mesh)),
            donate_argnums=0,
        )

    def _looped(
        self, states: Any, batches: Any, keys: Any, given: Any, used: jax.Array, rounds: jax.Array, frozen: Any
    ) -> Any:
        order = jnp.argsort(~used, stable=True)  # those in use first
        of = lambda tree, lane: jax.tree.map(  # noqa: E731
            lambda x: jax.lax.dynamic_index_in_dim(x, lane, keepdims=False), tree
        )
        inputs = (batches, keys, given)
        first = jax.eval_shape(lambda *trees: self.program.update(*of(trees, 0), frozen=frozen), states, *inputs)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((len(used), *leaf.shape), leaf.dtype), first[1])

        def one(place: jax.Array, carry: Any) -> Any:
            lane = order[place]
            old = of(carry, lane)
            new = self.program.update(old[0], *of(inputs, lane), frozen=frozen)
            # On a device with fewer runs than another the last rounds are of no use.
            return jax.tree.map(
                lambda x, a, b: jax.lax.dynamic_update_index_in_dim(x, jnp.where(used[lane], a, b), lane, 0),
                carry, new, old,
            )  # fmt: skip

        # Equally often on all devices: they may have to meet inside, over the other axes.
        return jax.lax.fori_loop(0, rounds, one, (states, metrics))

    def _mapped(
        self, states: Any, batches: Any, keys: Any, given: Any, used: jax.Array, rounds: jax.Array, frozen: Any
    ) -> Any:
        del rounds
        new, metrics = jax.vmap(self.program.update, in_axes=(0, 0, 0, 0, None))(states, batches, keys, given, frozen)
        keep = lambda a, b: jnp.where(used.reshape(-1, *(1,) * (a.ndim - 1)), a, b)  # noqa: E731
        return jax.tree.map(keep, new, states), metrics

    @functools.cached_property
    def _put_in(self) -> Any:
        def put_in(states: TrainState, state: TrainState, lane: jax.Array) -> TrainState:
            return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, lane, 0), states, state)

        return jax.jit(put_in, out_shardings=self._places, donate_argnums=0)

    @functools.cached_property
    def _cut(self) -> Any:
        def cut(states: TrainState, lane: jax.Array) -> TrainState:
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, lane, keepdims=False), states)

        return jax.jit(cut, out_shardings=self.program.places)

    def cut(self, lane: int) -> TrainState:
        return self._cut(self._states, np.int32(lane))

    def leave(self, run: Run) -> None:
        """The lane of a run, if it had one, is free for another."""
        self._of.pop(run.key, None)

    def _free(self) -> int:
        """A lane that nobody has, on a device with as few runs as any."""
        each, taken = self.width // self.program.mesh.shape["run"], set(self._of.values())
        busy = collections.Counter(lane // each for lane in taken)
        return min(
            (lane for lane in range(self.width) if lane not in taken), key=lambda lane: (busy[lane // each], lane)
        )

    def _enter(self, run: Run, state: TrainState, key: jax.Array) -> int:
        lane = self._free()
        self._of[run.key] = lane
        if self._states is None:
            zeros = lambda: jax.tree.map(lambda x: jnp.zeros((self.width, *x.shape), x.dtype), state)  # noqa: E731
            self._states = jax.jit(zeros, out_shardings=self._places)()
            raw = jax.random.key_data(key)
            self._keys = np.zeros((self.width, *raw.shape), raw.dtype)
            self._given = jax.tree.map(lambda x: np.ones((self.width,), np.float32), numbers(run))
        self._states = self._put_in(self._states, state, np.int32(lane))
        self._keys[lane] = jax.random.key_data(key)
        for section, values in numbers(run).items():
            for name, value in values.items():
                self._given[section][name][lane] = value
        put = lambda x: put_global(x.copy(), self._lanes)  # noqa: E731
        self._on_device = jax.random.wrap_key_data(put(self._keys)), jax.tree.map(put, self._given)
        return lane

    def launch(self, asked: Sequence[tuple[Run, loop.Update]]) -> list[tuple[Lane, dict[str, _Metric]]]:
        """One update of each of these runs, at most `width` of them; batches are host arrays of all rows."""
        for run, update in asked:
            if run.key not in self._of:
                self._enter(run, update.state, update.key)
        lanes = [self._of[run.key] for run, _ in asked]
        used = np.zeros(self.width, bool)
        used[lanes] = True
        rounds = used.reshape(self.program.mesh.shape["run"], -1).sum(axis=1).max().astype(np.int32)
        for (_, update), lane in zip(asked, lanes, strict=True):
            for name, rows in update.batch.items():
                there = self._batch_of.get(name)
                if there is None:
                    there = self._batch_of[name] = np.zeros((self.width, *rows.shape), rows.dtype)
                there[lane] = rows
        # Copies: the arrays are filled again while the device may still read them.
        batches = {name: put_global(rows.copy(), self._batches) for name, rows in self._batch_of.items()}
        keys, given = self._on_device
        with jax.set_mesh(self.program.mesh):
            self._states, metrics = self._step(
                self._states, batches, keys, given, put_global(used, self._lanes), rounds, self._frozen()
            )
        shared = _Round(metrics)
        return [(Lane(self, lane), {name: _Metric(shared, name, lane) for name in metrics}) for lane in lanes]


def _arrays(given: Mapping[str, Any]) -> Any:
    return jax.tree.map(np.float32, dict(given))


def together(population: Population, runs: Iterable[Run], begin: Callable[[Run], loop.Training]) -> None:
    """Bring runs of one kind to their ends, as many at a time as there are lanes.

    Args:
      begin: the course of a run: a generator that asks for updates and is sent what they give (`loop.training`).

    Raises:
      loop.NotFinite: of the runs that stopped so, when the others are at their ends.
      Interrupted: when every run that had begun has saved.
    """
    waiting = collections.deque(runs)
    going: dict[str, tuple[Run, loop.Training]] = {}
    asking: dict[str, loop.Update] = {}
    failed: list[loop.NotFinite] = []
    interrupted: list[BaseException] = []

    def advance(run: Run, course: loop.Training, sent: Any) -> None:
        """To the next update that the course asks for, or to its end."""
        try:
            asking[run.key] = course.send(sent)
            return
        except StopIteration:
            pass
        except loop.NotFinite as error:
            failed.append(error)
        except loop.Interrupted as error:
            interrupted.append(error)
        asking.pop(run.key, None)
        going.pop(run.key, None)
        population.leave(run)

    with contextlib.ExitStack() as stack:
        while waiting or going:
            while waiting and len(going) < population.width and not interrupted:
                run = waiting.popleft()
                course = begin(run)
                stack.callback(course.close)
                going[run.key] = run, course
                advance(run, course, None)
            if interrupted and not going:
                break
            asked = [(going[key][0], update) for key, update in asking.items()]
            if not asked:
                continue
            for (run, _), result in zip(asked, population.launch(asked), strict=True):
                advance(run, going[run.key][1], result)
    if interrupted:
        raise interrupted[0]
    if failed:
        raise loop.NotFinite("\n\n".join(map(str, failed)))
