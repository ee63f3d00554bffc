"""How does a command keep the operating system out of what XLA allocates on a CPU?

XLA takes and returns hundreds of megabytes in every step. In pages of 4 KB the processor spends much of the step looking them up: on two
cores a training step of a 1M model takes 385 ms so, and 300 ms with 2 MB pages. What is returned to Linux has to be filled with
zeros before it is given out again, a tenth of such a step; blocks that the allocator keeps cost nothing (benchmarks/step.py
shows the whole step). glibc asks Linux for large pages, and keeps what was returned, when its tunables say so, which it reads
only when a process starts. A command therefore starts itself once more, in place, before anything is loaded.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from elastic_jax.parallel import hardware

TUNABLES, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
OFF = "ELASTIC_HUGE_PAGES"  # =off leaves the process as it was started
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Larger blocks go back to Linux: a heap that keeps them all comes to several times what is in use at once, since a small
# array that lies in the place of a large one sends the next large one elsewhere.
_KEPT_BYTES, _KEPT_SHARE = 2**30, 32


def environment(
    environ: Mapping[str, str],
    policy: str | None = None,
    libc: tuple[str, str] | None = None,
    memory: int | None = None,
) -> dict[str, str]:
    """What has to be added to `environ` for large pages and kept blocks; {} where neither is to be had, or the user decided.

    Args:
      policy: what Linux says of transparent huge pages, e.g. "always [madvise] never"; by default read from this machine.
      libc: name and version of the C library, likewise.
      memory: bytes of this machine, likewise; blocks of up to a 32nd of them, and of 1 GiB, are kept.
    """
    set_by_user = environ.get(TUNABLES, "")
    if environ.get(OFF, "").lower() == "off" or TUNABLE in set_by_user:
        return {}
    name, version = platform.libc_ver() if libc is None else libc
    if name != "glibc" or _numbers(version) < (2, 35):  # which has the tunable, and no limit on the other two
        return {}
    if policy is None:
        try:
            policy = _POLICY.read_text()
        except OSError:
            policy = ""
    memory = (hardware.host_memory() or 0) if memory is None else memory
    kept = min(_KEPT_BYTES, memory // _KEPT_SHARE)
    # One arena: the heaps of further ones hold no block of more than 64 MB.
    wanted = {
        "glibc.malloc.mmap_threshold": str(kept),
        "glibc.malloc.trim_threshold": str(kept),
        "glibc.malloc.arena_max": "1",
    }
    if "[madvise]" in policy:  # "always" needs no one to ask, "never" gives none
        wanted = {TUNABLE: "1", **wanted}
    added = [f"{tunable}={value}" for tunable, value in wanted.items() if tunable not in set_by_user]
    return {TUNABLES: ":".join(filter(None, (set_by_user, *added)))} if added else {}


def restart() -> None:
    """Start this very command again with these tunables, if it was not; does not return when it does."""
    added = environment(os.environ)
    if added and sys.executable and len(sys.orig_argv) > 1:
        os.environ.update(added)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
