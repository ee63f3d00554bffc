"""How does a command get large memory pages for what XLA allocates on a CPU?

XLA takes and returns hundreds of megabytes in every step. In pages of 4 KB the processor spends much of the step looking them up: on two
cores a training step of a 1M model takes 385 ms so, and 300 ms with 2 MB pages (benchmarks/step.py shows the whole step). glibc asks
Linux for large pages when its tunable `glibc.malloc.hugetlb` says so, which it reads only when a process starts. A command
therefore starts itself once more, in place, before anything is loaded.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLES, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
OFF = "ELASTIC_HUGE_PAGES"  # =off leaves the process as it was started
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(
    environ: Mapping[str, str], policy: str | None = None, libc: tuple[str, str] | None = None
) -> dict[str, str]:
    """What has to be added to `environ` for large pages; {} where they are not to be had, not needed, or the user decided.

    Args:
      policy: what Linux says of transparent huge pages, e.g. "always [madvise] never"; by default read from this machine.
      libc: name and version of the C library, likewise.
    """
    set_by_user = environ.get(TUNABLES, "")
    if environ.get(OFF, "").lower() == "off" or TUNABLE in set_by_user:
        return {}
    if policy is None:
        try:
            policy = _POLICY.read_text()
        except OSError:
            return {}
    name, version = platform.libc_ver() if libc is None else libc
    # "always" needs no one to ask, "never" gives none; the tunable came with glibc 2.35.
    if "[madvise]" not in policy or name != "glibc" or _numbers(version) < (2, 35):
        return {}
    return {TUNABLES: ":".join(filter(None, (set_by_user, f"{TUNABLE}=1")))}


def restart() -> None:
    """Start this very command again with large pages, if it was not; does not return when it does."""
    added = environment(os.environ)
    if added and sys.executable and len(sys.orig_argv) > 1:
        os.environ.update(added)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
