"""Does a study with further scorers measure with them, and is a judge that cannot work found before the first update?"""

import sys
from pathlib import Path

import jax
import pandas as pd
import pytest
import small_studies

sys.path.insert(0, str(Path(__file__).parents[1] / "measures"))
import classifiers

from elastic_jax.errors import UserError
from elastic_jax.measures.scorers.encoder import RobertaScorer
from elastic_jax.study import Study

PLUGIN = """
seen = []

def words(prompts, answers):
    seen.extend(zip(prompts, answers))
    return [len(answer.split()) for answer in answers]

words.unit, words.low = "words", 0.0
"""
FEW = {"align.volumes": (16,), "perturb.volumes": (8,), "seeds": (0,)}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "counting_words.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    import counting_words

    return counting_words


def study(workdir, *scorers, **overrides):
    return Study(small_studies.load("", {**FEW, "measures.scorers": scorers, **overrides}), workdir)


def test_each_gives_a_measure_and_no_text_is_judged_twice(tmp_path, plugin):
    scorers = ("refusal", "perplexity", "plugin:counting_words:words")
    made = study(tmp_path / "w", *scorers)
    plugin.seen.clear()
    report = made.run()
    rows = pd.read_parquet(tmp_path / "w" / "measures.parquet")
    units = {"score_refusal": "fraction", "score_perplexity": "nats/token", "score_words": "words"}
    for measure, unit in units.items():
        part = rows[rows.measure == measure]
        assert set(part.unit) == {unit} and set(part.split) == {"samples"} and part.value.notna().all()
        assert part.stderr.notna().all() and (part.n >= 2).all()
        score = rows[(rows.measure == "score") & rows.run.isin(set(part.run))]
        assert len(part) == len(score)  # wherever the score was measured
        # Before there is a base model, there is nothing to be unexpected to.
        assert ("pretrain" in set(part.stage)) == (measure != "score_perplexity")
    assert len(plugin.seen) == len(set(plugin.seen)) > rows[rows.measure == "score_words"].n.max()
    page = report.read_text("utf-8")
    assert "Further scorers" in page and all(one.scorer.digest[:16] in page for one in made.protocol.further)

    before = len(plugin.seen)
    assert study(tmp_path / "w", *scorers).run() == report
    assert len(plugin.seen) == before + 1  # the text on which every plug-in is tried


def test_who_judges_is_part_of_the_protocol(tmp_path, plugin):
    digests = {
        study(tmp_path / "w", *scorers).protocol.digest
        for scorers in ((), ("refusal",), ("refusal,where=anywhere",), ("refusal,name=no",), ("refusal", "perplexity"))
    }
    assert len(digests) == 5
    plain = small_studies.load("", FEW)
    del plain.measures.scorers  # as in a config that is older than the field
    older = {**plain.measures.to_dict()}
    made = study(tmp_path / "w")
    assert type(made.protocol)(made.model, made.data, made.mesh, older).digest == made.protocol.digest


def test_a_judge_that_is_not_there_is_missed_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match=r"measures\.scorers='roberta:.*no folder"):
        study(tmp_path / "w", f"roberta:{tmp_path / 'nothing'}")
    assert not (tmp_path / "w").exists()


def test_a_model_reads_a_text_once_for_all_points_and_studies(tmp_path, monkeypatch):
    classifiers.plain_roberta(tmp_path / "judge")
    read = []
    logits = RobertaScorer.logits
    monkeypatch.setattr(RobertaScorer, "logits", lambda self, texts: read.append(texts) or logits(self, texts))
    measured = []
    for _ in range(2):  # the second is another process, as far as the judge can tell
        made = study(tmp_path / "w", f"roberta:{tmp_path / 'judge'}")
        params = made.model.init(jax.random.key(0), made.mesh)
        for seed in (0, 0):
            rows = made.protocol.measure(params, params, seed)
            measured.append(next(row["value"] for row in rows if row["measure"] == "score_roberta"))
    assert len(set(measured)) == 1 and 0 < measured[0] < 1
    [texts] = read
    assert len(texts) == len(set(texts)) <= made.config.measures.samples
