"""What may every test rely on? Eight devices on any machine, strict shapes, and a compilation cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 8

# Read by jax on import, and inherited by the processes that tests start. What the user has set stays.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()
    )
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config: pytest.Config) -> None:
    # Most of a test run is XLA compiling, a third of which is optimising. The default suite goes without, unless it is told that
    # programs are to be those of users; slow tests and comparisons with other frameworks always have them.
    if config.getoption("markexpr") == "not slow" and not os.environ.get("ELASTIC_TEST_OPTIMIZED"):
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    # The workers share what it made, and so does the next run.
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("xla")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    if "jax" in sys.modules:
        raise pytest.UsageError(
            "A pytest plugin imported jax before tests/conftest.py could set its devices; "
            "run pytest without that plugin (-p no:<name>)."
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Programs of both kinds in one process would differ in their last bits by which test came first.
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"):
        for item in items:
            if item.get_closest_marker("optimized"):
                item.add_marker(pytest.mark.skip(reason="holds of optimised programs: ELASTIC_TEST_OPTIMIZED=1 pytest"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped elsewhere."""
    folder = Path(os.environ.get("ELASTIC_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set ELASTIC_SHARED_DATA to a folder that has it)")
    return folder


@pytest.fixture(scope="session")
def cpu_devices() -> list:
    """The eight fake devices."""
    import jax

    devices = jax.devices("cpu")
    if len(devices) < DEVICES:
        pytest.skip(f"XLA_FLAGS of this shell asks for {len(devices)} devices, not {DEVICES}")
    return devices[:DEVICES]


@pytest.fixture(scope="session")
def clean_import() -> list[str]:
    """The heavy frameworks that a fresh interpreter holds after importing every module of the package."""
    script = """
import importlib, pkgutil, sys
import elastic_jax
for module in pkgutil.walk_packages(elastic_jax.__path__, "elastic_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*[name for name in ("tensorflow", "torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
