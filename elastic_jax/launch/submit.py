"""Can the jobs be submitted from here, and do the machines see what they need?"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from elastic_jax.data import files
from elastic_jax.errors import UserError
from elastic_jax.launch.backends import BACKENDS
from elastic_jax.launch.manifests import Manifest
from elastic_jax.launch.options import Options

# File systems that no other machine sees.
_OWN_DISK = {"apfs", "btrfs", "ext2", "ext3", "ext4", "overlay", "ramfs", "tmpfs", "xfs"}


def check_workdir(workdir: str, backend: str, options: Options) -> str:
    """The working directory as the jobs will name it.

    Raises:
      UserError: the machines of this backend cannot see it.
    """
    if files.is_remote(workdir):
        if options.claim:
            raise UserError(f"--claim={options.claim} has no meaning for --workdir={workdir}, which is in no volume.")
        return workdir.rstrip("/")
    path = os.path.abspath(os.path.expanduser(workdir))
    if not BACKENDS[backend].shared and not options.claim:
        claim = " or mount the volume that it is on with --claim" if "claim" in BACKENDS[backend].accepts else ""
        raise UserError(
            f"--workdir={workdir}: the machines of --backend={backend} do not see the disk of this one. Give a bucket, such as "
            f"gs://BUCKET/{Path(path).name},{claim}."
        )
    return path


def warning(workdir: str, backend: str, mounts: str = "/proc/mounts") -> str:
    """What may be wrong with a working directory that passed `check_workdir`; "" when nothing is to be seen."""
    if files.is_remote(workdir) or backend == "local":
        return ""
    try:
        lines = [line.split()[1:3] for line in Path(mounts).read_text().splitlines()]
    except OSError:
        return ""
    above = [(where, kind) for where, kind in lines if Path(workdir).is_relative_to(where)]
    where, kind = max(above, key=lambda pair: len(pair[0]), default=("", ""))
    if kind not in _OWN_DISK:
        return ""
    return (
        f"warning: --workdir={workdir} is on {where} ({kind}), which other machines do not see. Unless the cluster is this "
        "machine alone, every job will look for its parents in an empty folder."
    )


def check_tools(backend: str) -> None:
    """Whether the programs are there that submitting needs.

    Raises:
      UserError: naming those that are missing.
    """
    missing = [tool for tool in BACKENDS[backend].tools if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"--submit: {', '.join(missing)} not found on this machine, and --backend={backend} needs "
            f"{'it' if len(missing) == 1 else 'them'}. Install it, submit where it is, or use --dry_run to see the manifest."
        )


def submit(manifest: Manifest) -> None:
    """Writes the files and runs their script in this folder.

    Raises:
      UserError: the script failed; what it submitted before stays submitted.
    """
    script = manifest.write()
    code = subprocess.run(["bash", str(script)], check=False).returncode
    if code:
        raise UserError(f"{script} ended with exit code {code}. What was submitted stays; the same command continues.")


def table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Columns of equal width."""
    whole = [header, *rows]
    widths = [max(len(row[column]) for row in whole) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in whole
    )
