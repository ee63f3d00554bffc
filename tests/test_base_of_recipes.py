"""Do the paper's recipes begin with one base, so that a common working directory trains and measures it once?"""

from pathlib import Path

import pytest

from elastic_jax import config as config_lib
from elastic_jax import recipes

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# recipe -> the variant whose base is that of the others
SENTIMENT = {
    "quickstart": "",
    "rebound": "",
    "kl_rebound": "",
    "batch_semantics": "drop",
    "model_size": "50k",
    "pretrain_tokens": "1310k",
}


def base_of(spec: str, variant: str = "") -> dict:
    """What the base and how it is measured depend on; the recorded points do not count, nor does the eps of the report."""
    plain = config_lib.plain(config_lib.variants(config_lib.load(f"{CONFIGS}/{spec}"))[variant])
    measures = {name: value for name, value in plain["measures"].items() if name not in ("per_octave", "kl_eps")}
    return dict({name: plain[name] for name in ("seeds", "model", "pretrain", "data")}, measures=measures)


@pytest.mark.parametrize("task", ["sentiment", "refusal"])
def test_recipes_of_a_task_share_their_base_and_its_measures(task):
    bases = {name: base_of(f"{name}.py:task={task}", variant) for name, variant in SENTIMENT.items()}
    assert all(base == bases["rebound"] for base in bases.values())


def test_resistance_shares_the_base_but_not_how_it_is_measured():
    ours, others = base_of("resistance.py", "exact"), base_of("rebound.py:task=refusal")
    for data in (ours["data"], others["data"]):
        for role in ("align", "perturb", "prompts"):  # more queries, and their own slices
            data.pop(role)
    assert ours == others


def test_the_tiny_variants_share_theirs():
    variants = {**SENTIMENT, "pretrain_tokens": "0051k"}
    bases = {name: base_of(f"{name}.py:tiny", variant) for name, variant in variants.items() if name != "quickstart"}
    assert all(base == bases["rebound"] for base in bases.values())


def test_every_text_of_pretraining_is_read_once():
    c = recipes.universe("x")
    updates, rest = divmod(c.pretrain.tokens, c.pretrain.batch_size * c.data.seq_len)
    assert (updates, rest) == (recipes.UPDATES, 0) and updates * c.pretrain.batch_size <= c.data.pretrain.rows


def test_a_study_is_named_after_what_is_unusual():
    name = lambda *args, **kwargs: recipes.universe(*args, **kwargs).name  # noqa: E731
    assert name("a") == "a" and name("a", "refusal_reversed", tiny=True) == "a_refusal_reversed_tiny"
    assert name("a", "sentiment_reversed") == "a_reversed"
    assert name("a", "refusal", usual="refusal") == "a" and name("a", usual="refusal") == "a_sentiment"
