"""How long do all experiments of the paper take on this machine, and what is the time spent on?

usage: python benchmarks/suite.py [--workdir=FOLDER] [--recipes=rebound,kl_rebound] [--quick]

Every recipe of configs/ for the embedded universe, three seeds each, one after the other in one process and one working directory, from
a cold compilation cache. Recipes with the same base train and measure it once, and programs of one shape are compiled once. With
--workdir everything is kept, and the same command continues; the table is then of what was left to do. Ends with code 1 where a recipe
failed; the others are run all the same.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common

from elastic_jax.errors import first_line
from elastic_jax.parallel import huge_pages

if TYPE_CHECKING:
    from elastic_jax.study.session import Session
    from elastic_jax.study.suite import Suite

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# First the one whose record of base and alignment is the finest, so that the others find all of theirs in it.
RECIPES = (
    "kl_rebound",
    "rebound",
    "batch_semantics",
    "pretrain_tokens",
    "model_size",
    "resistance",
    "order",
    "dials",
)
LIMIT = 45.0  # minutes, on 2 cores


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", type=Path, help="by default a temporary folder")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="names of files in configs/, joined by commas")
    args = parser.parse_args()
    huge_pages.restart()  # as `python -m elastic_jax.run` does
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ELASTIC_COMPILE_CACHE"] = str(Path(scratch) / "cache")
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        began = time.perf_counter()
        rows, failed, account = measured(args.recipes.split(","), args.workdir or Path(scratch) / "work", args.quick)
        minutes = (time.perf_counter() - began) / 60
    common.report(
        "suite",
        "All experiments of the paper on the embedded universe",
        dict(
            recipe="recipe",
            studies="studies",
            runs="runs, all seeds",
            trained="of them trained here",
            updates="updates",
            points="points measured",
            wall="wall time (s)",
            compiling="compiling",
            training="training",
            measuring="measuring",
            checkpoints="checkpoints",
            report="report",
        ),
        rows,
        notes=[
            f"Everything together: {minutes:.1f} minutes; the aim is less than {LIMIT:.0f} on 2 cores. Seconds of the kinds are those of runs, "
            "of which several are trained at the same time: they may add up to more than the wall time. A run that an earlier recipe "
            "has trained and measured is not trained again.",
            f"By kind, in seconds: {account}.",
            *(f"{recipe} failed: {error}" for recipe, error in failed.items()),
        ],
        out=args.out,
    )
    return 1 if failed else 0


def measured(recipes: list[str], workdir: Path, quick: bool) -> tuple[list[dict[str, Any]], dict[str, str], str]:
    """A row for each recipe and one of the sums, what failed, and where all of the time went."""
    from elastic_jax import cli
    from elastic_jax import config as config_lib
    from elastic_jax.study.session import Session
    from elastic_jax.study.suite import Suite

    specs = {name: f"{CONFIGS / name}.py" + (":tiny" if quick else "") for name in recipes}
    configs = {name: config_lib.load(spec) for name, spec in specs.items()}
    for config in configs.values():
        config_lib.validate(config)
    cli.start_jax(argparse.Namespace(platform="", distributed=""), next(iter(configs.values())))
    session, rows, failed = Session(), [], {}
    for name, config in configs.items():
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            rows.append(dict(recipe=name, **one(Suite, config, workdir, session)))
        except Exception as error:  # the others are worth their hours
            failed[name] = first_line(error)
            traceback.print_exc()
            continue
        print(common.table({key: key for key in rows[-1]}, rows[-1:]), file=sys.stderr, flush=True)
    numbers = [name for name, value in rows[0].items() if name != "recipe" and value is not None] if rows else []
    rows.append(dict(recipe="all", **{name: sum(row[name] for row in rows) for name in numbers}))
    return rows, failed, str(session.account)


def one(make: "type[Suite]", config: Any, workdir: Path, session: "Session") -> dict[str, Any]:
    """Run one recipe to its report; what there was to do, and the seconds by kind."""
    began, before = time.perf_counter(), session.account.spent
    suite = make(config, workdir, session)
    runs, todo = {}, {}
    for study in suite.studies.values():
        for status in study.status():
            # Variants may share a run, each with points of its own.
            run, there = status.run, runs.get(status.run.key, frozenset())
            runs[run.key] = there | run.measures
            if not status.done:
                todo[run.key] = max(todo.get(run.key, 0), run.updates - status.updates if run.trains else 0)
    suite.run()
    spent = {kind: seconds - before.get(kind, 0.0) for kind, seconds in session.account.spent.items()}
    return dict(
        studies=len(suite.studies),
        runs=len(runs),
        trained=len(todo),
        updates=sum(todo.values()),
        points=sum(len(runs[key]) for key in todo),
        wall=time.perf_counter() - began,
        **by_column(spent),
    )


def by_column(spent: Mapping[str, float]) -> dict[str, float]:
    from elastic_jax.study import tree
    from elastic_jax.train import account

    return dict(
        compiling=spent.get(account.COMPILE, 0.0),
        training=sum(spent.get(stage, 0.0) for stage in tree.STAGES),
        measuring=spent.get(account.MEASURE, 0.0),
        checkpoints=spent.get(account.SAVE, 0.0),
        report=spent.get(account.REPORT, 0.0),
    )


if __name__ == "__main__":
    raise SystemExit(main())
