"""elastic_jax: the laboratory for the elasticity of language models.

    import elastic_jax as ej
    config = ej.load("configs/quickstart.py:tiny")
    ej.run(config, "runs/tiny")

The names below are imported on first use: `import elastic_jax` itself imports neither jax nor anything else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastic_jax.analysis.table import load as measures
    from elastic_jax.config import default, load
    from elastic_jax.errors import UserError
    from elastic_jax.hf.export import export
    from elastic_jax.report import render as report
    from elastic_jax.study import Study, open_study, run
    from elastic_jax.study.planning import plan

__version__ = "0.1.0"

_HOMES = {
    "load": ("elastic_jax.config", "load"),
    "default": ("elastic_jax.config", "default"),
    "plan": ("elastic_jax.plan", ""),  # these modules are commands too, and callable
    "run": ("elastic_jax.run", ""),
    "export": ("elastic_jax.export", ""),
    "open_study": ("elastic_jax.study", "open_study"),
    "Study": ("elastic_jax.study", "Study"),
    "measures": ("elastic_jax.analysis.table", "load"),
    "report": ("elastic_jax.report", ""),
    "UserError": ("elastic_jax.errors", "UserError"),
}
__all__ = ["Study", "UserError", "default", "export", "load", "measures", "open_study", "plan", "report", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'elastic_jax' has no attribute {name!r}. Public names: {', '.join(__all__)}.")
    module, attribute = _HOMES[name]
    home = importlib.import_module(module)
    return getattr(home, attribute) if attribute else home


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
