"""Are the paper's numbers drawn beside the study that names them, and nowhere else?"""

import dataclasses
import io

import matplotlib
import numpy as np
import pandas as pd
import planted
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_resistance_section import rows_and_runs

from elastic_jax import report
from elastic_jax.analysis import table
from elastic_jax.report import beside, page, style
from elastic_jax.report.findings import Findings


@pytest.fixture
def named(tmp_path):
    """Item -> findings of a planted study, or of two as variants, whose config names it."""

    def make(item: str, variants: tuple[str, ...] = ()) -> Findings:
        frames, studies = [], {}
        for name in variants or ("planted",):
            rows, metadata = planted.table(planted.Plant())
            whole = f"planted.{name}" if variants else name
            info = metadata["studies"]["planted"]
            studies[whole] = info | dict(config=info["config"] | dict(published=item))
            frames.append(rows.assign(study=whole))
        path = planted.write(tmp_path / "measures.parquet", table.stack(frames), {"studies": studies})
        return Findings(table.select(table.load(path)))

    return make


def test_figure_4_shows_every_published_curve(named):
    drawing = beside.published_curves(named("figure 4"))
    assert drawing is not None
    panels = [axis for axis in drawing.figure.axes if "(paper)" in axis.get_title(loc="left")]
    assert len(panels) == 4
    gemma = next(axis for axis in panels if axis.get_title(loc="left").startswith("Gemma-2B, BeaverTails"))
    rings = [line for line in gemma.lines if line.get_linestyle() == ":" and len(line.get_xdata()) > 2]
    assert len(rings) == 2  # the two curves that carry each other's labels in May 2024
    for ring in rings:
        assert ring.get_fillstyle() == "none"
        (below,) = (
            line
            for line in gemma.lines
            if line.get_linestyle() == "-" and list(line.get_ydata()) == pytest.approx(list(ring.get_ydata()), abs=0.3)
        )
        assert below.get_color() != ring.get_color() and below.get_markersize() < ring.get_markersize()


def marks(drawing) -> set[tuple[str, str]]:
    return {
        (f"{x:.7g}", f"{y:.7g}")
        for axis in drawing.figure.axes
        for line in axis.lines
        if line.get_marker() not in ("None", "", None)
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        if np.isfinite([x, y]).all()
    }


def written(drawing) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(page.csv(drawing.data)), dtype={"align_volume": str}, keep_default_na=True)


def pairs(frame, x: str, y: str) -> set[tuple[str, str]]:
    return {(f"{float(a):.7g}", f"{b:.7g}") for a, b in frame[[x, y]].dropna().itertuples(index=False)}


@pytest.mark.parametrize("item", ["figure 4", "figure 5", "figure 6"])
def test_the_table_behind_the_curves_holds_what_is_drawn(named, item):
    drawing = beside.published_curves(named(item, () if item == "figure 4" else ("small", "large")))
    assert drawing is not None
    frame = written(drawing)
    assert set(frame.source) == {"this study", "paper"}
    levels = frame[(frame.source == "paper") & (frame.align_volume == "0")]
    assert marks(drawing) == pairs(frame.drop(levels.index), "examples", "mean")
    level = [line for axis in drawing.figure.axes for line in axis.lines if line.get_marker() == "None"]
    lines = {f"{line.get_ydata()[0]:.7g}" for line in level if len(line.get_xdata()) == 2}
    assert {f"{y:.7g}" for y in levels["mean"]} <= lines
    assert all(any(float(y) == pytest.approx(base, abs=1e-6) for y in lines) for base in frame.base.dropna().unique())


def test_single_volumes_of_may_2024_are_drawn_lightly(named):
    drawing = beside.published_curves(named("figure 5", ("small", "large")))
    light = [
        line for axis in drawing.figure.axes for line in axis.lines if line.get_alpha() and line.get_linestyle() == "--"
    ]
    assert len(light) == 12 and sum(len(line.get_xdata()) for line in light) == 36
    assert "May 2024" in drawing.caption


def test_published_models_stand_in_the_order_of_their_numbers(named):
    drawing = beside.published_curves(named("figure 6", ("small", "large")))
    names = [text.get_text() for text in drawing.figure.axes[1].get_legend().get_texts()]
    assert names == [f"TinyLlama-1.1B {tokens}" for tokens in ("2T", "2.5T", "3T")]


@pytest.mark.parametrize("item", ["figure 5", "figure 6"])
def test_figures_5_and_6_draw_a_line_for_each_variant(named, item):
    drawing = beside.published_curves(named(item, ("small", "large")))
    assert drawing is not None and set(drawing.data[drawing.data.source == "this study"].model) == {"small", "large"}
    point = drawing.data[(drawing.data.model == "small") & (drawing.data.examples == 0)].iloc[0]
    assert point["count"] == 3 and point["std"] == pytest.approx(0.03, abs=1e-6)  # planted 0.80, 0.83, 0.86


def test_table_3_has_both_quantities(named):
    drawing = beside.published_kl(named("table 3"))
    assert drawing is not None and {"kl_start", "elasticity_examples"} <= set(drawing.data.quantity)


def test_the_table_behind_table_3_holds_what_is_drawn(named):
    drawing = beside.published_kl(named("table 3"))
    frame = written(drawing)
    late = frame[frame["mean"].isna()]
    assert marks(drawing) == pairs(frame, "align_volume", "mean") | pairs(late, "align_volume", "bound")
    assert set(frame.source) == {"this study", "paper"}


def test_the_axes_of_table_3_do_not_run_into_one_another(named):
    found = named("table 3")
    facts = [planted._fact("pretrain-heldout", m, "count", value) for m, value in (("rows", 4), ("loss_tokens", 50))]
    rows = table.stack([found.study.rows, table.frame(facts, list(facts[0]))])
    with matplotlib.rc_context(style.RC):
        figure = beside.published_kl(Findings(dataclasses.replace(found.study, rows=rows))).figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        left, right = figure.axes
        per_text = left.child_axes[0].yaxis.label.get_window_extent(canvas.get_renderer())
        examples = right.yaxis.label.get_window_extent(canvas.get_renderer())
        assert per_text.x1 < examples.x0
        assert {line.get_linestyle() for line in left.get_legend().get_lines()} >= {"-", "--"}


def test_table_3_counts_per_text_where_the_length_of_texts_is_known(named):
    found = named("table 3")
    assert beside.published_kl(found).figure.axes[0].child_axes == []  # planted facts say nothing of held-out texts
    facts = [
        planted._fact("pretrain-heldout", measure, "count", value)
        for measure, value in (("rows", 4), ("loss_tokens", 50))
    ]
    rows = table.stack([found.study.rows, table.frame(facts, list(facts[0]))])
    known = Findings(dataclasses.replace(found.study, rows=rows))
    (right,) = beside.published_kl(known).figure.axes[0].child_axes
    assert right.get_ylabel() == "nats per text (ours)"
    assert right._functions[0](0.2) == pytest.approx(0.2 * 12.5)
    means = known.quantities[known.quantities.measure == "kl_base_model"].query(
        "split == 'pretrain' and arm == 'aligned'"
    )
    of = {name: part["mean"].to_numpy() for name, part in means.groupby("quantity")}
    for name in ("kl_start", "kl_final", "kl_minimum"):
        assert of[f"{name}_per_text"] == pytest.approx(12.5 * of[name])


def test_table_1_has_all_printed_pairs_beside_ours(named):
    found = named("table 1")
    assert beside.published_resistance(found) is None  # the study trains no slices
    rows, runs = rows_and_runs()
    study = dataclasses.replace(
        found.study,
        rows=table.stack([found.study.rows, table.frame(rows, list(found.study.rows.columns))]),
        info=found.study.info | dict(runs=[*found.study.runs, *runs]),
    )
    drawing = beside.published_resistance(Findings(study))
    assert drawing is not None
    frame = written(drawing)
    left, right = drawing.figure.axes
    drawn = {
        f"{float(line.get_xdata()[0]):.7g}"
        for axis in (left, right)
        for line in axis.lines[:-1]
        if len(line.get_xdata()) == 1
    }
    assert drawn == {f"{value:.7g}" for value in frame.difference}
    assert sum(len(line.get_xdata()) for line in right.lines[:-1]) == 27  # the last is the line at zero
    assert all(line.get_xdata()[0] > 0 for line in right.lines[:-1])  # inverse is lower in every printed pair
    means = [float(line.get_xdata()[0]) for line in left.lines if line.get_marker() == "|"]
    assert means == pytest.approx([0.1, 0.1], abs=1e-9)  # raw and minus entropy, of the planted slices


def test_nothing_is_drawn_where_nothing_is_named(named):
    found = named("")
    assert beside.published_curves(found) is None and beside.published_kl(found) is None


def test_the_page_shows_them(named, tmp_path):
    named("figure 4")
    page = report.render(tmp_path / "measures.parquet", tmp_path / "report").read_text()
    assert "Beside Figure 4 of the paper" in page
