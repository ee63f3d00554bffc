"""When does a command start itself again for large pages, and does the user's environment win?"""

import os
import subprocess
import sys

import pytest

from elastic_jax.parallel import huge_pages

ASKED, GLIBC = "always [madvise] never", ("glibc", "2.36")


def test_asked_for_where_linux_wants_to_be_asked():
    assert huge_pages.environment({}, ASKED, GLIBC) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    "environ, policy, libc",
    [
        ({"ELASTIC_HUGE_PAGES": "off"}, ASKED, GLIBC),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, ASKED, GLIBC),
        ({}, "[always] madvise never", GLIBC),
        ({}, "always madvise [never]", GLIBC),
        ({}, ASKED, ("glibc", "2.31")),
        ({}, ASKED, ("", "")),
    ],
)
def test_left_alone(environ, policy, libc):
    assert huge_pages.environment(environ, policy, libc) == {}


def test_other_tunables_of_the_user_stay():
    added = huge_pages.environment({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, ASKED, GLIBC)
    assert added == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"}


def test_a_second_start_is_the_last():
    added = huge_pages.environment({}, ASKED, GLIBC)
    assert huge_pages.environment(added, ASKED, GLIBC) == {}


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
