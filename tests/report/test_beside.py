"""Are the paper's numbers drawn beside the study that names them, and nowhere else?"""

import dataclasses

import planted
import pytest
from test_resistance_section import rows_and_runs

from elastic_jax import report
from elastic_jax.analysis import table
from elastic_jax.report import beside
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
    dotted = [line for line in gemma.lines if line.get_linestyle() == ":" and len(line.get_xdata()) > 2]
    assert len(dotted) == 2  # the two curves that carry each other's labels in May 2024


@pytest.mark.parametrize("item", ["figure 5", "figure 6"])
def test_figures_5_and_6_draw_a_line_for_each_variant(named, item):
    drawing = beside.published_curves(named(item, ("small", "large")))
    assert drawing is not None and set(drawing.data.model) == {"small", "large"}
    point = drawing.data[(drawing.data.model == "small") & (drawing.data.examples == 0)].iloc[0]
    assert point["count"] == 3 and point["std"] == pytest.approx(0.03, abs=1e-6)  # planted 0.80, 0.83, 0.86


def test_table_3_has_both_quantities(named):
    drawing = beside.published_kl(named("table 3"))
    assert drawing is not None and {"kl_start", "elasticity_examples"} <= set(drawing.data.quantity)


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
    left, right = drawing.figure.axes
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
