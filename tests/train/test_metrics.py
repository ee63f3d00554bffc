"""Are the numbers of a run all there, once each, after whatever happened to it?"""

import json
import math
import os
import sys
import time
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.errors import UserError
from elastic_jax.train import metrics, tensorboard
from elastic_jax.train.metrics import JsonLines, MetricWriter


def _losses(path):
    return [(row["updates"], row["loss"]) for row in metrics.read(path)]


def test_lines_are_json_objects_with_updates_kind_and_values(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False, active=True) as writer:
        writer.write(1, {"loss": 2.5, "lr": 1e-3})
        writer.write(1, {"score": 0.25}, kind="measure")
    lines = (tmp_path / metrics.FILE).read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first == {"updates": 1, "kind": "train", "time": first["time"], "loss": 2.5, "lr": 1e-3}
    assert second["kind"] == "measure" and second["score"] == 0.25


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False, active=True)
    writer.write(7, {"loss": 1.0})
    assert _losses(tmp_path / metrics.FILE) == [(7, 1.0)]
    writer.close()


def test_what_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False, active=True) as writer:
        writer.write(1, {"loss": math.inf})
        writer.write(2, {"loss": math.nan})
    lines = (tmp_path / metrics.FILE).read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [None, None]
    assert all(math.isnan(loss) for _, loss in _losses(tmp_path / metrics.FILE))


@given(written=st.integers(0, 12), restored=st.integers(0, 14), torn=st.binary(max_size=12))
def test_resuming_leaves_every_update_once(tmp_path_factory, written, restored, torn):
    torn = torn.replace(b"\n", b"")
    folder = tmp_path_factory.mktemp("run")
    path = folder / metrics.FILE
    writer = JsonLines(path)
    for updates in range(1, written + 1):
        writer.write(updates, {"loss": updates / 2})
    writer.close()
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(torn)
    resumed = JsonLines(path)
    resumed.truncate(restored)
    kept = path.read_bytes()
    assert before.startswith(kept)
    start = min(written, restored)
    for updates in range(start + 1, 16):
        resumed.write(updates, {"loss": updates / 2})
    resumed.close()
    assert _losses(path) == [(updates, updates / 2) for updates in range(1, 16)]


def test_a_torn_last_line_is_not_joined_to_the_next(tmp_path):
    path = tmp_path / metrics.FILE
    path.write_bytes(b'{"updates": 1, "kind": "train", "loss": 1.0}\n{"updates": 2, "lo')
    assert _losses(path) == [(1, 1.0)]
    writer = JsonLines(path)
    writer.write(2, {"loss": 2.0})
    writer.close()
    assert _losses(path) == [(1, 1.0), (2, 2.0)]


def test_a_bad_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path):
    path = tmp_path / metrics.FILE
    content = b'{"updates": 1}\nnonsense\n{"updates": 3}\n'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a line of metrics"):
        JsonLines(path).truncate(2)
    assert path.read_bytes() == content


def test_an_interrupted_truncate_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / metrics.FILE
    writer = JsonLines(path)
    for updates in (1, 2, 3):
        writer.write(updates, {"loss": 0.0})
    before = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        writer.truncate(1)
    assert path.read_bytes() == before


def test_only_the_main_process_writes(tmp_path):
    with MetricWriter(tmp_path / "run", active=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.truncate(0)
    assert not (tmp_path / "run").exists()


def test_a_value_cannot_replace_a_field_of_the_line(tmp_path):
    with (
        MetricWriter(tmp_path, tensorboard=False, active=True) as writer,
        pytest.raises(ValueError, match="time"),
    ):
        writer.write(1, {"time": 3.0})


def test_tensorboard_has_the_values_and_resumes(tmp_path):
    with MetricWriter(tmp_path, active=True) as writer:
        writer.write(5, {"loss": 2.5})
        writer.write(6, {"score": 0.25}, kind="measure")
        writer.truncate(5)
        writer.write(6, {"loss": 1.5})
    from tensorboardX.proto.event_pb2 import Event

    values, purges = [], []
    for file in sorted((tmp_path / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:  # length (8 bytes), its checksum (4), event, its checksum (4)
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            purges += [event.step] if event.HasField("session_log") else []
    assert values == [(5, "train/loss", 2.5), (6, "measure/score", 0.25), (6, "train/loss", 1.5)]
    assert purges == [6]
    assert "tensorflow" not in sys.modules


def test_tensorboard_is_written_while_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_SECONDS", 0.0)
    with MetricWriter(tmp_path, active=True) as writer:
        sizes = set()
        for updates in range(1, 1000):
            writer.write(updates, {"loss": 1.0})
            sizes |= {file.stat().st_size for file in (tmp_path / "tensorboard").glob("*")} - {0}
            if len(sizes) > 2:
                break
            time.sleep(0.02)
        assert len(sizes) > 2


def test_a_tensorboard_that_cannot_be_written_says_so(tmp_path):
    import tensorboardX.event_file_writer

    with mock.patch.object(tensorboardX.event_file_writer, "EventsWriter", side_effect=ImportError("boto3")):
        writer = MetricWriter(tmp_path, active=True)
        writer.write(1, {"loss": 1.0})
        with pytest.raises(UserError, match=r"cannot write to .*tensorboard: boto3"):
            writer.close()
    assert [row["loss"] for row in metrics.read(tmp_path / metrics.FILE)] == [1.0]
    writer.close()


def test_other_trackers_get_the_same_calls(tmp_path):
    calls = []

    class Tracker:
        def write(self, updates, values, kind="train"):
            calls.append((updates, dict(values), kind))

        def truncate(self, after_updates):
            calls.append(("truncate", after_updates))

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    with MetricWriter(tmp_path, tensorboard=False, others=[Tracker()], active=True) as writer:
        writer.write(1, {"loss": 1.0})
        writer.truncate(1)
        writer.flush()
    assert calls == [(1, {"loss": 1.0}, "train"), ("truncate", 1), "flush", "close"]


def test_a_store_that_cannot_append_gets_whole_files(tmp_path, monkeypatch):
    """The path of gs://, on a local folder: it is only told that it is not local."""
    path = tmp_path / metrics.FILE
    monkeypatch.setattr(metrics.files, "is_remote", lambda path: True)
    writer = JsonLines(path)
    for updates in (1, 2, 3):
        writer.write(updates, {"loss": float(updates)})
    writer.truncate(2)
    writer.write(9, {"loss": 9.0})
    writer.close()
    writer.close()
    again = JsonLines(path)
    again.write(10, {"loss": 10.0})
    again.flush()
    assert _losses(path) == [(1, 1.0), (2, 2.0), (9, 9.0), (10, 10.0)]
    assert os.listdir(tmp_path) == [metrics.FILE]
