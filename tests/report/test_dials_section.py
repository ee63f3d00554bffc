"""Does the page show the response to the dials beside its prediction, and only where dials were swept?"""

import re

import planted
import planted_dials

from elastic_jax import report
from elastic_jax.analysis.table import Study
from elastic_jax.report import dials as section
from elastic_jax.report.findings import Findings


def test_both_protocols_stand_beside_the_theorem(tmp_path):
    study = planted_dials.study(noise=2e-5, forces=dict(pretrain=0.2, align=0.9, perturb=-1.0))
    variants = study.info["config"]["variants"]
    rows = study.rows.assign(study="dials." + study.rows.model.where(study.rows.model != "", "sequential"))
    parts = []
    for variant in variants:  # as a suite writes it: facts in every variant, runs in their own
        facts = rows[
            (rows.run == "") & (rows.split.str.startswith(f"{variant}: ") | rows.split.str.endswith("-heldout"))
        ]
        parts.append(facts.assign(study=f"dials.{variant}", split=facts.split.str.removeprefix(f"{variant}: ")))
        own = rows[rows.model == variant]
        parts.append(own.assign(study=f"dials.{variant}", run=own.run.str.removeprefix(f"{variant}/")))
    studies = {f"dials.{variant}": dict(config=config, runs=[]) for variant, config in variants.items()}
    path = planted.write(tmp_path / "measures.parquet", section.dials.table.stack(parts), {"studies": studies})
    page = report.render(path, tmp_path / "report").read_text()
    assert '<a href="#dials">' in page
    part = page[page.index('<section id="dials">') :]
    text = re.sub(r"<[^>]+>", " ", part[: part.index("</section>")])
    assert text.count("balanced") - text.count("unbalanced") >= len(planted_dials.KS)
    assert text.count("unbalanced") == len(planted_dials.KS)
    assert "one after the other" in text and "misses it by 0.0333" in text  # 0.4 nats in 12 tokens
    for name in ("dials", "dials_slopes", "dials_rates", "dials_per_seed"):
        assert (tmp_path / "report" / "tables" / f"{name}.csv").exists()


def test_a_study_without_dials_has_no_section(rendered):
    rows, metadata = planted.table()
    assert section.section(section.frames(Findings(Study("planted", rows, metadata["studies"]["planted"])))) == {}
    assert 'id="dials"' not in rendered.read_text()
