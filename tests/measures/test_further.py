"""Does `measures.scorers` give the judges that were asked for, and say plainly what cannot work?"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from etils import epath

from elastic_jax.errors import UserError
from elastic_jax.measures.scorers import Scorer, further, spec
from elastic_jax.measures.scorers.judged import Cached

PLUGINS = '''
import numpy as np

calls = []

def shouting(prompts, answers):
    """Share of capital letters."""
    calls.append(len(answers))
    return [sum(c.isupper() for c in a) / max(len(a), 1) for a in answers]

shouting.unit, shouting.low, shouting.high = "fraction", 0.0, 1.0

class Words:
    name, digest, unit, low, high = "words", "words-1", "words", 0.0, None
    def score(self, prompts, answers):
        return np.array([len(a.split()) for a in answers], float)

instance = Words()
number = 3

class Nameless:
    def score(self, prompts, answers):
        return np.zeros(len(answers))

class Needy:
    def __init__(self, key): ...

def wrong_shape(prompts, answers):
    return 0.5

def failing(prompts, answers):
    raise RuntimeError("no key for the service")

def high(prompts, answers):
    return np.full(len(answers), 7.0)

high.high = 1.0

def typo(prompts, answers):
    return ["a lot"] * len(answers)
'''


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    (tmp_path / "my_scorers.py").write_text(PLUGINS)
    (tmp_path / "broken_scorers.py").write_text("import nothing_like_it\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_scorers", "broken_scorers"):
        sys.modules.pop(name, None)


def opened(*texts, cache=None):
    return further.open_all(texts, tiny.mesh(), batch_size=4, cache=cache)


def test_specs_are_read():
    made = spec.parse("roberta:org/model-name,label=VERY POSITIVE,name=mood,length=128")
    assert (made.scheme, made.place, made.measure) == ("roberta", "org/model-name", "score_mood")
    assert made.options == dict(label="VERY POSITIVE", length="128") and made.number("length", 0) == 128
    assert spec.parse("cost:/a folder, with a comma").place == "/a folder, with a comma"
    assert spec.parse("perplexity").place == spec.BASE == spec.parse("perplexity:base").place
    assert spec.parse("plugin:a.b:c").name == "c" and spec.parse_all(()) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["refusl"], "no scorer 'refusl'. Closest: refusal"),
        (["roberta"], "Write roberta:PATH_OR_ID"),
        (["refusal:here"], "takes no place"),
        (["roberta:x,lable=P"], "no option 'lable'. Closest: label"),
        (["roberta:x,dtype=half"], "dtype=half: expected float32 or bfloat16"),
        (["roberta:x,batch=0"], "batch=0: expected a positive whole number"),
        (["roberta:x,label="], "label is empty"),
        (["refusal,where=start,where=anywhere"], "given twice"),
        (["refusal", "refusal,where=anywhere"], "Name one of them"),
        (["refusal,name=a b"], "expected letters"),
        (["plugin:module"], "expected plugin:module:attribute"),
        (["perplexity,length=3"], "the base model is the study's own"),
        ([""], "expected a string such as"),
        ("refusal", "expected several strings"),
        (["refusal,perplexity"], "several scorers are written as ('refusal', 'perplexity')"),
    ],
)
def test_a_spec_that_cannot_work(texts, message):
    with pytest.raises(UserError, match=r"^measures\.scorers") as error:
        spec.parse_all(texts)
    assert message in str(error.value)


def test_plugins_of_every_kind(plugins):
    one, two, three = opened("plugin:my_scorers:shouting", "plugin:my_scorers:Words", "plugin:my_scorers:instance")
    assert [f.measure for f in (one, two, three)] == ["score_shouting", "score_Words", "score_instance"]
    assert all(isinstance(f.scorer, Scorer) and not f.of_base for f in (one, two, three))
    np.testing.assert_allclose(one.scorer.score(["", ""], ["AbCd", ""]), [0.5, 0.0])
    assert (one.scorer.unit, one.scorer.low, one.scorer.high) == ("fraction", 0.0, 1.0)
    np.testing.assert_array_equal(two.scorer.score([""], ["two words"]), [2.0])


def test_another_version_of_a_plugin_is_another_judge(plugins):
    [before] = opened("plugin:my_scorers:shouting")
    del sys.modules["my_scorers"]
    (plugins / "my_scorers.py").write_text(PLUGINS.replace("isupper", "islower"))
    [after] = opened("plugin:my_scorers:shouting")
    assert before.scorer.digest != after.scorer.digest


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no_such_module:x", "there is no module no_such_module"),
        ("broken_scorers:x", "importing broken_scorers failed: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("my_scorers:shoutin", "has no 'shoutin'. Closest: shouting"),
        ("my_scorers:number", "number is int without name, digest, unit, low, high, score"),
        ("my_scorers:Nameless", "is Nameless without name, digest, unit, low, high"),
        ("my_scorers:Needy", "A class is called without arguments"),
        ("my_scorers:wrong_shape", "gave scores of shape () for 1 texts"),
        ("my_scorers:failing", "RuntimeError: no key for the service"),
        ("my_scorers:high", "gave 7, beyond its bounds None and 1.0"),
        ("my_scorers:typo", "could not convert string to float"),
    ],
)
def test_a_plugin_that_cannot_work_fails_before_anything_else(plugins, place, message):
    with pytest.raises(UserError, match=r"^measures\.scorers='plugin:") as error:
        opened(f"plugin:{place}")
    assert message in str(error.value)


def test_what_plugins_say_is_kept(plugins, tmp_path):
    import importlib

    cache = epath.Path(tmp_path / "judged")
    [one] = opened("plugin:my_scorers:shouting", cache=cache)
    calls = importlib.import_module("my_scorers").calls
    before = len(calls)
    for _ in range(2):
        assert isinstance(one.scorer, Cached) and isinstance(one.scorer, Scorer)
        np.testing.assert_allclose(one.scorer.score(["", ""], ["AbCd", "AbCd"]), [0.5, 0.5])
    assert calls[before:] == [1]


def test_a_place_that_is_not_there(tmp_path):
    pytest.importorskip("elastic_jax.hf.source")
    with pytest.raises(UserError):
        opened(f"roberta:{tmp_path / 'nothing'}")


def test_the_example_of_the_documentation_works(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "scorers.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "documented_scorers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    [one] = opened("plugin:documented_scorers:shouting")
    np.testing.assert_allclose(one.scorer.score(["", ""], ["NO", "no"]), [1.0, 0.0])
    for name, scheme in spec.SCHEMES.items():  # every scorer and option has its place on the page
        assert f"`{name}" in page and all(f"| `{option}` |" in page for option in scheme.options)
