"""How does a file appear all at once, and how do we know that it is still the same?"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def beside(path: Path) -> Path:
    """A name in the same folder that no other process, on this host or another, writes to."""
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text in UTF-8."""
    write_bytes(path, text.encode())


def sha256_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
