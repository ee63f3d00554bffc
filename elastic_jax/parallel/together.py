"""How do all processes learn that one of them failed, where the others wait for it inside a library?

Orbax ends every restore with a barrier without a time-out. A process whose files cannot be read never comes there, and raises
its error to nobody. So every process says how it fared; where that cannot be said any more, a thread ends the process with the
words of the one that failed.
"""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError, first_line
from elastic_jax.parallel import distributed
from elastic_jax.train import interrupt

PATIENCE = 60.0  # seconds that the others have to notice it by themselves
_NEVER = 7 * 24 * 3600.0
_USER_ERROR = 2


class Failed(Exception):
    """At least one process failed, and all of them know; the message is that of the first."""


@contextlib.contextmanager
def all_or_none(what: str, patience: float = PATIENCE, end: Callable[[int], None] = interrupt.end) -> Iterator[None]:
    """Inside, every process does its part of `what`, which may wait for the others.

    Raises:
      Failed: on every process, when some failed and the others came out.
      UserError: on those that failed, when others did not come out within `patience` seconds; these end.
    """
    if jax.process_count() == 1:
        yield
        return
    key = distributed.unique(f"together/{what}")
    out = threading.Event()

    def watch() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone, and with it process 0
            told = distributed.wait_for(key, _NEVER)
            if told and not out.wait(patience):
                print(
                    f"error: {what}: {told}. This process would wait for it for ever, and ends.",
                    file=sys.stderr,
                    flush=True,
                )
                end(_USER_ERROR)

    threading.Thread(target=watch, name=f"together: {what}", daemon=True).start()
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if distributed.lost_peer(error):
            raise
        failure = error
        distributed.publish(key, f"process {jax.process_index()} on {socket.gethostname()}: {first_line(error)}")
    finally:
        out.set()
    try:
        texts = distributed.gather(
            first_line(failure) if failure else "", 2 * patience if failure else distributed.TIMEOUT
        )
    except (distributed.PeerLost, jax.errors.JaxRuntimeError) as lost:
        if failure is None:
            raise
        raise UserError(f"{what}: {first_line(failure)} The other processes waited for it, and ended.") from lost
    distributed.publish(key, "")  # lets the thread go
    failed = {process: text for process, text in enumerate(texts) if text}
    if failed:
        process, text = next(iter(failed.items()))
        where = "all processes" if len(failed) == len(texts) else f"process {process} of {len(texts)}"
        raise Failed(f"{text} ({where})") from failure


def same_for_all(what: str, seen: object, cure: str) -> None:
    """Raises UserError on every process, naming those for which `seen` (JSON types) is not as for process 0."""
    found = distributed.gather(json.dumps(seen, sort_keys=True))
    others = [process for process, text in enumerate(found) if text != found[0]]
    if others:
        raise UserError(
            f"{what} is not the same for {distributed.named(others)} as for process 0 ({found[others[0]][:200]} instead of "
            f"{found[0][:200]}). {cure}"
        )


def listing(folder: os.PathLike | str) -> dict[str, Any]:
    """How many files a local folder shows here, and a digest of their names and sizes; or what is in the way of looking."""
    found = []
    try:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                found.append([str(path.relative_to(folder)), path.stat().st_size])
    except OSError as error:
        return dict(error=str(error.strerror or error))
    return dict(files=len(found), bytes=sum(size for _, size in found), digest=digest_of(found)[:12])
