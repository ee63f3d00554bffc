"""Collect what the runs of a working directory have measured, and write its table and its report again."""

import logging

from etils import epath

from elastic_jax import cli, report
from elastic_jax.analysis import rebound, table
from elastic_jax.data import files
from elastic_jax.errors import UserError

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in the input."""
    parser = cli.parser(__doc__, "report", workdir=True)
    parser.add_argument("--study", help="which study, when measures.parquet holds several; by default the only one")
    parser.add_argument("--out", help="where the report goes (default: <workdir>/report, or report-SCORE)")
    parser.add_argument("--eps", type=float, help="KL in nats/token of the elasticity ratio (default: the study's)")
    parser.add_argument(
        "--score", default="", help="a scorer of measures.scorers to be taken for the score, such as refusal"
    )
    parser.add_argument("--summary", choices=("text", "markdown"), help="print the key numbers instead of a page")
    return cli.guarded(_report, parser, argv)


def _report(args: cli.Arguments) -> None:
    folder = files.to_path(args.workdir)
    measures = _collected(folder)
    eps = args.eps
    if eps is None:
        config = table.select(table.load(measures), args.study).info.get("config", {})
        eps = config.get("measures", {}).get("kl_eps", rebound.EPS)
    if eps <= 0:
        raise UserError(f"--eps={eps:g}: the neighbourhood of the base needs a KL above 0, such as 0.01.")
    if args.summary:
        made = report.summary(measures, args.study, markdown=args.summary == "markdown", eps=eps, score=args.score)
        print(made, end="")
    else:
        # One by another scorer stands beside the study's own, which the study writes again when there is more of it.
        out = files.to_path(args.out) if args.out else folder / "-".join(filter(None, ("report", args.score)))
        print(report.render(measures, out, args.study, eps=eps, score=args.score))


def _collected(folder: epath.Path) -> epath.Path:
    """The table of all runs, which jobs of one run each have not written; where there is a table and no study, that."""
    measures = folder / "measures.parquet"
    if (folder / "study.json").exists():
        from elastic_jax.study.workdir import Workdir

        workdir = Workdir(folder)
        workdir.open(create=False)
        if workdir.is_measured():
            try:
                workdir.write_table()
            except PermissionError as error:  # somebody else's, to be read
                if not measures.exists():
                    raise
                log.warning("%s cannot be written (%s); the report shows what it holds.", measures, error)
    return measures


if __name__ == "__main__":
    raise SystemExit(main())
