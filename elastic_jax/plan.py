"""Show what a study would run, whether it fits, and what it costs; nothing is trained.

For the devices here, or with --topology for any others: `v5e:16x16`, `v5p:4x4x4`, `h100:8`, `cpu:8`.
"""

import json

from elastic_jax import cli
from elastic_jax.callable_modules import calls
from elastic_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "plan", config=True)
    parser.add_argument("--workdir", default="", help="also show which runs are done there")
    parser.add_argument(
        "--topology", help="devices to plan for, such as v5e:16x16 or h100:8; by default those of this process"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile for the topology as well (TPU: needs extra `tpu`)"
    )
    parser.add_argument("--stage", help="with --topology, plan pretrain, align or perturb alone")
    parser.add_argument("--hfu", type=float, help="share of the peak that times assume, with --topology")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return cli.guarded(_plan, parser, argv)


def _plan(args: cli.Arguments) -> None:
    config = cli.load_config(args)
    if args.topology:
        for flag in ("platform", "distributed"):
            if value := getattr(args, flag):
                raise UserError(
                    f"--{flag}={value} has no effect with --topology={args.topology}, which names the devices. Leave one of them out."
                )
        # An unknown name should not wait for jax.
        from elastic_jax.parallel import platforms, topology

        topology.parse(args.topology)
        platforms.cpu_alone()  # a topology needs none of the devices here
    else:
        cli.start_jax(args, config)
    from elastic_jax import config as config_lib
    from elastic_jax.study import Study, planning, say

    stages = (args.stage,) if args.stage else None
    plans = {
        name: planning.plan(
            Study(variant, args.workdir) if args.workdir else variant,
            topology=args.topology or None,
            compiled=args.compile,
            hfu=args.hfu,
            stages=stages,
        )
        for name, variant in config_lib.variants(config).items()
    }
    if args.json:
        whole = {name: found.as_json() for name, found in plans.items()}
        say(json.dumps(whole.get("", whole), indent=1))
    else:
        say("\n".join(map(str, plans.values())))
    if cures := [planning.cure(found) for found in plans.values() if not found.fits]:
        raise UserError("\n".join(cures))


if __name__ != "__main__":
    calls(__name__, "elastic_jax.study.planning:plan")

if __name__ == "__main__":
    raise SystemExit(main())
