"""What does each engine need to be told, and what can it not do?"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from elastic_jax.errors import UserError
from elastic_jax.launch import options as options_lib
from elastic_jax.launch.spec import Launch

# Name of a file, its template without ".j2", and what the template needs beside the launch.
Files = list[tuple[str, str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Backend:
    """One engine.

    Attributes:
      about: one line for --help.
      accepts: options that it uses.
      requires: those that it cannot do without.
      limit: longest name of a job. On Kubernetes a pod adds "-run-0-NNNN-xxxxx" to it and may have 63 characters; xpk allows 40.
      tools: programs that submitting needs.
      shared: whether the machines have a disk in common with this one; else --workdir is in a bucket or on a claimed volume.
      files: what is rendered, the script last.
      watch: the engine's own commands for status and logs.
      arrays: whether a wave has the name, and its jobs are numbers.
    """

    about: str
    accepts: frozenset[str]
    requires: tuple[str, ...]
    limit: int
    tools: tuple[str, ...]
    shared: bool
    files: Callable[[Launch], Files]
    watch: Callable[[Launch], list[str]]
    arrays: bool = False


def _platforms(launch: Launch, backend: str, *platforms: str) -> None:
    machine = launch.machine
    if machine.platform not in platforms:
        names = {"cpu": "machines without accelerators (no --topology)", "gpu": "GPUs", "tpu": "TPUs"}
        raise UserError(
            f"--backend={backend} does not start jobs on {names[machine.platform]}, only on "
            f"{' and '.join(names[name] for name in platforms)}."
        )


def _one_host_of_gpus(launch: Launch, backend: str) -> None:
    if launch.machine.platform != "tpu" and launch.machine.hosts > 1:
        raise UserError(
            f"--backend={backend} does not say to the machines of a GPU job who they are. Use --backend=jobset, or one "
            "machine per job."
        )


def _distributed(launch: Launch) -> str:
    """TPUs know their slice; other machines are told by ELASTIC_*."""
    return "auto" if launch.machine.platform == "tpu" and launch.machine.hosts > 1 else ""


# --- local


def _local(launch: Launch) -> Files:
    if launch.machine.platform != "cpu":
        raise UserError("--topology has no meaning for --backend=local, which uses the devices of this machine.")
    return [("submit.sh", "submit.sh", {})]


# --- Slurm


def _slurm(launch: Launch) -> Files:
    _platforms(launch, "slurm", "cpu", "gpu")
    secrets = options_lib.secret_files(launch.options)
    files: Files = [
        (f"wave-{wave.number}.sbatch", "wave.sbatch", dict(wave=wave, secrets=secrets)) for wave in launch.waves
    ]
    return [*files, ("collect.sbatch", "collect.sbatch", {}), ("submit.sh", "submit.sh", {})]


def _slurm_watch(launch: Launch) -> list[str]:
    names = ",".join([*(wave.name for wave in launch.waves), launch.collect])
    return [f"squeue --me --name={names}", f"tail -f {launch.out}/*.log"]


# --- Kubernetes: JobSet, with Kueue where a queue is named


def _jobset(launch: Launch) -> Files:
    if launch.machine.platform == "cpu" and not launch.options.cpus:
        raise UserError(
            "--backend=jobset without --topology needs --cpus: Kubernetes and Kueue count what pods ask for."
        )
    context = dict(
        env=dict(launch.environment),
        secrets=options_lib.secret_keys(launch.options),
        selector=_node_selector(launch),
        distributed=_distributed(launch),
    )
    files: Files = [(f"wave-{wave.number}.yaml", "wave.yaml", dict(wave=wave, **context)) for wave in launch.waves]
    return [*files, ("collect.yaml", "collect.yaml", context), ("submit.sh", "submit.sh", {})]


def _node_selector(launch: Launch) -> Mapping[str, str]:
    machine, found = launch.machine, {}
    if machine.platform == "tpu":
        found["cloud.google.com/gke-tpu-accelerator"] = machine.gke_accelerator
        found["cloud.google.com/gke-tpu-topology"] = machine.shape
    if launch.options.spot:
        found["cloud.google.com/gke-spot"] = "true"
    return {**found, **options_lib.pairs(launch.options.node_selector, "node_selector", labels=True)}


def _kubernetes_watch(launch: Launch) -> list[str]:
    where = f" --namespace={launch.options.namespace}" if launch.options.namespace else ""
    names = [job.name for wave in launch.waves for job in wave.jobs]
    first = names[0] if names else "JOBSET"
    return [
        f"kubectl get jobsets{where}",
        f"kubectl logs{where} --follow --selector=jobset.sigs.k8s.io/jobset-name={first}",
    ]


# --- the two front ends of it on Google Cloud


def _xpk(launch: Launch) -> Files:
    _platforms(launch, "xpk", "tpu", "gpu")
    _one_host_of_gpus(launch, "xpk")
    return [("submit.sh", "submit.sh", dict(flags=launch.machine.xpk_flags, distributed=_distributed(launch)))]


def _xpk_watch(launch: Launch) -> list[str]:
    return [f"xpk workload list --cluster={launch.options.cluster}", *_kubernetes_watch(launch)[1:]]


def _gcluster(launch: Launch) -> Files:
    _one_host_of_gpus(launch, "gcluster")
    tpu = launch.machine.platform == "tpu"
    if bool(launch.options.compute_type) == tpu:
        raise UserError(
            f"--compute_type={launch.options.compute_type} contradicts --topology, which names the TPU."
            if tpu
            else "--backend=gcluster needs --compute_type where --topology is no TPU: the machine in gcluster's words."
        )
    flags = (
        [f"--compute-type={launch.machine.tpu_type}", f"--topology={launch.machine.shape}"]
        if tpu
        else [f"--compute-type={launch.options.compute_type}"]
    )
    return [("submit.sh", "submit.sh", dict(flags=flags, distributed=_distributed(launch)))]


def _gcluster_watch(launch: Launch) -> list[str]:
    where = f"--cluster={launch.options.cluster} --location={launch.options.zone}"
    names = [job.name for wave in launch.waves for job in wave.jobs]
    return [f"gcluster job list {where}", f"gcluster job logs {names[0] if names else 'NAME'} {where}"]


# --- SkyPilot


def _skypilot(launch: Launch) -> Files:
    for name, reference in options_lib.pairs(launch.options.secret, "secret").items():
        if reference != "env":
            raise UserError(
                f"--secret={name}={reference}: expected {name}=env; SkyPilot takes the value from your environment when you submit."
            )
    # A slice is one node to SkyPilot, whatever it consists of; but only what is one machine has a rank of its own.
    tpu = launch.machine.platform == "tpu"
    nodes = 1 if tpu else launch.machine.hosts
    together = (launch.machine.tpu_vms if tpu else nodes) == 1
    context = dict(
        nodes=nodes,
        together=together,
        distributed="auto" if tpu and launch.machine.tpu_vms > 1 else "",
        secrets=list(options_lib.pairs(launch.options.secret, "secret")),
        extra={"cpu": "gcs", "gpu": "cuda,gcs", "tpu": "tpu,gcs"}[launch.machine.platform],
    )
    return [("pipeline.yaml", "pipeline.yaml", context), ("submit.sh", "submit.sh", context)]


def _skypilot_watch(launch: Launch) -> list[str]:
    return ["sky jobs queue", f"sky jobs logs --name {launch.collect}"]


# --- TPU VMs


def _tpu_vm(launch: Launch) -> Files:
    _platforms(launch, "tpu_vm", "tpu")
    runtime = launch.options.runtime_version or launch.machine.tpu_runtime
    distributed = "auto" if launch.machine.tpu_vms > 1 else ""
    secrets = options_lib.pairs(launch.options.secret, "secret")
    return [("submit.sh", "submit.sh", dict(runtime=runtime, distributed=distributed, secrets=secrets))]


def _tpu_vm_watch(launch: Launch) -> list[str]:
    zone = f"--zone={launch.options.zone}"
    names = [job.name for wave in launch.waves for job in wave.jobs]
    name = names[0] if names else "NAME"
    return [
        f"gcloud compute tpus queued-resources list {zone}",
        f"gcloud compute tpus tpu-vm ssh {name} {zone} --worker=0 --command='sudo docker logs --follow {name}'",
    ]


_CONTAINER = {"image", "env", "grace", "python"}

BACKENDS: dict[str, Backend] = {
    "local": Backend(
        "processes on this machine",
        frozenset({"env", "python", "setup", "parallel"}),
        (),
        63,
        (),
        True,
        _local,
        lambda launch: [],
    ),
    "slurm": Backend(
        "Slurm: one array per wave, each after the one before it",
        frozenset(
            {"env", "secret", "grace", "python", "setup", "cpus", "memory", "partition", "account", "qos", "time", "parallel"}
        ),
        (),
        63,
        ("sbatch", "squeue"),
        True,
        _slurm,
        _slurm_watch,
        arrays=True,
    ),
    "jobset": Backend(
        "Kubernetes JobSets, through Kueue where --queue is given",
        frozenset(
            _CONTAINER | {"secret", "retries", "cpus", "memory", "spot", "namespace", "queue", "priority", "service_account",
                          "node_selector", "claim"}
        ),
        ("image",),
        40,
        ("kubectl",),
        False,
        _jobset,
        _kubernetes_watch,
    ),
    "xpk": Backend(
        "xpk, on a GKE cluster that it made",
        frozenset(_CONTAINER | {"retries", "cluster", "project", "zone", "namespace", "priority"}),
        ("image", "cluster"),
        40,
        ("xpk", "kubectl"),
        False,
        _xpk,
        _xpk_watch,
    ),
    "gcluster": Backend(
        "Cluster Toolkit (gcluster job), on a GKE cluster",
        frozenset(
            _CONTAINER | {"retries", "cluster", "project", "zone", "namespace", "queue", "priority", "service_account",
                          "compute_type", "spot"}
        ),
        ("image", "cluster", "zone"),
        40,
        ("gcluster", "kubectl"),
        False,
        _gcluster,
        _gcluster_watch,
    ),
    "skypilot": Backend(
        "SkyPilot: a pipeline of managed jobs",
        frozenset({"image", "env", "secret", "retries", "python", "setup", "cpus", "memory", "spot", "infra"}),
        (),
        63,
        ("sky",),
        False,
        _skypilot,
        _skypilot_watch,
    ),
    "tpu_vm": Backend(
        "TPU VMs: a queued resource per job",
        frozenset(
            _CONTAINER | {"secret", "retries", "setup", "spot", "project", "zone", "service_account", "runtime_version"}
        ),
        ("image", "zone"),
        63,
        ("gcloud",),
        False,
        _tpu_vm,
        _tpu_vm_watch,
    ),
}  # fmt: skip
