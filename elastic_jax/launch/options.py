"""What can be said about the jobs of an engine, and who listens to it?

Every field is a flag of `python -m elastic_jax.launch`. A backend names the flags that it uses; any other is refused, since a
setting that is ignored looks like one that worked.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from elastic_jax.errors import UserError, closest


def _flag(help: str, default: Any = "") -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that the backends can be told; a field at its default was not given."""

    image: str = _flag("container image that holds elastic_jax and the config (launch/Dockerfile)")
    env: tuple[str, ...] = _flag("NAME=VALUE for the processes; may be repeated", ())
    secret: tuple[str, ...] = _flag("NAME=REFERENCE: where the engine finds a secret; may be repeated", ())
    retries: int = _flag("how often a job that failed is tried again; requeues by exit code 75 do not count", 3)
    grace: int = _flag("seconds between SIGTERM and SIGKILL, in which a run saves", 120)
    python: str = _flag("interpreter that has elastic_jax", "python")
    setup: str = _flag("shell commands before the run, such as activating an environment")
    cpus: int = _flag("CPU cores per machine", 0)
    memory: str = _flag('memory per machine in the words of the engine, such as "64G" or "64Gi"')
    spot: bool = _flag("preemptible machines", False)
    partition: str = _flag("Slurm partition")
    account: str = _flag("Slurm account")
    qos: str = _flag("Slurm quality of service")
    time: str = _flag('Slurm time limit, such as "12:00:00"; at its end a run saves and is queued again')
    parallel: int = _flag("jobs that may run at the same time", 0)
    namespace: str = _flag("Kubernetes namespace")
    queue: str = _flag("Kueue LocalQueue")
    priority: str = _flag("priority class of the jobs")
    service_account: str = _flag("account that the jobs run as")
    node_selector: tuple[str, ...] = _flag("LABEL=VALUE of the nodes; may be repeated", ())
    claim: str = _flag("PersistentVolumeClaim that holds --workdir, mounted at the folder above it")
    cluster: str = _flag("GKE cluster")
    project: str = _flag("Google Cloud project")
    zone: str = _flag("Google Cloud zone")
    compute_type: str = _flag("machine for gcluster where it is no TPU, such as n2-standard-32")
    infra: str = _flag("where SkyPilot may look, such as gcp/us-central2 or k8s")
    runtime_version: str = _flag("software of the TPU VM (by default the one that its version needs)")


DEFAULT = Options()
# A value of one of these in a manifest would lie in files, logs and the engine's data base.
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def given(options: Options) -> set[str]:
    """Fields that differ from their defaults."""
    return {f.name for f in dataclasses.fields(Options) if getattr(options, f.name) != getattr(DEFAULT, f.name)}


def check(options: Options, backend: str, accepted: Collection[str], required: Collection[str]) -> None:
    """Whether a backend can work with these.

    Raises:
      UserError: a flag that it would ignore, one that it needs, or a value that cannot be.
    """
    for name in sorted(given(options)):
        if name not in accepted:
            flags = ", ".join(f"--{flag}" for flag in sorted(accepted))
            raise UserError(f"--{name} has no meaning for --backend={backend}. It takes {flags}.")
    for name in required:
        if not getattr(options, name):
            field = next(f for f in dataclasses.fields(Options) if f.name == name)
            raise UserError(f"--backend={backend} needs --{name}: {field.metadata['help']}.")
    for name, value, least in (
        ("retries", options.retries, 0),
        ("grace", options.grace, 1),
        ("cpus", options.cpus, 0),
        ("parallel", options.parallel, 0),
    ):
        if value < least:
            raise UserError(f"--{name}={value}: expected {least} or more.")
    for name in pairs(options.env, "env"):
        if _SECRET.search(name):
            raise UserError(
                f"--env={name}=...: this looks like a secret, and the value would be written into manifests. Give a "
                f"reference with --secret={name}=..., or let the job's service account have the right."
            )
    pairs(options.secret, "secret")
    pairs(options.node_selector, "node_selector", labels=True)


def pairs(words: Collection[str], flag: str, labels: bool = False) -> dict[str, str]:
    """`NAME=VALUE` words in their order.

    Raises:
      UserError: one of another form, or a name twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value or not (labels or _NAME.fullmatch(name)):
            what = {"env": "NAME=VALUE", "secret": "NAME=REFERENCE"}.get(flag, "LABEL=VALUE")
            raise UserError(f"--{flag}={word}: expected {what}.")
        if name in found:
            raise UserError(f"--{flag}={word}: {name} is given twice.")
        found[name] = value
    return found


def secret_keys(options: Options) -> dict[str, tuple[str, str]]:
    """For Kubernetes: environment variable -> (Secret, key).

    Raises:
      UserError: a reference of another form.
    """
    found = {}
    for name, reference in pairs(options.secret, "secret").items():
        secret, colon, key = reference.partition(":")
        if not colon or not secret or not key:
            raise UserError(
                f"--secret={name}={reference}: expected {name}=SECRET:KEY, a Kubernetes Secret and its key."
            )
        found[name] = secret, key
    return found


def secret_files(options: Options) -> Mapping[str, str]:
    """For shells: environment variable -> file that holds its value on the machine of the job.

    Raises:
      UserError: a reference that is no absolute path.
    """
    found = pairs(options.secret, "secret")
    for name, path in found.items():
        if not path.startswith(("/", "~/")):
            raise UserError(f"--secret={name}={path}: expected {name}=/PATH, a file that only you can read.")
    return found


def unknown_backend(name: str, known: Collection[str]) -> UserError:
    return UserError(f"--backend={name}: no such backend. {closest(name, known)}\nKnown: {', '.join(sorted(known))}.")
