"""Do terminal and README get the numbers of the page?"""

import planted

from elastic_jax import report


def test_text_is_aligned_and_holds_the_planted_half_life(tmp_path):
    path = planted.write(tmp_path / "measures.parquet", *planted.table(planted.Plant(noise=0.0)))
    lines = report.summary(path).splitlines()
    half = next(line for line in lines if line.startswith("half-life (examples)"))
    assert [half.split()[i] for i in (2, 5, 8)] == ["128", "64.0", "32.0"]
    head = next(line for line in lines if line.startswith("alignment examples"))
    assert head.rstrip().endswith("control") and "4,096" in head
    assert "3 seeds" in lines[0] and "35,000 parameters" in lines[0]


def test_markdown_is_a_table(measures):
    lines = [line for line in report.summary(measures, markdown=True).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and set(lines[1]) <= set("|:- ")


def test_eps_is_used_and_named(measures):
    assert "< 0.05 nats" in report.summary(measures, eps=0.05)
    assert report.summary(measures, eps=0.05) != report.summary(measures)


def test_summary_of_a_study_without_perturbation(tmp_path):
    rows, metadata = planted.table()
    path = planted.write(tmp_path / "measures.parquet", rows[rows.stage != "perturb"], metadata)
    assert "No perturb run has been measured yet" in report.summary(path)
