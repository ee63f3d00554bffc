"""Render the jobs of a study for a cluster's own engine, and submit them if asked to."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_jax import cli
from elastic_jax.errors import UserError

if TYPE_CHECKING:
    from elastic_jax.launch.options import Options

EPILOG = """\
Any field of the config can be set with --config.FIELD=VALUE.

without --submit and --dry_run the files are written to --out, to be looked at and run:
  python -m elastic_jax.launch --config=configs/quickstart.py --workdir=/shared/runs/quickstart --backend=slurm
  bash /shared/runs/quickstart/launch/slurm/submit.sh
"""


def main(argv: list[str] | None = None) -> int:
    from elastic_jax.launch.backends import BACKENDS
    from elastic_jax.launch.options import Options

    parser = cli.parser(__doc__, "launch", workdir=True)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "--config", required=True, metavar="FILE.py[:ARGUMENT]", help="the study, as the jobs see the file"
    )
    parser.add_argument(
        "--backend",
        required=True,
        help="; ".join(f"{name}: {found.about}" for name, found in BACKENDS.items()),
    )
    parser.add_argument(
        "--topology", default="", help="what one job runs on, such as v5e:4x4 or h100:8; none: one machine"
    )
    parser.add_argument("--runs_per_job", type=int, default=1, help="runs of one wave that share a job")
    parser.add_argument("--prefix", default="ej", help="first part of every job's name")
    parser.add_argument("--out", default="", help="folder of the rendered files")
    parser.add_argument("--dry_run", action="store_true", help="print the files and write nothing")
    parser.add_argument("--submit", action="store_true", help="write the files and run submit.sh")
    parser.add_argument(
        "--status", action="store_true", help="show the runs, their jobs, and the engine's own commands"
    )
    for field in dataclasses.fields(Options):
        users = ", ".join(name for name, found in BACKENDS.items() if field.name in found.accepts)
        flag, about = f"--{field.name}", f"{field.metadata['help']} ({users})"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", help=about)
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, action="append", default=[], help=about)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default, help=about)
    return cli.guarded(_launch, parser, argv)


def _launch(args: cli.Arguments) -> None:
    from elastic_jax.launch import machines, submit, waves
    from elastic_jax.launch import options as options_lib
    from elastic_jax.launch.backends import BACKENDS
    from elastic_jax.launch.manifests import render
    from elastic_jax.launch.spec import Launch

    if args.backend not in BACKENDS:
        raise options_lib.unknown_backend(args.backend, BACKENDS)
    modes = [name for name in ("dry_run", "submit", "status") if getattr(args, name)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} exclude each other.")
    backend = BACKENDS[args.backend]
    options = _options(args)
    options_lib.check(options, args.backend, backend.accepts, backend.requires)
    machine = machines.machine(args.topology)
    workdir = submit.check_workdir(args.workdir, args.backend, options)
    waves.cut((), study="", workdir="", prefix=args.prefix, limit=backend.limit, runs_per_job=args.runs_per_job)
    if args.submit:
        submit.check_tools(args.backend)
    config = cli.load_config(args)
    from elastic_jax.launch import runs
    from elastic_jax.parallel import platforms

    platforms.cpu_alone()  # preparing data and reading a folder need no accelerator, and a login node may have none to give

    found = runs.find(config, workdir)
    cut = dict(study=config.name, workdir=workdir, prefix=args.prefix, limit=backend.limit)
    launch = Launch(
        study=config.name,
        arguments=(f"--config={args.config}", *(f"--config.{k}={v}" for k, v in args.overrides.items())),
        workdir=workdir,
        runs=len(found.members),
        waves=tuple(waves.cut(found.members, runs_per_job=args.runs_per_job, **cut)),
        collect=waves.collector(found.members, **cut),
        machine=machine,
        options=options,
        environment=options_lib.pairs(options.env, "env"),
        out=args.out or _folder(workdir, config.name, args.backend),
    )
    manifest = render(launch, args.backend)
    if message := submit.warning(workdir, args.backend):
        print(message, file=sys.stderr)
    if args.dry_run:
        print(manifest, end="")
        return
    if args.status:
        depth = waves.depths(found.members)
        jobs = {
            key: f"{wave.name}_{job.index}" if backend.arrays else job.name
            for wave in launch.waves
            for job in wave.jobs
            for key in job.keys
        }
        rows = [
            (
                str(depth[m.key]),
                "done" if m.done else "open",
                f"{m.reached:,} of {m.updates:,}",
                m.key,
                jobs.get(m.key, ""),
            )
            for m in found.members
        ]
        print(submit.table(rows, ("wave", "state", "updates", "run", "job")))
    summary = f"{len(found.members)} runs, {found.done} done; {launch.jobs} jobs in {len(launch.waves)} waves to do"
    print(summary)
    if args.status:
        for command in backend.watch(launch):
            print(f"  {command}")
        return
    if found.collected:
        print(f"Nothing to submit: everything is in {workdir}/report/index.html")
        return
    if args.submit:
        submit.submit(manifest)
    else:
        print(f"To submit them: bash {manifest.write()}")
    for command in backend.watch(launch):
        print(f"  {command}")


def _options(args: cli.Arguments) -> "Options":
    from elastic_jax.launch.options import Options

    values: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        value = getattr(args, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return Options(**values)


def _folder(workdir: str, study: str, backend: str) -> str:
    """Where the files go: beside the runs, where that is a folder."""
    from elastic_jax.data import files
    from elastic_jax.launch import names

    return (
        f"launch-{names.slug(study)}-{backend}" if files.is_remote(workdir) else str(Path(workdir, "launch", backend))
    )


if __name__ == "__main__":
    raise SystemExit(main())
