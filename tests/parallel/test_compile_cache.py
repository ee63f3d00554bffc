"""Is a program compiled once, and does a damaged entry never break a run?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elastic_jax.errors import UserError
from elastic_jax.parallel import compile_cache
from elastic_jax.parallel.compile_cache import Cache


def test_where_it_is():
    assert compile_cache.user_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/elastic_jax")
    assert compile_cache.user_folder({compile_cache.VARIABLE: "/fast"}) == Path("/fast")
    assert compile_cache.user_folder({compile_cache.VARIABLE: "off"}) is None
    with pytest.raises(UserError, match="expected a local folder"):
        compile_cache.user_folder({compile_cache.VARIABLE: "gs://bucket/cache"})
    with pytest.raises(UserError, match="ELASTIC_COMPILE_CACHE_GB=much: expected gigabytes"):
        compile_cache._gigabytes({compile_cache.CEILING: "much"})


def test_an_entry_comes_back_and_a_damaged_one_is_written_again(tmp_path):
    cache = Cache(tmp_path, 10**6)
    assert cache.get("a") is None
    cache.put("a", b"program")
    assert cache.get("a") == b"program"
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert cache.get("a") is None and not path.exists()
        cache.put("a", b"program")
        assert cache.get("a") == b"program"


def test_the_ceiling_takes_what_was_not_used_for_longest(tmp_path):
    cache = Cache(tmp_path, 1000)
    for number, name in enumerate("abcd"):
        cache.put(name, bytes(200))
        os.utime(cache._entry(name), (number, number))
    assert cache.get("a") is not None  # used now
    cache.put("e", bytes(200))
    assert [name for name in "abcde" if cache._entry(name).exists()] == ["a", "d", "e"]


def test_a_disk_that_fails_is_no_error(tmp_path):
    cache = Cache(tmp_path / "gone", 1000)
    cache.put("a", b"x")
    assert cache.get("a") is None


SCRIPT = """
import jax, jax.numpy as jnp
from elastic_jax.parallel import compile_cache
counter = compile_cache.enable()
value = jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x)))(jnp.arange(64.0).reshape(8, 8) / 64)
print(f"{counter.hits} {counter.requests} {float(value).hex()} {counter.folder}")
"""


def test_a_second_process_takes_the_programs_of_the_first_and_their_numbers(tmp_path):
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    environ |= {compile_cache.VARIABLE: str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}

    def run():
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        hits, requests, value, folder = done.stdout.split()
        return int(hits), int(requests), value, Path(folder), done.stderr

    hits, requests, value, folder, _ = run()
    assert hits == 0 and requests > 0 and folder.parent == tmp_path / "programs"
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    assert run()[:3] == (requests - 1, requests, value)
    assert run()[:3] == (requests, requests, value)
