"""Show how far the studies in a working directory are."""

from elastic_jax import cli


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "status", workdir=True)
    parser.add_argument("--study", default=None, help="one of several in the same folder; by default the latest")
    return cli.guarded(_status, parser, argv)


def _status(args: cli.Arguments) -> None:
    from elastic_jax.study.workdir import Workdir

    workdir = Workdir(args.workdir)
    workdir.open(create=False)
    entry = workdir.study(args.study)
    done = 0
    for run in entry["runs"]:
        checkpoints = [examples // run["batch_size"] for examples in run["points"]]
        complete = workdir.is_done(run["run"], entry["protocol"], checkpoints, run["measured"])
        done += complete
        reached = run["updates"] if complete else min(workdir.reached(run["run"]), run["updates"])
        wall = f"{workdir.read_run(run['run'], 'DONE')['wall_seconds']:.1f} s" if complete else ""
        print(
            f"{'done' if complete else 'open':5} {reached:>8,} of {run['updates']:<8,} updates  {run['run']}  {wall}".rstrip()
        )
    print(f"{done} of {len(entry['runs'])} runs done")
    report = workdir.report / "index.html"
    if report.exists():
        print(f"report: {report}")


if __name__ == "__main__":
    raise SystemExit(main())
