"""With what code, versions and devices was this computed?"""

import functools
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from elastic_jax.parallel import flags
from elastic_jax.parallel.platforms import package_version

PACKAGES = (
    "elastic_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml-collections",
    "numpy", "tokenizers", "scikit-learn",
)  # fmt: skip


@functools.cache
def commit() -> str:
    """The commit of the working copy that is imported, with "+" if it was changed; "" for an installed package."""

    def git(*args: str) -> str:
        where = Path(__file__).parent
        done = subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        # A parent folder's repository is not ours: our own file must be tracked in it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict[str, str]:
    return {package: version for package in PACKAGES if (version := package_version(package))}


def describe() -> dict[str, Any]:
    """What `environment.json` holds."""
    return dict(
        commit=commit(),
        command=" ".join(["python", *sys.orig_argv[1:]]),
        python=platform.python_version(),
        platform=platform.platform(),
        devices=[device.device_kind for device in jax.devices()],
        processes=jax.process_count(),
        flags=flags.describe(),
        versions=versions(),
    )
