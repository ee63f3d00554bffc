"""Launches whose manifests are kept in golden/: one study of three waves, in which one run is done, on every engine.

    python tests/launch/launches.py

writes them again, after which the difference is to be read like any other change.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

from elastic_jax.launch import backends, machines, manifests, options, spec, waves

GOLDEN = Path(__file__).with_name("golden")
MEMBERS = (
    waves.Member("pretrain-s0-1e0a6d3b52c4", "", "pretrain", "pretrain-s0", done=True, updates=8, reached=8),
    waves.Member("control-s0-94b8f0d7a316", "pretrain-s0-1e0a6d3b52c4", "perturb", "control-s0"),
    waves.Member("align-s0-5f62e7c09ab1", "pretrain-s0-1e0a6d3b52c4", "align", "align-s0", updates=4, reached=2),
    waves.Member("perturb-s0-a16-c7719d04e8f5", "align-s0-5f62e7c09ab1", "perturb", "perturb-s0-a16"),
    waves.Member("perturb-s0-a32-0b3d58ef62a9", "align-s0-5f62e7c09ab1", "perturb", "perturb-s0-a32"),
    waves.Member("pretrain-s1-b91f4a7e3d60", "", "pretrain", "pretrain-s1"),
    waves.Member("control-s1-2d7c05b8e9f4", "pretrain-s1-b91f4a7e3d60", "perturb", "control-s1"),
    waves.Member("align-s1-e6380fa4c1d7", "pretrain-s1-b91f4a7e3d60", "align", "align-s1"),
    waves.Member("perturb-s1-a16-48ce91d7350b", "align-s1-e6380fa4c1d7", "perturb", "perturb-s1-a16"),
    waves.Member("perturb-s1-a32-f05a6b2d87c3", "align-s1-e6380fa4c1d7", "perturb", "perturb-s1-a32"),
)
ARGUMENTS = ("--config=configs/quickstart.py:tiny", "--config.align.objective={'name': 'dpo', 'beta': 0.1}")
IMAGE = "REGISTRY/elastic_jax:1"


@dataclasses.dataclass(frozen=True)
class Example:
    """One folder of golden/."""

    backend: str
    topology: str
    options: options.Options
    workdir: str = "gs://bucket/runs/quickstart"
    runs_per_job: int = 1


EXAMPLES = {
    "local": Example("local", "", options.Options(parallel=2, env=("JAX_PLATFORMS=cpu",)), "/shared/runs/quickstart"),
    "slurm": Example(
        "slurm",
        "h100:16",
        options.Options(
            partition="gpu", account="lab", time="12:00:00", cpus=32, parallel=4, setup="source /shared/venv/bin/activate",
            env=("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true",), secret=("HF_TOKEN=~/.secrets/hf",),
        ),
        "/shared/runs/quickstart",
    ),
    "slurm_cpu": Example("slurm", "", options.Options(), "/shared/runs/quickstart", runs_per_job=2),
    "jobset": Example(
        "jobset",
        "v5e:4x4",
        options.Options(
            image=IMAGE, queue="research", namespace="elastic", spot=True, service_account="trainer",
            env=("LIBTPU_INIT_ARGS=--xla_tpu_enable_async_collective_fusion=true",), secret=("HF_TOKEN=hf:token",),
        ),
    ),
    "jobset_gpu": Example(
        "jobset",
        "h100:16",
        options.Options(
            image=IMAGE, cpus=96, memory="900Gi", claim="runs", retries=0, priority="high",
            node_selector=("cloud.google.com/gke-accelerator=nvidia-h100-80gb",),
        ),
        "/mnt/runs/quickstart",
        runs_per_job=2,
    ),
    "xpk": Example(
        "xpk",
        "v5p:4x4x4",
        options.Options(image=IMAGE, cluster="pod", project="lab", zone="us-east5-a", priority="high", env=("A=b c",)),
    ),
    "gcluster": Example(
        "gcluster",
        "v6e:16x16",
        options.Options(image=IMAGE, cluster="pod", zone="us-east5", queue="research", spot=True, env=("A=b c",)),
    ),
    "skypilot": Example(
        "skypilot", "h100:8", options.Options(infra="gcp", spot=True, env=("A=b c",), secret=("HF_TOKEN=env",))
    ),
    "skypilot_pod": Example("skypilot", "v5e:4x4", options.Options(image=IMAGE, spot=True, retries=0)),
    "tpu_vm": Example(
        "tpu_vm",
        "v5e:4x4",
        options.Options(image=IMAGE, zone="us-west4-a", project="lab", spot=True, secret=("HF_TOKEN=hf",), env=("A=b c",)),
    ),
}  # fmt: skip


def launch(example: Example, members: tuple[waves.Member, ...] = MEMBERS) -> spec.Launch:
    """The launch of an example."""
    limit = backends.BACKENDS[example.backend].limit
    cut = dict(study="quickstart_tiny", workdir=example.workdir, limit=limit)
    return spec.Launch(
        study="quickstart_tiny",
        arguments=ARGUMENTS,
        workdir=example.workdir,
        runs=len(members),
        waves=tuple(waves.cut(members, runs_per_job=example.runs_per_job, **cut)),
        collect=waves.collector(members, **cut),
        machine=machines.machine(example.topology),
        options=example.options,
        environment=options.pairs(example.options.env, "env"),
        out=f"out/{example.backend}",
    )


def manifest(name: str) -> manifests.Manifest:
    """The files of an example."""
    return manifests.render(launch(EXAMPLES[name]), EXAMPLES[name].backend)


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name in EXAMPLES:
        for file, text in manifest(name).files.items():
            (GOLDEN / name).mkdir(parents=True, exist_ok=True)
            (GOLDEN / name / file).write_text(text)
    print(f"{sum(path.is_file() for path in GOLDEN.rglob('*'))} files in {GOLDEN}", file=sys.stderr)


if __name__ == "__main__":
    main()
