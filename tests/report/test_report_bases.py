"""Are several bases kept apart, in the order of their pre-training, in tables, figures and summary?"""

import csv

import matplotlib
import pandas as pd
import planted
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from elastic_jax import report
from elastic_jax.analysis import rebound, table
from elastic_jax.report import figures, style
from elastic_jax.report.findings import Findings

# By name the order would be another.
BASES = {
    "tiny@step1000": (2_000_000_000, 0.5),
    "tiny@step143000": (300_000_000_000, 0.3),
    "tiny@step2000": (4_000_000_000, 0.4),
}
TOKENS = {name: count for name, (count, _) in BASES.items()}
PLANT = planted.Plant(seeds=(0, 1), volumes=(256, 1024), points=(16, 64, 256), kl_data=False, noise=0.001)


def write(folder, tokens=TOKENS, params=None):
    """A table as if each plant had been made from a base of its own.

    Args:
      tokens, params: of each base; the plant's parameters by default.
    """
    frames, runs = [], []
    for name, (_, score) in BASES.items():
        rows, metadata = planted.table(PLANT.__class__(**{**vars(PLANT), "base": score}))
        slug = name.rpartition("@")[2]
        measured = rows.run != ""
        for column in ("run", "parent"):
            rows[column] = [f"{slug}-{value}" if value else "" for value in rows[column]]
        rows["model"] = name
        rows.loc[~measured, "model"] = ""
        rows["pretrain_tokens"] = tokens[name]
        if params:
            rows.loc[measured, "params"] = params[name]
        frames.append(rows if not frames else rows[measured])
        for run in metadata["studies"]["planted"]["runs"]:
            parent = f"{slug}-{run['parent']}" if run["parent"] else ""
            runs.append(run | dict(run=f"{slug}-{run['run']}", parent=parent, id=slug + run["id"]))
    info = metadata["studies"]["planted"] | dict(runs=runs, bases=[dict(label=name) for name in BASES])
    return planted.write(folder / "measures.parquet", pd.concat(frames), {"studies": {"planted": info}})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return Findings(table.select(table.load(write(tmp_path_factory.mktemp("bases")))))


def test_every_base_has_conditions_of_its_own_against_its_own_score(found):
    paths = rebound.trajectories(found.study)
    assert {(p.condition[0], p.arm, p.align_volume, p.seed) for p in paths} == {
        (name, arm, volume, seed)
        for name in BASES
        for arm, volume in (("aligned", 256), ("aligned", 1024), ("control", 0))
        for seed in PLANT.seeds
    }
    for path in paths:
        assert path.base == pytest.approx(BASES[path.condition[0]][1], abs=0.01)


def test_bases_are_in_the_order_of_their_pretraining(found):
    wanted = ["tiny@step1000", "tiny@step2000", "tiny@step143000"]
    assert [model.name for model in found.study.models] == wanted
    assert [panel[0] for panel in found.panels] == wanted
    assert list(dict.fromkeys(found.conditions().panel)) == wanted


def test_without_tokens_they_are_in_the_order_of_the_config(tmp_path):
    found = Findings(table.select(table.load(write(tmp_path, dict.fromkeys(BASES, 0)))))
    assert [model.name for model in found.study.models] == list(BASES)


def test_page_and_summary_name_every_base_with_its_tokens_and_score(tmp_path):
    path = write(tmp_path)
    text = report.summary(path)
    page = report.render(path, tmp_path / "report").read_text()
    for name, tokens in (("tiny@step1000", "2B"), ("tiny@step2000", "4B"), ("tiny@step143000", "300B")):
        assert f"{name} (35,000 parameters, {tokens} tokens of pre-training)" in text
        assert f'<tr><th class="l">{name}</th><td>35,000</td><td>{tokens}</td>' in page
    assert 'id="figure-pretraining_volume"' in page
    with open(tmp_path / "report" / "figures" / "pretraining_volume.csv") as file:
        drawn = {(row["model"], row["align_volume"]): row for row in csv.DictReader(file) if row["quantity"] == "base"}
    assert {key[0] for key in drawn} == set(BASES)
    for (name, _), row in drawn.items():
        assert int(row["pretrain_tokens"]) == BASES[name][0]
        assert float(row["mean"]) == pytest.approx(BASES[name][1], abs=0.01)


def test_no_label_leaves_the_figure(found):
    with matplotlib.rc_context(style.RC):
        figure = figures.pretraining_volume(found).figure
        FigureCanvasAgg(figure).draw()
        box = figure.get_tightbbox()
    assert box.x0 >= -0.02 and box.y0 >= -0.02
    assert box.x1 <= figure.get_figwidth() + 0.02 and box.y1 <= figure.get_figheight() + 0.02


def by_base(tmp_path, **facts):
    found = Findings(table.select(table.load(write(tmp_path, **facts))))
    return figures.pretraining_volume(found)


def test_bases_of_equal_pretraining_stand_along_their_parameters(tmp_path):
    params = dict(zip(BASES, (40_000, 10_000, 20_000), strict=True))
    drawing = by_base(tmp_path, tokens=dict.fromkeys(BASES, 1_000_000), params=params)
    assert drawing is not None and drawing.title == "Against the size of the base" and "1M tokens" in drawing.caption
    axis = drawing.figure.axes[0]  # scores of the bases
    assert axis.get_xlabel() == "parameters"
    (line,) = (line for line in axis.lines if line.get_marker() == "o")
    assert list(line.get_xdata()) == [10_000, 20_000, 40_000]
    assert list(line.get_ydata()) == pytest.approx([0.3, 0.4, 0.5], abs=0.01)
    assert dict(drawing.data[["model", "params"]].itertuples(index=False, name=None)) == params


def test_parameters_that_vary_beside_tokens_are_said(tmp_path):
    drawing = by_base(tmp_path, params=dict(zip(BASES, (40_000, 10_000, 20_000), strict=True)))
    assert drawing is not None and drawing.figure.axes[0].get_xlabel() == "pre-training (tokens)"
    assert "differ in parameters too" in drawing.caption


def test_bases_that_differ_in_neither_have_no_axis(tmp_path):
    assert by_base(tmp_path, tokens=dict.fromkeys(BASES, 1_000_000)) is None


def test_bases_without_known_tokens_stand_by_their_names(tmp_path):
    drawing = by_base(tmp_path, tokens=dict.fromkeys(BASES, 0))
    assert drawing is not None
    assert [tick.get_text() for tick in drawing.figure.axes[0].get_xticklabels()] == [
        "step1000",
        "step143000",
        "step2000",
    ]


def test_one_base_has_no_axis(tmp_path):
    rows, metadata = planted.table(PLANT)
    path = planted.write(tmp_path / "measures.parquet", rows, metadata)
    page = report.render(path, tmp_path / "report").read_text()
    assert "pretraining volume (one base, or bases that differ neither in" in page and "pretraining_volume" not in page


def test_a_table_of_an_earlier_version_has_no_tokens_of_pretraining(tmp_path):
    rows, metadata = planted.table(PLANT)
    assert "pretrain_tokens" not in rows
    study = table.select(table.load(planted.write(tmp_path / "measures.parquet", rows, metadata)))
    assert [model.pretrain_tokens for model in study.models] == [0]
