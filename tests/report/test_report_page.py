"""Is the page whole, closed in itself, the same each time and faithful to its tables?"""

import html.parser
import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pandas as pd
import planted
import pytest

from elastic_jax import report
from elastic_jax.analysis import laws, table
from elastic_jax.errors import UserError
from elastic_jax.report import figures, page, style, tables
from elastic_jax.report.findings import Findings

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(html.parser.HTMLParser):
    """Collects references and text, and insists on nesting."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.ids, self.texts, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                self.references.append((tag, value))
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)


def read(path):
    parser = Page()
    parser.feed(path.read_text())
    parser.close()
    assert not parser.open
    return parser


def test_page_is_closed_in_itself(rendered):
    parsed = read(rendered)
    outside = [(tag, ref) for tag, ref in parsed.references if not ref.startswith("#")]
    assert outside and all(tag == "a" and ref.startswith("https://arxiv.org/") for tag, ref in outside)
    source = rendered.read_text()
    assert "<script" not in source and "@import" not in source and not re.search(r"url\((?!#)", source)
    assert len(parsed.ids) == len(set(parsed.ids))
    targets = [ref[1:] for _, ref in parsed.references if ref.startswith("#")]
    assert set(targets) <= set(parsed.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", source)) <= set(parsed.ids)


def test_every_figure_is_in_the_page_and_beside_it(rendered):
    names = sorted(p.name for p in (rendered.parent / "figures").iterdir())
    stems = {n.rpartition(".")[0] for n in names}
    assert stems == {
        "rebound",
        "rebound_axes",
        "control_gap",
        "kl_to_base",
        "phase",
        "two_distances",
        "dose",
        "compression",
        "kl_data_model",
        "pretraining",
    }
    assert names == sorted(f"{s}.{e}" for s in stems for e in ("csv", "svg"))
    assert read(rendered).tags.count("svg") == len(stems)
    for stem in stems:
        ElementTree.fromstring((rendered.parent / "figures" / f"{stem}.svg").read_text())


def test_colours_of_the_page_follow_the_mode(rendered):
    drawings = "".join(re.findall(r"<svg.*?</svg>", rendered.read_text(), flags=re.DOTALL))
    assert "var(--volume-0)" in drawings and "var(--ink)" in drawings
    assert not set(re.findall(r"#[0-9a-f]{6}\b", drawings)) - {"#ffffff", "#000000"}


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_table_same_bytes_in_another_process_and_row_order(rendered, tmp_path, hash_seed):
    rows, metadata = planted.table()
    (tmp_path / "w").mkdir()
    planted.write(tmp_path / "w" / "measures.parquet", rows.sample(frac=1, random_state=int(hash_seed)), metadata)
    command = [sys.executable, "-m", "elastic_jax.report", f"--workdir={tmp_path / 'w'}"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True)
    first = {p.relative_to(rendered.parent): p for p in rendered.parent.rglob("*") if p.is_file()}
    other = tmp_path / "w" / "report"
    assert {p.relative_to(other) for p in other.rglob("*") if p.is_file()} == set(first)
    for name, path in first.items():
        assert path.read_bytes() == (other / name).read_bytes(), name


def findings(path):
    return Findings(table.select(table.load(path)))


def points_of(axes):
    """Marked points in the data of an axis; unmarked lines are references."""
    return {
        (round(float(x), 9), round(float(y), 9))
        for line in axes.lines
        if line.get_marker() not in ("None", "", None) and line.get_markersize() < 5
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        if np.isfinite([x, y]).all()
    }


@pytest.mark.parametrize(
    ("draw", "columns"),
    [
        (figures.rebound_curve, [("examples", "mean")]),
        (figures.rebound_axes, [("updates", "mean"), ("tokens", "mean")]),
        (figures.control_gap, [("updates", "mean")]),
        (figures.phase, [("kl", "score")]),
        (figures.two_distances, [("kl_base_model", "kl_data_model")]),
        (figures.divergence, [("examples", "mean")]),
        (figures.rates, [("examples", "mean")]),
        (figures.pretraining, [("tokens", "mean")]),
    ],
)
def test_csv_holds_exactly_the_drawn_points(measures, draw, columns):
    with matplotlib.rc_context(style.RC):
        drawing = draw(findings(measures))
    data = pd.read_csv(io.StringIO(page.csv(drawing.data)))
    drawn = set().union(*(points_of(axes) for axes in drawing.figure.axes))
    written = {(round(x, 9), round(y, 9)) for a, b in columns for x, y in zip(data[a], data[b], strict=True)}
    assert {(f"{x:.7g}", f"{y:.7g}") for x, y in drawn} == {(f"{x:.7g}", f"{y:.7g}") for x, y in written}


def test_no_label_leaves_the_figure(measures):
    """Measured with the font space was reserved for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(style.RC):
        for draw in figures.ALL:
            drawing = draw(findings(measures))
            if draw in (figures.pretraining_volume, figures.further_scores):
                assert drawing is None  # one base and one scorer: drawn in the tests of these parts
                continue
            figure = drawing.figure
            FigureCanvasAgg(figure).draw()
            box = figure.get_tightbbox()
            assert box.x0 >= -0.02 and box.y0 >= -0.02, draw.__name__
            assert box.x1 <= figure.get_figwidth() + 0.02 and box.y1 <= figure.get_figheight() + 0.02, draw.__name__


def test_both_distances_start_at_the_aligned_model_and_the_base(measures):
    found = findings(measures)
    drawing = figures.two_distances(found)
    (axis,) = drawing.figure.axes
    rings = [line for line in axis.lines if line.get_marker() == "o" and line.get_markersize() > 7]
    ends = [line for line in axis.lines if line.get_marker() == "D"]
    assert len(rings) == len(ends) == 4  # three volumes and the control
    for mark, place in ((rings, 0), (ends, -1)):
        for line, (_, part) in zip(mark, drawing.data.groupby(["arm", "align_volume"], sort=True), strict=True):
            row = part.sort_values("examples").iloc[place]
            assert (line.get_xdata()[0], line.get_ydata()[0]) == (row.kl_base_model, row.kl_data_model)
    (cross,) = (line for line in axis.lines if line.get_marker() == "+")
    base = found.curves("kl_data_model", "perturb").base
    assert list(cross.get_xdata()) == [0] and cross.get_ydata()[0] == pytest.approx(base.mean())


def test_laws_say_in_words_what_they_are_of(measures):
    found = findings(measures)
    along = [row for row in tables.law_rows(found) if row["along"] == "alignment examples"]
    assert along and all(row["where"].endswith(", aligned by sft, perturbed by sft") for row in along)
    said = laws._in_words(dict(align_method="sft", perturb_method="dpo", align_volume=2048))
    assert said == "aligned by sft, perturbed by dpo, 2,048 alignment examples"


def test_every_held_out_place_stands_beside_its_prediction(measures, rendered):
    found = findings(measures)
    rows = {(row["quantity"], row["place"]): row for row in tables.prediction_rows(found)}
    predicted = found.predictions[found.predictions.predicted.notna()]
    assert len(rows) == len(predicted) > 0
    row = rows["half-life", "1,024 alignment examples"]
    assert float(row["observed"]) == pytest.approx(64, rel=0.2)  # planted
    low, high = (float(x) for x in row["predicted"].interval.strip("[]").split(", "))
    assert low <= float(row["predicted"].value) <= high
    assert row["inside"] == ("inside" if low <= float(row["observed"]) <= high else "outside")
    part = rendered.read_text().partition('class="numbers predictions"')[2].partition("</table>")[0]
    assert part.count("<tr>") == 1 + len(rows)


def test_the_remark_on_rates_fits_their_verdict(measures):
    rows = findings(measures).tests
    rates = rows[(rows.test == "rates") & rows["mean"].notna()]
    assert len(rates) == 3
    for row in rates.itertuples():
        assert row.reason == ("within ±2" if row.verdict == "undecided" else "beyond ±2") and (abs(row.mean) <= 2) == (
            row.verdict == "undecided"
        )


def test_sample_text_is_escaped(rendered):
    assert "&lt;b&gt;cold&lt;/b&gt; &amp; slow" in rendered.read_text()


def test_runs_are_all_in_the_tree(rendered, measures):
    source = rendered.read_text()
    runs = table.select(table.load(measures)).runs
    assert all(f"<code>{run['id']}</code>" in source for run in runs)


def test_one_seed_without_control_and_without_data_divergence(render_of):
    text = " ".join(read(render_of(planted.Plant(seeds=(0,), volumes=(256,), control=False, kl_data=False))).texts)
    assert "One seed: means are single values" in text and "No control" in text and "KL(data || model)" in text
    assert "two distances (KL(base || model) on pretrain rows" in text
    assert "[" not in text[text.index("Key numbers") : text.index("Score under perturbation")].replace("[low", "")


def test_several_methods_and_many_volumes(render_of):
    path = render_of(planted.Plant(seeds=(0, 1), methods=("sft", "dpo"), volumes=(64, 256, 1024, 4096, 16384, 32768)))
    text = " ".join(read(path).texts)
    assert "dpo" in text and "32.8k" in text
    data = pd.read_csv(path.parent / "figures" / "rebound.csv", keep_default_na=False)
    assert set(data.panel) == {"dpo", "sft"} and set(data[data.panel == "dpo"].arm) == {"aligned", "control"}


def test_unfinished_studies_say_so(render_of):
    def cut(rows):
        return rows[~((rows.stage == "perturb") & (rows.seed == 1) & (rows.examples > 64))]

    assert "7 of 10 runs finished" in " ".join(read(render_of(change=cut)).texts)
    for stages in (["data", "pretrain"], ["data", "pretrain", "align"]):
        path = render_of(change=lambda rows, stages=stages: rows[rows.stage.isin(stages)])
        assert "No perturb run has been measured yet" in " ".join(read(path).texts)


def test_a_censored_cell_shows_a_bound(render_of):
    path = render_of(planted.Plant(noise=0.0, points=(16, 32, 64)))
    assert "&gt; 64.0" in path.read_text() and "not reached by 3 of 3 seeds" in path.read_text()


def test_command_shows_the_message_alone(tmp_path):
    command = [sys.executable, "-m", "elastic_jax.report", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no such file" in done.stderr and "Traceback" not in done.stderr


def test_render_refuses_an_unknown_study(measures, tmp_path):
    with pytest.raises(UserError, match="Closest: planted"):
        report.render(measures, tmp_path / "out", "plantet")
    assert not (tmp_path / "out").exists()


def test_importing_a_report_loads_no_framework():
    heavy = {"matplotlib", "tensorflow", "torch", "flax"}
    code = f"import sys, elastic_jax.report; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("x", "unit", "text"),
    [
        (0.51234, "probability", "0.512"),
        (1234.5, "", "1,230"),
        (-0.5, "", "−0.500"),
        (0, "", "0"),
        (1e-9, "", "1.00e−09"),
        (float("nan"), "", "–"),
        (99.96, "", "100"),
        (-0.0001, "probability", "0.000"),
    ],
)
def test_numbers(x, unit, text):
    assert tables.number(x, unit) == text
