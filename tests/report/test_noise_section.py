"""Does the page show training beside noise, the trends of both and their verdicts, and only where noise was measured?"""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))

import planted_noise
from planted_noise import Plant

from elastic_jax import report
from elastic_jax.report import noise as section
from elastic_jax.report import noise_figures
from elastic_jax.report.findings import Findings


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    return planted_noise.write(
        tmp_path_factory.mktemp("noise"), Plant(models=3, noise=(0.05, 0.02), trained=(0.2, 0.06))
    )


@pytest.fixture(scope="module")
def page(moved):
    return report.render(moved, moved.parent / "report")


def test_the_page_has_both_figures_both_tables_and_the_verdict(page):
    text = page.read_text()
    part = text[text.index('<section id="noise">') :]
    part = part[: part.index("</section>")]
    assert '<a href="#noise">' in text and "2 draws a seed" in part
    assert 'id="figure-noise"' in part and 'id="figure-noise_trend"' in part
    plain = re.sub(r"<[^>]+>", " ", part)
    assert re.search(r"way back in score along tokens of pre-training \(1,000 parameters\):\s+partly noise", plain)
    assert re.search(r"m0\s+256\s+16\s+0\.05.*?training more", plain, re.DOTALL)
    folder = page.parent
    for name in (
        "tables/noise.csv",
        "tables/noise_per_seed.csv",
        "tables/noise_trends.csv",
        "tables/noise_weights.csv",
        "figures/noise.csv",
        "figures/noise_trend.csv",
        "figures/noise.svg",
    ):
        assert (folder / name).exists(), name
    drawn = (folder / "figures" / "noise.csv").read_text()
    assert ",noise," in drawn and ",aligned," in drawn


def test_the_statements_stand_on_the_page_with_their_verdicts(page):
    text = re.sub(r"<[^>]+>", " ", page.read_text())
    assert re.search(
        r"After more pre-training models rebound further, by more than their sensitivity[^.]*?\s+supported", text
    )


def test_the_summary_has_a_line_for_each(moved):
    text = report.summary(moved)
    assert "of 18 places training went further back in 18, noise in 0; 0 undecided" in text
    assert re.search(r"Way back per doubling of tokens of pre-training: training 0\.0[56].*: partly noise\.", text)


def test_one_base_has_no_trend_and_no_second_figure(tmp_path):
    found = Findings(planted_noise.study_of(tmp_path, Plant(models=1)))
    assert noise_figures.noise_curves(found) is not None and noise_figures.noise_trend(found) is None
    shown = section.section(section.frames(found), found)
    assert shown["rows"] and not shown["trends"] and not shown["verdicts"]


def test_a_study_without_noise_does_not_show_it(rendered):
    page = rendered.read_text()
    assert 'id="noise"' not in page and "#noise" not in page
    assert not (rendered.parent / "tables" / "noise.csv").exists()
