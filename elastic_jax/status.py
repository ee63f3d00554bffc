"""Show how far the studies in a working directory are, and who works on them."""

import time
from typing import TYPE_CHECKING, Any

from elastic_jax import cli

if TYPE_CHECKING:
    from elastic_jax.study.lock import Holder
    from elastic_jax.study.workdir import Workdir


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "status", workdir=True)
    parser.add_argument("--study", default=None, help="one of several in the same folder; by default the latest")
    return cli.guarded(_status, parser, argv)


def _status(args: cli.Arguments) -> None:
    from elastic_jax.study.lock import STUDY
    from elastic_jax.study.workdir import Workdir
    from elastic_jax.train import account, goodput

    workdir = Workdir(args.workdir)
    workdir.open(create=False)
    entry = workdir.study(args.study)
    holders = workdir.holders()
    lines = workdir.each(lambda run: _line(workdir, entry, run, holders.get(run["run"])), entry["runs"])
    for _, line in lines:
        print(line)
    print(f"{sum(done for done, _ in lines)} of {len(lines)} runs done")
    spent = workdir.each(lambda run: (run["stage"], workdir.read_run(run["run"], goodput.FILE)), entry["runs"])
    print(f"seconds: {account.line(account.of_runs(spent))}")
    if STUDY in holders:
        print(f"the whole study is run by {_sign(holders[STUDY])}")
    report = workdir.report / "index.html"
    if report.exists():
        print(f"report: {report}")


def _line(workdir: "Workdir", entry: dict[str, Any], run: dict[str, Any], holder: "Holder | None") -> tuple[bool, str]:
    """Whether a run is done, and what to print of it."""
    checkpoints = [-(-examples // run["batch_size"]) for examples in run["points"]]  # the last batch may not be whole
    done = workdir.is_done(run["run"], entry["protocol"], checkpoints, run["measured"])
    reached = run["updates"] if done else min(workdir.reached(run["run"]), run["updates"])
    note = f"{workdir.read_run(run['run'], 'DONE')['wall_seconds']:.1f} s" if done else ""
    if holder is not None:
        note = f"run by {_sign(holder)}"
    word = "done" if done else "runs" if holder is not None else "open"
    return done, f"{word:5} {reached:>8,} of {run['updates']:<8,} updates  {run['run']}  {note}".rstrip()


def _sign(holder: "Holder") -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder.since))
    seen = "" if holder.renewed is None else f", last sign of life {max(0.0, time.time() - holder.renewed):.0f} s ago"
    return f"{holder} since {since}{seen}"


if __name__ == "__main__":
    raise SystemExit(main())
