"""Which model is a point of a study that was run before, known by its working directory alone?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from elastic_jax import config as config_lib
from elastic_jax.config import Config
from elastic_jax.errors import UserError, closest
from elastic_jax.models.transformer import Params
from elastic_jax.study import Study
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Point:
    """The model that `run` of `study` was after `updates`."""

    study: Study
    run: Run
    updates: int

    def params(self) -> Params:
        """Its parameters on the study's mesh. Raises UserError where they cannot be read; nothing is trained."""
        return self.study.params_at(self.run, self.updates)


def reopen(workdir: epath.PathLike, name: str | None = None) -> Study:
    """The study of this name in a working directory, the latest by default, on the devices that are here.

    Raises:
      UserError: no working directory, no such study, or its config no longer works.
    """
    folder = Workdir(workdir)
    folder.open(create=False)
    config = _config(folder.study(name)["config"])
    # How many devices there were is nothing that the study says; how its parameters were cut is.
    config.mesh.update(dict(run=1, data=-1))
    return Study(config, workdir)


def find(workdir: epath.PathLike, run: str, updates: int | None = None, *, name: str | None = None) -> Point:
    """A point of a run, by the run's key.

    Args:
      updates: a number of updates at which a checkpoint was kept; None: the last.
      name: of the study, where the folder holds several.

    Raises:
      UserError: no such run or point, with those that there are.
    """
    study = reopen(workdir, name)
    runs = {each.key: each for each in study.runs}
    recorded = {each["run"] for each in study.workdir.study(name)["runs"]}
    if run in recorded and run not in runs:
        raise UserError(
            f"--run={run}: it was trained by another version of elastic_jax, or on data that has changed since, so that it is no run of this "
            "study any more. Use the version that trained it."
        )
    if run not in runs:
        raise UserError(f"--run={run}: no such run in {study.config.name}. {closest(run, runs)}")
    kept = [0] if runs[run].base is not None else study.workdir.read_run(run, "DONE").get("checkpoints", [])
    if not kept:
        raise UserError(
            f"--run={run}: it has no finished checkpoint. python -m elastic_jax.status shows how far it is."
        )
    if updates is not None and updates not in kept:
        raise UserError(f"--updates={updates}: {run} has checkpoints after {', '.join(map(str, kept))} updates.")
    return Point(study, runs[run], kept[-1] if updates is None else updates)


def _config(recorded: Mapping[str, Any]) -> Config:
    """The config that `config.plain` wrote; fields that came later have their defaults."""
    data = config_lib.text_data() if recorded["data"]["kind"] == "text" else config_lib.universe_data()
    config = config_lib.default(data)
    _fill(config, recorded)
    return config


def _fill(group: Config, recorded: Mapping[str, Any]) -> None:
    with group.ignore_type(), group.unlocked():
        for name, value in recorded.items():
            known = group.get(name)
            if isinstance(value, Mapping) and isinstance(known, ConfigDict) and name not in ("objective", "variants"):
                _fill(known, value)
            elif isinstance(value, Mapping):
                group[name] = ConfigDict(_tuples(value))
            else:
                group[name] = _tuples(value)


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
