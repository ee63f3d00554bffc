"""Does the page show both directions, their controls and the paper's Table 1, and only where they were run?"""

import re

import planted

from elastic_jax import published, report
from elastic_jax.analysis import resistance, table
from elastic_jax.report import resistance as section
from elastic_jax.report.findings import Findings

PAIRS = ((1, 2), (1, 3), (2, 3))


def rows_and_runs(model="m", lines=("123", "other")):
    """Forward is harder by 0.1 on texts of equal entropy; in the other line by nothing."""
    rows, runs = [], []
    for seed in (0, 1, 2):
        for line in lines:
            for earlier, later in PAIRS if line != "other" else PAIRS[:1]:
                for arm in ("inverse", "forward"):
                    run = f"{arm}-s{seed}-{line}-{later}to{earlier}-00"
                    runs.append(
                        dict(
                            run=run,
                            name=run[:-3],
                            stage="resistance",
                            arm=arm,
                            seed=seed,
                            line=line,
                            pair=[earlier, later],
                        )
                        | dict(
                            updates=4,
                            parent="",
                            examples=64,
                            points=[],
                            parent_examples=0,
                            method="sft",
                            align_volume=0,
                        )
                    )
                    loss = 0.3 + 0.1 * (arm == "forward" and line != "other") + 0.001 * seed * (1 + earlier)

                    def add(measure, updates, value, run=run, arm=arm, seed=seed):
                        fact = planted._fact("answers", measure, "nats/token", value)
                        fact |= dict(
                            run=run, stage="resistance", arm=arm, seed=seed, model=model, method="sft", params=7
                        )
                        rows.append(fact | dict(updates=updates, examples=16 * updates, n=64))

                    for version, more in (("", 1.0), ("_above_self", 0.0), ("_above_entropy", 0.0)):
                        add("epoch_loss" + version, 4, loss + more)
                        add("answer_loss" + version, 0, loss + more)
                    add("answer_total", 0, 640.0)
                    add("self_loss", 0, 1.0)
    return rows, runs


def written(tmp_path, names=("planted",)):
    frames, studies = [], {}
    for name in names:
        rows, metadata = planted.table(planted.Plant(seeds=(0, 1, 2), volumes=(256, 1024)))
        more, runs = rows_and_runs()
        info = metadata["studies"]["planted"]
        studies[name] = info | dict(runs=[*info["runs"], *runs])
        frames.append(table.stack([rows, table.frame(more, list(rows.columns))]).assign(study=name))
    return planted.write(tmp_path / "measures.parquet", table.stack(frames), {"studies": studies})


def test_the_page_has_the_table_with_arrows_and_what_the_paper_printed(tmp_path):
    page = report.render(written(tmp_path), tmp_path / "report").read_text()
    part = page[page.index('<section id="resistance">') :]
    part = part[: part.index("</section>")]
    assert '<a href="#resistance">' in page
    assert "slices 1, 2, 3: <b>resists</b>" in part and "two tasks: <b>undecided</b>" in part
    assert "θ₃→θ₁ : θ₁→θ₃" in part and "θ′→θ : θ→θ′" in part
    text = re.sub(r"<[^>]+>", " ", part)
    assert re.search(r"θ₂→θ₁ : θ₁→θ₂\s+1\.3\d+ \[1\.\d+, 1\.\d+\]\s+1\.4\d+ .*?0\.1000", text)
    for row in published.resistance().itertuples():
        assert f"{row.inverse:.4f} : {row.forward:.4f}" in text
    assert "640 : 640" in text
    for name in ("resistance", "resistance_per_seed", "resistance_texts"):
        assert (tmp_path / "report" / "tables" / f"{name}.csv").exists()


def test_variants_are_told_apart(tmp_path):
    found = Findings(table.select(table.load(written(tmp_path, ("planted.exact", "planted.paper")))))
    said = section.section(section.frames(found))["verdicts"]
    assert [(v["model"], v["line"], v["verdict"]) for v in said] == [
        (model, *rest)
        for model in ("exact", "paper")
        for rest in (("slices 1, 2, 3", "resists"), ("two tasks", "undecided"))
    ]


def test_the_summary_has_a_line_for_each_verdict(tmp_path):
    text = report.summary(written(tmp_path))
    assert (
        "Resistance, slices 1, 2, 3: resists; forward − inverse 0.1000 [" in text
        and "Resistance, two tasks: undecided" in text
    )


def test_a_study_without_the_experiment_does_not_show_it(rendered):
    page = rendered.read_text()
    assert 'id="resistance"' not in page and "#resistance" not in page
    assert not (rendered.parent / "tables" / "resistance.csv").exists()


def test_names_of_lines_and_pairs():
    assert section.line_name("321") == "slices 3, 2, 1" and section.line_name(resistance.OTHER) == "two tasks"
    assert section.arrows("123", 0, 0) == "all pairs"
