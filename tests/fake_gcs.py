"""What does Google Cloud Storage answer? Its JSON interface over HTTP, in memory, with the semantics that matter to us.

An object is put as a whole or not at all, has a generation that conditions can ask for, and is seen by the next listing. There
are no folders, nothing is appended, and a copy (from which clients make renames) is refused and counted.

    with serve() as store:
        env = store.environment()  # for tensorstore, gcsfs and google-cloud-storage

`Objects` is a file system of fsspec that asks the same store, for machines without gcsfs. It has to be told to fsspec; in a process
of its own `python tests/fake_gcs.py MODULE ARGUMENTS` does that, and is `python -m MODULE ARGUMENTS` from then on.
"""

import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import runpy
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec


@dataclasses.dataclass
class Store:
    """The objects of all buckets, and what was asked."""

    url: str = ""
    objects: dict[tuple[str, str], tuple[bytes, int]] = dataclasses.field(default_factory=dict)
    refused: list[str] = dataclasses.field(default_factory=list)
    puts: list[str] = dataclasses.field(default_factory=list)
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
    uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = dataclasses.field(default_factory=dict)
    generation: int = 1000
    stopped_at: re.Pattern[str] | None = None
    stopped: threading.Event = dataclasses.field(default_factory=threading.Event)
    go_on: threading.Event = dataclasses.field(default_factory=threading.Event)

    def environment(self) -> dict[str, str]:
        return dict(
            STORAGE_EMULATOR_HOST=self.url,
            TENSORSTORE_GCS_HTTP_URL=self.url,
            GOOGLE_AUTH_TOKEN_FOR_TESTING="token",
            GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
            GOOGLE_CLOUD_PROJECT="test",
            FSSPEC_GCS_TOKEN="anon",
            EPATH_USE_TF="0",
        )

    def names(self, bucket: str) -> list[str]:
        with self.lock:
            return sorted(name for where, name in self.objects if where == bucket)

    def found(self, bucket: str, name: str, query: dict[str, str]) -> int:
        """HTTP status of the conditions in `query` on an object."""
        generation = self.objects.get((bucket, name), (b"", 0))[1]
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            return 412
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            return 304
        return 200

    @contextlib.contextmanager
    def stopping_at(self, pattern: str) -> Iterator[threading.Event]:
        """While it lasts, puts of names in which `pattern` is found are neither carried out nor answered. The event is set by the
        first of them."""
        self.stopped_at, self.stopped, self.go_on = re.compile(pattern), threading.Event(), threading.Event()
        try:
            yield self.stopped
        finally:
            self.stopped_at = None
            self.go_on.set()

    def put(self, bucket: str, name: str, content: bytes, query: dict[str, str]) -> int:
        stopped_at = self.stopped_at
        if stopped_at is not None and stopped_at.search(name):
            self.stopped.set()
            self.go_on.wait()
            return 503
        with self.lock:
            status = self.found(bucket, name, query)
            if status == 200:
                self.generation += 1
                self.objects[bucket, name] = content, self.generation
                self.puts.append(name)
            return status

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        content, generation = self.objects[bucket, name]
        return dict(
            kind="storage#object",
            bucket=bucket,
            name=name,
            size=str(len(content)),
            generation=str(generation),
            metageneration="1",
            updated="2026-01-01T00:00:00.000Z",
            timeCreated="2026-01-01T00:00:00.000Z",
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body go out together: the second of two packets would wait 40 ms until the client has acknowledged the first.
    wbufsize = -1
    disable_nagle_algorithm = True
    store: Store

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> None:
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        if isinstance(body, dict):
            self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, message: str) -> None:
        self.answer(status, dict(error=dict(code=status, message=message)))

    def received(self) -> tuple[str, dict[str, str], bytes]:
        path, _, query = self.path.partition("?")
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return path, dict(urllib.parse.parse_qsl(query, keep_blank_values=True)), body

    def do_GET(self) -> None:
        path, query, _ = self.received()
        path = path.removeprefix("/download")
        parts = path.removeprefix("/storage/v1/b/").split("/")
        bucket, rest = parts[0], parts[1:]
        if not rest:
            self.answer(200, dict(kind="storage#bucket", name=bucket, id=bucket, location="US"))
        elif rest[0] != "o":
            self.answer(200, dict(kind="storage#storageLayout", bucket=bucket, location="US", locationType="region"))
        elif len(rest) == 1:
            self.answer(200, self.listing(bucket, query))
        else:
            self.read(bucket, urllib.parse.unquote("/".join(rest[1:])), query)

    do_HEAD = do_GET

    def listing(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        with self.store.lock:
            for name in self.store.names(bucket):
                if not name.startswith(prefix) or name < query.get("startOffset", ""):
                    continue
                if "endOffset" in query and name >= query["endOffset"]:
                    continue
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if found:
                    prefixes.add(prefix + head + delimiter)
                else:
                    items.append(self.store.describe(bucket, name))
        return dict(kind="storage#objects", items=items, prefixes=sorted(prefixes))

    def read(self, bucket: str, name: str, query: dict[str, str]) -> None:
        with self.store.lock:
            if (bucket, name) not in self.store.objects:
                return self.fail(404, f"No such object: {bucket}/{name}")
            status = self.store.found(bucket, name, query)
            content, generation = self.store.objects[bucket, name]
            described = self.store.describe(bucket, name)
        if status != 200:
            return self.answer(status)
        if query.get("alt") != "media":
            return self.answer(200, described)
        total, span, status = len(content), {}, 200
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = wanted.groups()
            begin = int(first) if first else max(0, total - int(last))
            end = min(int(last) + 1, total) if first and last else total
            if begin >= total:
                return self.fail(416, "range not satisfiable")
            content, status = content[begin:end], 206
            span = dict(Content_Range=f"bytes {begin}-{end - 1}/{total}")
        self.answer(status, content, x_goog_generation=str(generation), **span)

    def do_POST(self) -> None:
        path, query, body = self.received()
        if path.startswith("/batch/"):
            return self.batch(body)
        if "upload_id" in query:
            return self.resume(query["upload_id"], body)
        if re.search("/(copyTo|rewriteTo|moveTo|compose)(/|$)", path):
            self.store.refused.append(path)
            return self.fail(400, "This store neither copies nor renames.")
        if not path.startswith("/upload/"):
            return self.fail(404, path)
        bucket = path.split("/")[5]
        kind = query.get("uploadType")
        if kind == "media":
            name, content = query["name"], body
        elif kind == "multipart":
            quoted = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert quoted
            _, first, second, _ = body.split(b"--" + quoted[1].encode())
            name = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1])["name"]
            content = re.split(rb"\r?\n\r?\n", second, maxsplit=1)[1]
            content = content[: -2 if content.endswith(b"\r\n") else -1]
        else:
            name = query.get("name") or json.loads(body)["name"]
            number = str(len(self.store.uploads))
            self.store.uploads[number] = bucket, name, query, bytearray()
            place = f"{self.store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return self.answer(200, b"", Location=place)
        self.stored(self.store.put(bucket, name, content, query), bucket, name)

    def resume(self, number: str, body: bytes) -> None:
        bucket, name, query, content = self.store.uploads[number]
        content += body
        if self.headers["Content-Range"].endswith("/*"):
            return self.answer(308, b"", Range=f"bytes=0-{len(content) - 1}")
        self.stored(self.store.put(bucket, name, bytes(content), query), bucket, name)

    def do_PUT(self) -> None:
        _, query, body = self.received()
        self.resume(query["upload_id"], body)

    def stored(self, status: int, bucket: str, name: str) -> None:
        if status == 200:
            self.answer(200, self.store.describe(bucket, name))
        else:
            self.fail(status, "conditionNotMet")

    def delete(self, path: str, query: dict[str, str]) -> int:
        bucket, _, name = path.removeprefix("/storage/v1/b/").split("/", 2)
        name = urllib.parse.unquote(name)
        with self.store.lock:
            if (bucket, name) not in self.store.objects:
                return 404
            status = self.store.found(bucket, name, query)
            if status == 200:
                del self.store.objects[bucket, name]
                return 204
            return status

    def do_DELETE(self) -> None:
        path, query, _ = self.received()
        status = self.delete(path, query)
        self.answer(status) if status == 204 else self.fail(status, "not deleted")

    def batch(self, body: bytes) -> None:
        parts = []
        for path in re.findall(r"DELETE (\S+) HTTP", body.decode()):
            where, _, query = path.partition("?")
            status = self.delete(where, dict(urllib.parse.parse_qsl(query)))
            parts.append(f"--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} -\r\n\r\n")
        self.answer(200, "".join([*parts, "--b--"]).encode(), Content_Type="multipart/mixed; boundary=b")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed, or have enough, leave in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve() -> Iterator[Store]:
    """A store on a free port of this machine."""
    store = Store()
    handler = type("Handler", (_Handler,), dict(store=store))
    server = _Server(("127.0.0.1", 0), handler)
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, name="fake-gcs", daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Objects(fsspec.AbstractFileSystem):
    """What epath sees of the store at `STORAGE_EMULATOR_HOST`: whole objects, no renames, no appending, folders only as far as there
    is something in them."""

    protocol = ("gcs", "gs")
    cachable = False

    def _ask(self, method: str, path: str, content: bytes = b"", **query: Any) -> bytes:
        """Raises FileNotFoundError where there is no such object."""
        address = os.environ["STORAGE_EMULATOR_HOST"].removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(address)) as connection:
            connection.request(method, f"{path}?{urllib.parse.urlencode(query)}", content)
            response = connection.getresponse()
            body = response.read()
        if response.status == 404:
            raise FileNotFoundError(path)
        if response.status >= 400:
            raise OSError(f"{method} {path}: {response.status} {body.decode()}")
        return body

    def _place(self, path: str) -> tuple[str, str]:
        bucket, _, name = str(self._strip_protocol(path)).partition("/")
        return bucket, name

    def _object(self, method: str, path: str, **query: Any) -> bytes:
        bucket, name = self._place(path)
        return self._ask(method, f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}", **query)

    def _inside(self, path: str, **query: Any) -> dict[str, Any]:
        bucket, name = self._place(path)
        return json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o", prefix=f"{name}/", **query))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        bucket, name = self._place(path)
        try:
            found = json.loads(self._object("GET", path))
        except FileNotFoundError:
            if not self._inside(path)["items"]:
                raise FileNotFoundError(path) from None
            return dict(name=f"{bucket}/{name}", type="directory", size=0)
        return dict(name=f"{bucket}/{name}", type="file", size=int(found["size"]), mtime=0)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        bucket = self._place(path)[0]
        inside = self._inside(path, delimiter="/")
        found = [dict(name=f"{bucket}/{i['name']}", type="file", size=int(i["size"]), mtime=0) for i in inside["items"]]
        found += [dict(name=f"{bucket}/{p.rstrip('/')}", type="directory", size=0) for p in inside["prefixes"]]
        found = sorted(found, key=lambda each: each["name"]) or [self.info(path)]
        return found if detail else [each["name"] for each in found]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode == "rb":
            return io.BytesIO(self._object("GET", path, alt="media"))
        if mode != "wb":
            raise NotImplementedError(f"mode {mode!r}: an object is written as a whole")
        return _Upload(self, path)

    def put_object(self, path: str, content: bytes) -> None:
        bucket, name = self._place(path)
        self._ask("POST", f"/upload/storage/v1/b/{bucket}/o", content, uploadType="media", name=name)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        bucket, name = self._place(path)
        names = [item["name"] for item in self._inside(path)["items"]] if recursive else []
        if self.isfile(path):
            names.append(name)
        if not names:
            raise FileNotFoundError(path)
        for each in names:
            with contextlib.suppress(FileNotFoundError):  # another has removed it
                self._object("DELETE", f"{bucket}/{each}")

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        bucket, name = self._place(path1)
        self._ask("POST", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}/rewriteTo")  # refused

    cp_file = mv


class _Upload(io.BytesIO):
    def __init__(self, filesystem: Objects, path: str):
        super().__init__()
        self._filesystem, self._path = filesystem, path

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()

    def close(self) -> None:
        if not self.closed:
            self._filesystem.put_object(self._path, self.getvalue())
        super().close()


def _main() -> None:
    for protocol in Objects.protocol:
        fsspec.register_implementation(protocol, Objects, clobber=True)
    # Orbax asks google-cloud-storage, which comes with gcsfs, whether the bucket has a namespace with folders.
    client = types.SimpleNamespace(get_bucket=lambda name: types.SimpleNamespace(hierarchical_namespace_enabled=False))
    cloud: Any = types.ModuleType("google.cloud")
    cloud.storage = types.SimpleNamespace(Client=lambda: client)
    sys.modules["google.cloud"] = cloud
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
