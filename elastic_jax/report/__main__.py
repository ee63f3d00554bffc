"""`python -m elastic_jax.report --workdir=runs/quickstart`: writes the report of a workdir again, without training."""

import argparse
import sys

from etils import epath

from elastic_jax import report
from elastic_jax.analysis import rebound
from elastic_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="python -m elastic_jax.report", description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", required=True, help="folder of the study; local or gs://")
    parser.add_argument("--study", help="which study, when measures.parquet holds several")
    parser.add_argument("--out", help="where the report goes (default: <workdir>/report)")
    parser.add_argument("--eps", type=float, default=rebound.EPS, help="KL in nats/token of the elasticity ratio")
    parser.add_argument("--summary", choices=("text", "markdown"), help="print the key numbers instead of a page")
    flags = parser.parse_args(argv)
    measures = epath.Path(flags.workdir) / "measures.parquet"
    try:
        if flags.eps <= 0:
            raise UserError(f"--eps={flags.eps:g}: the neighbourhood of the base needs a KL above 0, such as 0.01.")
        if flags.summary:
            text = report.summary(measures, flags.study, markdown=flags.summary == "markdown", eps=flags.eps)
        else:
            out = epath.Path(flags.out) if flags.out else epath.Path(flags.workdir) / "report"
            text = f"{report.render(measures, out, flags.study, eps=flags.eps)}\n"
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
