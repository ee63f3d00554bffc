"""Train, measure and report a study; the same command continues it."""

from typing import TYPE_CHECKING

from elastic_jax import cli
from elastic_jax.callable_modules import calls
from elastic_jax.errors import UserError, first_line

if TYPE_CHECKING:
    from elastic_jax.study.suite import Suite

STAGES = (
    "pretrain",
    "align",
    "perturb",
    "resistance",
    "noise",
    "order",
)  # of elastic_jax.study.tree, which imports jax


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "run", config=True, workdir=True)
    parser.add_argument("--stage", help=f"stop after one of {', '.join(STAGES)}")
    parser.add_argument(
        "--only", metavar="RUN[,RUN]", help="train these runs alone, once their parents are done; no table, no report"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    return cli.guarded(_run, parser, argv, interruptible=True)


def _run(args: cli.Arguments) -> None:
    # Flags first, jax after: a wrong flag should not wait for a device.
    config = cli.load_config(args)
    if args.stage not in (None, *STAGES):
        raise UserError(f"--stage={args.stage}: expected one of {', '.join(STAGES)}.")
    if args.stage is not None and args.only is not None:
        raise UserError("--only and --stage: give one of them.")
    programs = cli.start_jax(args, config)
    from elastic_jax import study as study_lib
    from elastic_jax.report import summary
    from elastic_jax.study import planning
    from elastic_jax.study.suite import Suite

    suite = Suite(config, args.workdir)
    study_lib.say(f"elastic_jax: {config.name} on {study_lib.devices()}, workdir {args.workdir}")
    if args.dry_run:
        for study in suite.studies.values():
            study_lib.say(str(planning.plan(study)))
        return
    open_runs = 0
    for variant, study in suite.studies.items():
        total = study_lib.describe_plan(study)
        done = sum(status.done for status in study.status())
        open_runs += total["runs"] - done
        study_lib.say(
            f"{variant + ': ' if variant else ''}{total['runs']} runs ({done} done), {total['updates']:,} updates, "
            f"{total['tokens'] / 1e6:.1f}M tokens, {total['params']:,} parameters"
        )
    for note in dict.fromkeys(note for study in suite.studies.values() for note in study.notes):
        study_lib.say(f"  {note}")
    keys = None if args.only is None else args.only.split(",")
    try:
        path = suite.run(args.stage) if keys is None else suite.run(only=keys)
    except RuntimeError as error:  # jax.errors.JaxRuntimeError
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = "\n".join(_needs(suite, keys))
        raise UserError(f"out of device memory. {first_line(error)}\n{needs}\n{cli.OUT_OF_MEMORY}") from error
    cli.note(programs)
    if keys is not None:
        study_lib.say(
            f"Done: {', '.join(keys)}. python -m elastic_jax.report --workdir={args.workdir} collects all runs."
        )
        return
    study_lib.say(f"seconds: {suite.session.account}")
    if not open_runs:
        study_lib.say("All runs were done already; nothing was computed.")
    if path is not None:
        study_lib.say(summary(suite.workdir.table, config.name, eps=config.measures.kl_eps))
        study_lib.say(f"report: {path}")


def _needs(suite: "Suite", keys: list[str] | None) -> list[str]:
    """What each stage of the largest model needs most memory for; of `keys`, those that they belong to."""
    from elastic_jax import config as config_lib
    from elastic_jax.study import planning

    asked = {
        name: [run.stage for run in study.runs if keys is None or run.key in keys]
        for name, study in suite.studies.items()
    }
    name = max((name for name, stages in asked.items() if stages), key=lambda name: suite.studies[name].model.size)
    largest = suite.studies[name]
    stages = config_lib.stages(largest.config) if keys is None else dict.fromkeys(asked[name])
    return [planning.out_of_memory(largest, stage) for stage in stages]


if __name__ != "__main__":
    calls(__name__, "elastic_jax.study:run")

if __name__ == "__main__":
    raise SystemExit(main())
