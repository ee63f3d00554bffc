"""How do the jobs of a study become the files that an engine reads?"""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_jax.data.files import write_text
from elastic_jax.launch import options as options_lib
from elastic_jax.launch.backends import BACKENDS
from elastic_jax.launch.spec import PORT, REQUEUE, Launch

SUBMIT = "submit.sh"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The rendered files, `submit.sh` last: it is what is run.

    Attributes:
      files: name -> content.
      folder: where they belong.
    """

    files: Mapping[str, str]
    folder: str

    def __str__(self) -> str:
        """Every file under its path: what a dry run prints."""
        return "\n".join(f"==> {self.folder}/{name} <==\n{text}" for name, text in self.files.items())

    def write(self) -> Path:
        """Writes the files, and returns the path of the script."""
        for name, text in self.files.items():
            write_text(Path(self.folder) / name, text)
        return Path(self.folder) / SUBMIT


def render(launch: Launch, backend: str) -> Manifest:
    """The files of one backend; the same launch gives the same bytes.

    Raises:
      UserError: an unknown backend, or options or machines that it cannot work with.
    """
    if backend not in BACKENDS:
        raise options_lib.unknown_backend(backend, BACKENDS)
    found = BACKENDS[backend]
    options_lib.check(launch.options, backend, found.accepts, found.requires)
    environment = _environment()
    common = dict(launch=launch, options=launch.options, machine=launch.machine, requeue=REQUEUE, port=PORT)
    files = {}
    for name, template, context in found.files(launch):
        files[name] = environment.get_template(f"{backend}/{template}.j2").render(**common, **context)
    return Manifest(files, launch.out)


def _environment() -> Any:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("elastic_jax.launch"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and YAML, quoted by the filters below
    )
    made.filters.update(sh=_shell, path=_path, yaml=_yaml, count=_count)
    return made


def _shell(value: str | int | Sequence[str]) -> str:
    """Quoted for a shell; a sequence becomes a command line."""
    return shlex.quote(str(value)) if isinstance(value, str | int) else shlex.join(value)


def _path(value: str) -> str:
    """A path for a shell, with "~/" left to it."""
    return f"~/{shlex.quote(value[2:])}" if value.startswith("~/") else shlex.quote(value)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


def _yaml(value: Any) -> str:
    """A YAML scalar or flow sequence: JSON is both."""
    return json.dumps(value, ensure_ascii=False)
