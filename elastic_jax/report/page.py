"""What does the page of a study hold, and in which order?"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from elastic_jax.analysis import rebound, table
from elastic_jax.analysis.rescored import by_scorer
from elastic_jax.data import files
from elastic_jax.report import claims, dials, noise, order, resistance, tables
from elastic_jax.report.findings import Findings
from elastic_jax.train import account

_WHY_ABSENT = {
    "rebound_curve": "no perturb run has a score yet",
    "rebound_axes": "no perturb run has a score yet",
    "control_gap": "no control and aligned run share a seed",
    "divergence": "KL to the base was not measured on perturb runs",
    "phase": "score and KL to the base on pretrain rows are both needed",
    "two_distances": "KL(base || model) on pretrain rows and KL(data || model) on perturb rows are both needed",
    "dose": "no aligned model has been perturbed yet",
    "rates": "bits per token were not measured",
    "data_divergence": "KL(data || model) needs a source with known probabilities",
    "pretraining": "pre-training was recorded at fewer than two points",
    "pretraining_volume": "one base, or bases that differ neither in tokens of pre-training nor in parameters",
    "further_scores": "measures.scorers names none, or no perturb run has them yet",
    "noise_curves": "noise.draws=0",
    "task_orders": "order.volume=0, or nothing of it is measured yet",
    "noise_trend": "no noise in bases that differ in size or pre-training alone",
    "published_curves": "the config names no published figure",
    "published_kl": "the config does not name the paper's Table 3",
    "published_resistance": "the config does not name the paper's Table 1",
}


def render(
    measures_path: epath.PathLike,
    out_dir: epath.PathLike,
    study: str | None = None,
    *,
    eps: float = rebound.EPS,
    score: str = "",
) -> epath.Path:
    """Writes `index.html`, `figures/<name>.svg`, `figures/<name>.csv` and `tables/<name>.csv`; returns the
    page's path.

    The page needs nothing but itself. The same table gives the same bytes.

    Args:
      measures_path: the `measures.parquet` of a workdir.
      out_dir: made if missing; files of an earlier report are replaced.
      study: which one, when the table holds several.
      eps: neighbourhood of the base for the elasticity ratio, KL in nats per token.
      score: a further scorer, to be taken for the score; "": the data's own.

    Raises:
      UserError: the file is missing or not ours, or the study is not in it; or it has no such scorer.
    """
    selected = table.select(table.load(measures_path), study)
    found = Findings(by_scorer(selected, score) if score else selected, eps=eps)
    # Plotting and templates cost a second to import, which a summary alone should not pay.
    import jinja2
    import matplotlib

    from elastic_jax.report import beside, figures, noise_figures, order_figures, style

    out = epath.Path(out_dir)
    names, light, dark = style.css_colours(found.volumes)
    shown, absent = [], []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style.RC)  # type: ignore[call-overload]
        later = (order_figures.task_orders, beside.published_curves, beside.published_kl, beside.published_resistance)
        for draw in (*figures.ALL, *noise_figures.ALL, *later):
            drawing = draw(found)
            if drawing is None:
                absent.append((draw.__name__.replace("_", " "), _WHY_ABSENT[draw.__name__]))
                continue
            text = style.svg(drawing.figure)
            write(out / "figures" / f"{drawing.name}.svg", text)
            write(out / "figures" / f"{drawing.name}.csv", csv(drawing.data))
            picture = style.inline(text, drawing.name, html.escape(drawing.title, quote=True), names)
            shown.append({"name": drawing.name, "title": drawing.title, "caption": drawing.caption, "svg": picture})
    crossed, swept = resistance.frames(found), dials.frames(found)
    moved, ordered = noise.frames(found), order.frames(found)
    for name, frame in (
        ("quantities", found.quantities),
        ("quantities_per_seed", found.per_seed),
        ("further_scores", found.further),
        ("tests", found.tests),
        ("decays", found.decays),
        ("power_laws", found.power_laws),
        ("predictions", found.predictions),
        ("compression_changes", found.changes),
        *crossed.items(),
        *swept.items(),
        *moved.items(),
        *ordered.items(),
    ):
        write(out / "tables" / f"{name}.csv", csv(frame))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("elastic_jax.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        **_facts(found),
        dials=dials.section(swept),
        noise=noise.section(moved, found),
        order=order.section(ordered, found),
        resistance=resistance.section(crossed),
        resistance_texts=resistance.text_names(),
        figures={f["name"]: f for f in shown},
        absent=absent,
        light=light,
        dark=dark,
    )
    write(out / "index.html", page)
    return out / "index.html"


def _facts(found: Findings) -> dict[str, Any]:
    study, rows = found.study, found.study.rows
    names, roles, rest = tables.data_roles(found)
    environment = study.info.get("environment") or {}
    walls = [run.get("wall_seconds") for run in study.runs]
    known = [w for w in walls if isinstance(w, int | float)]
    done, planned = study.progress()
    records = tables.key_numbers(found)
    return {
        "study": study.name,
        "models": tables.models(found, records),
        "seeds": found.seeds,
        "level": f"{found.level:.0%}",
        "eps": f"{found.eps:g}",
        "done": done,
        "planned": planned,
        "missing": found.missing(),
        "key_columns": tables.KEY_COLUMNS,
        "key_numbers": records,
        "several_panels": len({r["panel"] for r in records}) > 1,
        "reasons": _reasons(records),
        "base": tables.base_score(records),
        "claims": claims.section(found),
        "curve_rows": tables.curve_rows(found),
        "further_rows": tables.further_rows(found),
        "scorers": list(study.info.get("scorers") or []),
        "quantity_rows": tables.quantity_rows(found),
        "change_rows": tables.change_rows(found),
        "compressor_rows": tables.compressor_rows(found),
        "decay_rows": tables.decay_rows(found),
        "law_rows": tables.law_rows(found),
        "prediction_rows": tables.prediction_rows(found),
        "data_names": names,
        "data_roles": roles,
        "data_rest": rest,
        "tree": tables.tree(found),
        "samples": tables.samples(found),
        "notes": list(study.info.get("notes") or []),
        "command": str(study.info.get("command") or ""),
        "fingerprint": str(study.info.get("fingerprint") or ""),
        "config": json.dumps(study.info.get("config") or {}, indent=2, sort_keys=True, ensure_ascii=False),
        "environment": environment,
        "versions": sorted((environment.get("versions") or {}).items()),
        "commits": sorted(set(rows.commit) - {""}),
        "wall": f"{sum(known):,.1f} s over {len(known)} runs" if known else "",
        "spent": _spent(study.runs),
    }


def _spent(runs: Sequence[Mapping[str, Any]]) -> str:
    """Seconds by kind; a run that variants share counts once. "" where none are known."""
    whole = account.Account()
    for run in {run.get("id") or run["run"]: run for run in runs}.values():
        whole.add(run.get("spent") or {})
    return account.line(whole.spent) if whole.spent else ""


def _reasons(records: list[dict[str, Any]]) -> list[str]:
    """Why cells of the key table are empty or bounds, each reason once with its places."""
    places: dict[str, list[str]] = {}
    for record in records:
        for cell, (_, _, name, unit) in zip(record["cells"], tables.KEY_COLUMNS, strict=True):
            if cell.reason and (cell.value == tables.NONE or cell.value.startswith(">")):
                who = record["label"] + (f" ({record['panel']})" if record["panel"] else "")
                places.setdefault(cell.reason, []).append(f"{name} ({unit}), {who}")
    return [f"{reason}: {'; '.join(where)}" for reason, where in sorted(places.items())]


def csv(frame: table.Frame) -> str:
    """A frame as text with enough digits to redraw a figure from it."""
    return frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def write(path: epath.Path, text: str) -> None:
    """Atomically: a reader sees the old file or the new one, never half of it."""
    files.write_text(path, text)
