"""Write a checkpoint of a study as a folder that transformers opens (AutoModelForCausalLM, AutoTokenizer).

The run and its updates are those that `python -m elastic_jax.status` prints. Adapters are merged; the workdir is only read.
"""

from elastic_jax import cli
from elastic_jax.callable_modules import calls


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "export", workdir=True)
    parser.add_argument("--run", required=True, metavar="KEY", help="the run, by its key or its name")
    parser.add_argument("--updates", type=int, help="which of its checkpoints; by default the last")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the new folder")
    parser.add_argument("--study", help="one of several in the workdir; by default the latest")
    parser.add_argument("--shard_gb", type=float, default=5.0, help="gigabytes of a file at most (default: 5)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder where it exists")
    return cli.guarded(_export, parser, argv)


def _export(args: cli.Arguments) -> None:
    from elastic_jax.parallel import platforms

    platforms.cpu_alone()  # nothing is computed but sums of weights
    from elastic_jax.hf.export import export

    print(
        export(
            args.workdir,
            args.run,
            args.out,
            args.updates,
            study=args.study,
            shard_gb=args.shard_gb,
            overwrite=args.overwrite,
        )
    )


if __name__ != "__main__":
    calls(__name__, "elastic_jax.hf.export:export")

if __name__ == "__main__":
    raise SystemExit(main())
