"""When does a command start itself again for large pages and kept blocks, and does the user's environment win?"""

import os
import subprocess
import sys

import pytest

from elastic_jax.parallel import huge_pages

ASKED, GLIBC, MEMORY = "always [madvise] never", ("glibc", "2.36"), 32 * 2**29
LARGE = "glibc.malloc.hugetlb=1"
KEPT = f"glibc.malloc.mmap_threshold={2**29}:glibc.malloc.trim_threshold={2**29}:glibc.malloc.arena_max=1"


def added(environ, policy=ASKED, libc=GLIBC, memory=MEMORY):
    return huge_pages.environment(environ, policy, libc, memory).get("GLIBC_TUNABLES", "")


def test_asked_for_where_linux_wants_to_be_asked():
    assert added({}) == f"{LARGE}:{KEPT}"
    assert added({}, "[always] madvise never") == added({}, "always madvise [never]") == KEPT


def test_a_gigabyte_is_kept_at_most():
    assert f"mmap_threshold={2**30}:" in added({}, memory=2**40)


@pytest.mark.parametrize(
    "environ, libc",
    [
        ({"ELASTIC_HUGE_PAGES": "off"}, GLIBC),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, GLIBC),
        ({}, ("glibc", "2.31")),
        ({}, ("", "")),
    ],
)
def test_left_alone(environ, libc):
    assert added(environ, libc=libc) == ""


def test_what_the_user_set_stays():
    theirs = "glibc.malloc.tcache_count=2:glibc.malloc.trim_threshold=1"
    assert added({"GLIBC_TUNABLES": theirs}).split(":") == [
        *theirs.split(":"),
        *(word for word in f"{LARGE}:{KEPT}".split(":") if "trim" not in word),
    ]


@pytest.mark.parametrize("policy", [ASKED, "[always] madvise never"])
def test_a_second_start_is_the_last(policy):
    assert added({"GLIBC_TUNABLES": added({}, policy)}, policy) == ""


@pytest.mark.skipif(not huge_pages.environment({}), reason="needs glibc 2.35")
def test_the_allocator_keeps_a_block_that_was_returned():
    script = (
        "import numpy as np, resource\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(2):\n"
        "    before = faults(); block = np.ones(2**25, np.uint8); del block\n"
        "    for _ in range(20): block = np.ones(2**25, np.uint8); del block\n"
        "    print(faults() - before)"
    )
    counts = {}
    for policy in ("", KEPT):
        environ = {**os.environ, "GLIBC_TUNABLES": policy}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True)
        counts[policy] = int(done.stdout.split()[-1])
    assert counts[KEPT] * 4 < counts[""], counts


def test_restart_keeps_command_and_process():
    script = (
        "import os, sys; from elastic_jax.parallel import huge_pages as h; print(os.getpid(), flush=True);"
        "h.environment = lambda environ: {} if 'SECOND' in environ else {'SECOND': '1'};"
        "h.restart(); print(os.environ['SECOND'], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "a b", "--c"], capture_output=True, text=True, env=dict(os.environ)
    )
    first, second, end = done.stdout.strip().splitlines()
    assert first == second and end == "1 ['a b', '--c']", done.stderr
