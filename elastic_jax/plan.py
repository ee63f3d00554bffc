"""Show what a study would run, whether it fits, and what it costs; nothing is trained."""

from elastic_jax import cli
from elastic_jax.callable_modules import calls


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "plan", config=True)
    parser.add_argument("--workdir", default="", help="also show which runs are done there")
    return cli.guarded(_plan, parser, argv)


def _plan(args: cli.Arguments) -> None:
    config = cli.load_config(args)
    cli.start_jax(args, config)
    from elastic_jax.study import Study, planning, say

    say(str(planning.plan(Study(config, args.workdir) if args.workdir else config)))


if __name__ != "__main__":
    calls(__name__, "elastic_jax.study.planning:plan")

if __name__ == "__main__":
    raise SystemExit(main())
