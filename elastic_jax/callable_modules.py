"""How can `elastic_jax.run` be a command line (`python -m elastic_jax.run`) and a function (`ej.run(config, workdir)`)?

Importing a submodule binds its name in the package, over any function of that name. So the module itself is made callable.
"""

import importlib
import sys
import types
from typing import Any


def calls(module: str, target: str) -> None:
    """Let a call of `module` call `target` ("package.module:function"), imported then."""

    class CallableModule(types.ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            home, _, name = target.partition(":")
            return getattr(importlib.import_module(home), name)(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
