"""How does TensorBoard get its curves without the training loop waiting for it?

Values are noted and written a few seconds later by a thread, one event for each update: on a small model a tracker that is handed every
value at once takes longer than the update. A process that is killed loses the last seconds here; `metrics.jsonl` loses none.
"""

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from etils import epath

from elastic_jax.data import files
from elastic_jax.errors import UserError

# Between two writes; in a bucket each of them uploads the file as a whole.
_SECONDS, _REMOTE_SECONDS = 5.0, 60.0


class TensorBoard:
    """Event files for TensorBoard, tagged `<kind>/<name>`, through tensorboardX: no TensorFlow.

    It is imported by the thread, at the first value, because where torch is installed tensorboardX imports that as well, in seconds.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        self._purge: int | None = None
        self._noted: list[tuple[float, int, dict[str, float]]] = []
        self._writer: Any = None  # the thread's
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._handed_over = -math.inf
        self._seconds = _REMOTE_SECONDS if files.is_remote(self._folder) else _SECONDS

    def write(self, updates: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Notes `values`.

        Raises:
          UserError: what was noted before cannot be written.
        """
        tagged = {f"{kind}/{name}": float(value) for name, value in values.items()}
        self._noted.append((time.time(), updates, tagged))
        due = time.monotonic() - self._handed_over > self._seconds
        if due and (self._writing is None or self._writing.done()):
            self._hand_over()

    def truncate(self, after_updates: int) -> None:
        # Event files cannot be cut; a new one tells TensorBoard to hide what it replaces.
        self.close()
        self._purge = after_updates + 1

    def flush(self) -> None:
        if self._noted:
            self._hand_over()

    def close(self) -> None:
        """Ends when everything is written."""
        if self._thread is None and not self._noted:
            return
        try:
            self._hand_over()
            assert self._writing is not None
            self._writing.result()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
            if self._writer is not None:
                self._writer.close()
            self._thread = self._writer = self._writing = None

    def _hand_over(self) -> None:
        if self._writing is not None and self._writing.done():
            self._writing.result()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "tensorboard")
        noted, self._noted = self._noted, []
        self._handed_over = time.monotonic()
        self._writing = self._thread.submit(self._write, noted)

    def _write(self, noted: list[tuple[float, int, dict[str, float]]]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        if self._writer is None:
            if not files.is_remote(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            try:
                # Names have the second in them: a writer opened in the same one would empty the file before.
                self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            except ImportError as error:
                raise UserError(
                    f"TensorBoard cannot write to {self._folder}: {error}\n"
                    "Install what it names, or switch TensorBoard off; metrics.jsonl is written in any case."
                ) from error
            if self._purge is not None:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(wall_time=time.time(), step=self._purge, session_log=start))
        for seconds, updates, values in noted:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            self._writer.write_event(Event(wall_time=seconds, step=updates, summary=summary))
        self._writer.flush()
