"""How does a run end when it is asked to, without losing what it computed?

Schedulers send SIGTERM, or SIGUSR1 some time before (Slurm: `--signal=USR1@90`); a person presses Ctrl-C. One of several
processes may be the only one to get it, so it tells the others. A training loop saves at an update on which all agree; outside
of it nothing can be saved that is not on disk already, and the process ends at once, even inside the compiler. Either way the
exit code is `EXIT`, on which a scheduler can be told to queue the job again, and the same command continues.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

EXIT = 75  # EX_TEMPFAIL of sysexits.h: "try again later"
CTRL_C = 130  # 128 + SIGINT, as shells have it: a person wants no other try
_FOLDER, _WORD = "elastic_jax/interrupt", "word"
_ASK_EVERY = 1.0  # seconds between two looks at the others' word
# The service by which the processes meet lives in process 0: what is left of them when it goes is aborted by jax.
_LAST = 1.0
_LOOK = 0.02


class Interrupted(BaseException):
    """The process was asked to end, and everything is saved. As with KeyboardInterrupt, no `except Exception` may go on.

    Attributes:
      code: the exit code that it should end with.
      farewell: the line that says so.
    """

    def __init__(self, saved: str):
        super().__init__(saved)
        reason = requested()
        self.code = CTRL_C if reason.startswith(signal.SIGINT.name) else EXIT
        self.farewell = farewell(reason, saved, self.code)


class Listener:
    """The signals of this process, and the word of the others that they had one.

    Args:
      leave: ends the process at once; called in a thread, with the reason.
    """

    def __init__(self, leave: Callable[[str], None]):
        self._leave = leave
        self._lock = threading.RLock()  # a handler may run while the main thread holds it
        self._deferred, self._patience = 0, 0.0
        self._tell: Callable[[str], None] | None = None
        self._closed = threading.Event()
        self._asking: threading.Thread | None = None
        self.reason = ""

    @property
    def deferred(self) -> bool:
        """Whether somebody asks for `reason` before long."""
        return self._deferred > 0

    def hear(self, reason: str, *, own: bool = True) -> None:
        """Somebody wants this process to end; only the first time counts."""
        with self._lock:
            if self.reason:
                return
            self.reason = reason
            deferred = self.deferred
        if own and self._tell is not None:
            with contextlib.suppress(Exception):  # the service may be gone already
                self._tell(reason)
        if not deferred:
            self._depart()

    @contextlib.contextmanager
    def shifted(self, by: int, patience: float = 0.0) -> Iterator[None]:
        with self._lock:
            self._deferred += by
            before, self._patience = self._patience, patience
            late = self.reason and not self.deferred
        if late:
            threading.Thread(target=self._depart, name="interruption", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._deferred -= by
                self._patience = before

    def _depart(self) -> None:
        """Leaves, unless what is done now gives way to somebody who asks within its patience."""
        end = time.monotonic() + self._patience
        while not self.deferred:
            if time.monotonic() >= end:
                return self._leave(self.reason)
            time.sleep(_LOOK)

    def join(self) -> None:
        """From now on what one of the processes hears, all of them do."""
        from elastic_jax.parallel import distributed

        self._tell = lambda reason: distributed.publish(f"{_FOLDER}/{_WORD}", reason)

        # Asked again and again: a thread that waits inside jax when Python ends takes the process down with it.
        def ask() -> None:
            with contextlib.suppress(Exception):  # the service is gone, and with it the other processes
                while not self._closed.wait(_ASK_EVERY):
                    if reason := distributed.published(_FOLDER).get(_WORD):
                        return self.hear(reason, own=False)

        self._asking = threading.Thread(target=ask, name="interruptions of other processes", daemon=True)
        self._asking.start()

    def close(self) -> None:
        """Hear no more of the others."""
        self._closed.set()
        if self._asking is not None and self._asking is not threading.current_thread():
            self._asking.join(10 * _ASK_EVERY)


_listener: Listener | None = None  # signals belong to the process, and so does this


@contextlib.contextmanager
def listening(leave: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hears SIGTERM, SIGUSR1 and SIGINT inside; to be entered in the main thread.

    A second SIGINT, or one outside of a training loop, is a KeyboardInterrupt as always.
    """
    global _listener
    listener = _listener = Listener(leave or exit_at_once)
    heard = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while number := os.read(read, 1):
            if number[0] in heard:
                listener.hear(f"{signal.Signals(number[0]).name} on {socket.gethostname()}")
        os.close(read)

    def on_interrupt(number: int, frame: object) -> None:
        if listener.reason or not listener.deferred:
            raise KeyboardInterrupt
        print("\nCtrl-C: saving first; once more ends at once.", file=sys.stderr, flush=True)
        listener.hear(f"{signal.SIGINT.name} on {socket.gethostname()}")

    # Python runs handlers between two of its own instructions, and the compiler may be busy for minutes. The number of the
    # signal is written here at once.
    old_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    old = {number: signal.signal(number, lambda *_: None) for number in heard}
    old[signal.SIGINT] = signal.signal(signal.SIGINT, on_interrupt)
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _listener = None
        listener.close()
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(write)


def join() -> None:
    """To be called when this process is one of several, and they can talk to each other."""
    if _listener is not None:
        _listener.join()


def requested() -> str:
    """Why this process should end; "" while nobody asked for it. It may differ between processes: see `study.agree.Pulse`."""
    return _listener.reason if _listener is not None else ""


def deferred() -> contextlib.AbstractContextManager[None]:
    """Inside, an interruption waits for somebody to ask `requested`; for a training loop that will save."""
    return _listener.shifted(+1) if _listener is not None else contextlib.nullcontext()


def at_once(patience: float = 0.0) -> contextlib.AbstractContextManager[None]:
    """Inside `deferred`: here an interruption waits no longer than `patience` seconds; for what takes long and saves nothing."""
    return _listener.shifted(-1, patience) if _listener is not None else contextlib.nullcontext()


def exit_at_once(reason: str, saved: str = "") -> None:
    """Ends the process with `EXIT` and a line that says so, without waiting for the other processes or any thread."""
    with contextlib.suppress(OSError, ValueError):  # nobody may be listening
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h\n")  # a progress bar hides the cursor
        print(farewell(reason, saved), file=sys.stderr, flush=True)
    end()


def farewell(reason: str, saved: str = "", code: int = EXIT) -> str:
    return f"Interrupted by {reason}{': ' + saved if saved else ''}. Exit code {code}; the same command continues."


def end(code: int = EXIT) -> None:
    """The process ends here. A normal end would wait for processes that may never come."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    distributed = sys.modules.get("elastic_jax.parallel.distributed")
    if distributed is not None and distributed.hosts_service():
        time.sleep(_LAST)
    os._exit(code)
