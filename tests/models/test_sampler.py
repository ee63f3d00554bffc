"""Does the model write what its probabilities say, whatever the prompts, the batch and the mesh?"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from elastic_jax.errors import UserError
from elastic_jax.models import sampler
from elastic_jax.models.adapted import Adapted
from elastic_jax.models.decoding import Rows, generate
from elastic_jax.models.filters import Choice
from elastic_jax.models.lora import LoraConfig
from elastic_jax.models.sampler import bucket, sample
from elastic_jax.models.transformer import stack

KEY = jax.random.key(5)
LENGTHS = (4, 1, 6, 3, 6, 2, 5)
SWITCHES = {
    **{name: dict(family=name) for name in (*tiny.FAMILIES, *tiny.RELATIVES)},
    "short windows between": dict(family="gemma", window=2, global_every=2),
}
# What differs in reading a cache is in these and in the tests below; compiling the others takes longer than a test run has.
FEW = ("short windows between", "gpt2")
MARKS = {name: () if name in FEW else pytest.mark.slow for name in SWITCHES}


def unequal(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, tiny.VOCAB, n).tolist() for n in lengths]


def write(model, params, prompts, where=None, key=KEY, **settings):
    settings = dict(length=6, eos=(), never=(0,)) | settings
    return sample(model, params, prompts, key, where or tiny.mesh(), **settings)


def written(*args, **settings):
    return write(*args, **settings).tokens


def assert_greedy(model, params, prompts, tokens, never=(0,)):
    """Every token is the likeliest after everything before it, by one pass over the whole row."""
    wide = max(map(len, prompts)) + len(tokens[0])
    for prompt, new in zip(prompts, tokens, strict=True):
        row = np.concatenate([prompt, new]).astype(np.int32)
        padded = np.pad(row, (0, wide - len(row)))  # one shape for all; nobody looks ahead
        logits = np.array(tiny.forward(model, params, padded[None])[0, len(prompt) - 1 : len(row) - 1])
        logits[:, list(never)] = -np.inf
        np.testing.assert_array_equal(new, logits.argmax(-1))


@pytest.mark.parametrize(
    "fields", [pytest.param(SWITCHES[name], id=name, marks=marks) for name, marks in MARKS.items()]
)
def test_greedy_is_the_full_forward_pass_token_by_token(fields):
    model = tiny.decoder(**fields)
    params, prompts = tiny.random_params(model), unequal()
    got = written(model, params, prompts, temperature=0.0)
    assert_greedy(model, params, prompts, got)
    assert len(np.unique(got)) > 4


def test_stacked_layers_write_the_same():
    model = tiny.decoder()
    params = tiny.random_params(model)
    scanned = dataclasses.replace(model, config=dataclasses.replace(model.config, layout="scan"))
    got = written(scanned, jax.tree.map(np.asarray, stack(params)), unequal())
    np.testing.assert_array_equal(got, written(model, params, unequal()))


def test_bfloat16_writes_what_is_likeliest_to_its_rounding():
    model = tiny.decoder(layers=1, dtype="bfloat16")
    params, prompts = tiny.random_params(model), unequal()
    for prompt, new in zip(prompts, written(model, params, prompts, temperature=0.0, never=()), strict=True):
        row = np.pad(np.concatenate([prompt, new]), (0, tiny.LENGTH - len(prompt) - 6))[None]
        logits = np.asarray(tiny.forward(model, params, row)[0, len(prompt) - 1 : len(prompt) + 5], np.float32)
        assert (logits.max(-1) - logits[np.arange(6), new] <= 2**-5 * np.abs(logits).max()).all()


def test_adapters_write_what_they_write_merged():
    adapted = Adapted(tiny.decoder().config, LoraConfig(rank=2))
    model, params = adapted.decoder, tiny.random_params(adapted.decoder)
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32), adapted.shapes)
    prompts, rules = jnp.asarray(tiny.tokens(7, 4)), dict(length=6, choice=Choice(temperature=0.0), eos=())
    got = generate(model, adapted.joined(params, adapters), prompts, KEY, **rules)
    np.testing.assert_array_equal(got, generate(model, adapted.merge(params, adapters), prompts, KEY, **rules))
    assert (got != generate(model, params, prompts, KEY, **rules)).any()


def test_a_cache_that_grows_keeps_what_it_holds():
    model = tiny.decoder("gemma", seq_len=100, window=40, global_every=2)
    params, prompts = tiny.random_params(model), unequal((3, 14, 11))
    got = written(model, params, prompts, temperature=0.0, length=70)
    assert_greedy(model, params, prompts, got)  # rooms of 64 and 96 columns


def test_padding_left_or_right_or_none_is_the_same():
    model = tiny.decoder()
    params, prompts = tiny.random_params(model), unequal()
    expected = written(model, params, prompts)
    wide = max(LENGTHS) + 2
    for left in (True, False):
        tokens, mask = np.full((len(prompts), wide), 7, np.int32), np.zeros((len(prompts), wide), bool)
        for row, prompt in enumerate(prompts):
            place = slice(wide - len(prompt), None) if left else slice(len(prompt))
            tokens[row, place], mask[row, place] = prompt, True
        got = written(model, params, tokens, mask=mask)
        np.testing.assert_array_equal(got, expected)


def test_batches_change_nothing():
    model = tiny.decoder()
    params, prompts = tiny.random_params(model), unequal()
    together = written(model, params, prompts)
    np.testing.assert_array_equal(written(model, params, prompts, batch_size=1), together)


@pytest.mark.parametrize("axes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_every_mesh_writes_the_same(axes):
    model = tiny.decoder()
    params, prompts = tiny.random_params(model), unequal()
    placed = jax.device_put(params, model.shardings(tiny.mesh(*axes)))
    for temperature in (0.0, 1.0) if axes[2] > 1 else (1.0,):
        got = written(model, placed, prompts, tiny.mesh(*axes), temperature=temperature)
        np.testing.assert_array_equal(got, written(model, params, prompts, temperature=temperature))


def test_the_cache_lies_on_the_mesh():
    model, mesh = tiny.decoder(), tiny.mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        prompts = jnp.ones((4, 16), jnp.int32)
        first = jnp.zeros(4, jnp.int32)
        rows = sampler._start(model, tiny.random_params(model), prompts, first, first, first, KEY, 64)
    for layer in rows.caches.layers.values():
        assert {shard.data.shape for shard in layer.values.addressable_shards} == {(1, 1, 64, 8)}
        assert {shard.data.shape for shard in layer.keys.addressable_shards} == {(1, 1, 8, 64)}


def test_a_hundred_lengths_make_a_handful_of_programs():
    model = tiny.decoder(layers=1, seq_len=160, mlp=24)  # a model of this test alone: nothing is compiled for it yet
    params, prompts = tiny.random_params(model), unequal(range(1, 101))
    programs = (sampler._start, sampler._extend)
    before = [program._cache_size() for program in programs]
    got = write(model, params, prompts, temperature=0.0, length=9, batch_size=50)
    counts = [program._cache_size() - n for program, n in zip(programs, before, strict=True)]
    assert counts == [2, 2]  # prompts of up to 65 and 129 tokens; room for 96 and 192
    write(model, params, unequal(range(100, 0, -1), seed=1), temperature=0.0, length=9, eos=(7, 9), batch_size=50)
    assert [program._cache_size() - n for program, n in zip(programs, before, strict=True)] == counts
    assert_greedy(model, params, prompts[::9], got.tokens[::9])


def test_sizes_of_programs():
    sizes = sorted({bucket(n) for n in range(1, 300)})
    assert sizes == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    assert all(n <= bucket(n) < 1.5 * n + 1 for n in range(1, 300))
    assert bucket(5, least=16) == bucket(16, least=16) == 16 and bucket(17, least=16) == 24


def test_no_token_costs_a_copy_of_the_cache():
    model = tiny.decoder(seq_len=256)
    first = jnp.zeros(4, jnp.int32)
    rows = Rows(model.empty_caches(4, 256), first, first[0], jax.random.split(KEY, 4))
    with jax.set_mesh(tiny.mesh()):
        params = tiny.random_params(model)
        steps, eos = jnp.asarray(8), jnp.full(4, -1)
        compiled = sampler._extend.lower(model, params, rows, first > 0, steps, Choice(), eos, steps).compile()
    size = rows.caches.layers["0"].keys.size
    whole = re.findall(r"= f32\[([\d,]+)\]\S* (copy|transpose)\(", compiled.as_text())
    assert not [dims for dims, _ in whole if np.prod([int(d) for d in dims.split(",")]) == size]
    # All caches are taken over from the arguments: nothing of their size is made.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * size


def test_eos_ends_a_text_and_pads_the_rest():
    model = tiny.decoder()
    params, prompts = tiny.random_params(model), tiny.tokens(7, 4)
    free = written(model, params, prompts, temperature=0.0)
    eos = (int(free[0, 2]), int(free[1, 3]))
    got = write(model, params, prompts, temperature=0.0, eos=eos)
    for row, expected, count, why in zip(got.tokens, free, got.lengths, got.ended, strict=True):
        (ends,) = np.nonzero(np.isin(expected, eos))
        assert why == ("eos" if len(ends) else "length")
        assert count == (ends[0] + 1 if len(ends) else 6)
        np.testing.assert_array_equal(row, np.where(np.arange(6) < count, expected, 0))
    assert got.lengths[0] == 3 and got.lengths[1] <= 4 and got.texts is None
    # Padding may be a token that is written.
    again = write(model, params, prompts, temperature=0.0, eos=eos, pad=eos[0])
    np.testing.assert_array_equal(again.lengths, got.lengths)
    np.testing.assert_array_equal(again.tokens, np.where(np.arange(6)[None] < got.lengths[:, None], got.tokens, eos[0]))
    assert again.ended == got.ended


def probabilities(model, params, prompt, temperature):
    logits = np.array(tiny.forward(model, params, prompt[None])[0, -1], np.float64) / temperature
    logits[0] = -np.inf
    p = np.exp(logits - logits.max())
    return p / p.sum()


def smallest_set(p, top_p):
    order = np.argsort(-p)
    count = 1 + int(np.sum(np.cumsum(p[order]) < top_p))
    kept = np.zeros_like(p)
    kept[order[:count]] = p[order[:count]]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [pytest.param(0.6, 0, 1.0, marks=pytest.mark.slow), (1.5, 6, 0.9)]
)
def test_samples_have_the_frequencies_of_the_model(temperature, top_k, top_p):
    model = tiny.decoder()
    params, prompt, n = tiny.random_params(model), tiny.tokens(1, 4)[0], 8192
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    got = written(model, params, np.tile(prompt, (n, 1)), length=1, batch_size=n, **settings)[:, 0]
    expected = probabilities(model, params, prompt, temperature)
    if top_k:
        expected = np.where(expected >= np.sort(expected)[-top_k], expected, 0)
        expected /= expected.sum()
    if top_p < 1:
        expected = smallest_set(expected, top_p)
    counts = np.bincount(got, minlength=tiny.VOCAB)
    np.testing.assert_array_equal(counts[expected == 0], 0)
    support = expected > 0
    assert 2 < support.sum() < (tiny.VOCAB if top_p == 1 else 20)
    # A right sampler fails this once in a million keys, and this key is fixed.
    assert stats.chisquare(counts[support], n * expected[support]).pvalue > 1e-6


def test_tokens_of_a_row_draw_anew():
    """Two tokens in a row, from a model whose probabilities do not depend on what came before: all pairs as likely as they should be."""
    model = tiny.decoder(layers=1)
    params = jax.tree.map(np.zeros_like, tiny.random_params(model))
    got = written(model, params, np.full((4096, 1), 3), length=2, batch_size=4096, never=tuple(range(4, tiny.VOCAB)))
    pairs = np.bincount(got[:, 0] * 4 + got[:, 1], minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-6


def test_the_same_key_writes_the_same():
    model = tiny.decoder()
    params, prompts = tiny.random_params(model), tiny.tokens(7, 4)
    first, again, other = (written(model, params, prompts, key=k) for k in (KEY, KEY, jax.random.key(6)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    repeated = written(model, params, np.tile(prompts[:1], (7, 1)))
    assert len(np.unique(repeated, axis=0)) > 1  # rows draw for themselves


def test_generate_inside_device_code_writes_what_sample_does():
    model = tiny.decoder()
    params, prompts = tiny.random_params(model), tiny.tokens(7, 4)
    rules = dict(choice=Choice(never=(0,)), eos=(5, 6), pad=0)
    expected = written(model, params, prompts, eos=(5, 6))
    padded = jnp.asarray(np.concatenate([np.full((7, 2), 9), prompts], axis=1))
    got = generate(model, params, padded, KEY, length=6, **rules, first_b=jnp.full(7, 2))
    np.testing.assert_array_equal(got, expected)


def test_progress_is_told_while_it_writes():
    model = tiny.decoder()
    params, prompts, told = tiny.random_params(model), unequal(LENGTHS + LENGTHS), []
    got = write(model, params, prompts, length=40, context=48, batch_size=7, progress=told.append)
    assert [(now.done, now.rows, now.tokens) for now in told] == [
        (0, 14, 224),
        (7, 14, 280),
        (7, 14, 504),
        (14, 14, 560),
    ]
    assert told[0].tokens_per_second > 0 and got.tokens_per_second == pytest.approx(560 / got.seconds)


def test_the_log_has_a_line_now_and_then(caplog):
    clock = iter([0.0, 3.0, 11.0, 11.0, 12.0])
    show = sampler.LogProgress(10.0, clock=lambda: next(clock))
    with caplog.at_level("INFO"):
        for _ in range(3):
            show(sampler.Progress(done=2, rows=5, tokens=300, seconds=3.0))
    assert [record.message for record in caplog.records] == ["sampling: 2 of 5 rows done, 300 tokens, 100 tokens/s"]


PROMPTS = [[2, 3], [4]]


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (PROMPTS, dict(length=12), "2 tokens of prompt 0 and 12 new ones exceed data.seq_len=12"),
        (PROMPTS, dict(length=4, context=4), "exceed context=4"),
        (PROMPTS, dict(length=0), "length=0"),
        (PROMPTS, dict(temperature=-1.0), "temperature=-1.0: expected 0"),
        (PROMPTS, dict(top_p=0.0), "top_p=0.0: expected a probability"),
        (PROMPTS, dict(top_k=41), "top_k=41: expected from 1 to the 40 tokens"),
        (PROMPTS, dict(top_k=-1), "top_k=-1"),
        (PROMPTS, dict(top_k=2.5), "top_k=2.5: expected a whole number"),
        (PROMPTS, dict(temperature=0.0, top_k=4), "top_k=4 has no effect with .*temperature=0"),
        (PROMPTS, dict(temperature=0.0, top_p=0.5), "top_p=0.5 has no effect"),
        (PROMPTS, dict(never=(40,)), "40.*vocabulary has 40 tokens"),
        (PROMPTS, dict(never=tuple(range(40))), "none is left"),
        (PROMPTS, dict(eos=(99,)), "99.*vocabulary has 40 tokens"),
        (PROMPTS, dict(eos=(3,), never=(3,)), "3.*never"),
        (PROMPTS, dict(stop=("x",)), "needs the tokenizer"),
        (PROMPTS, dict(stop="x"), "expected a sequence"),
        (PROMPTS, dict(batch_size=-1), "batch_size=-1"),
        ([[2], []], {}, "Prompt 1 is empty"),
        ([], {}, "no prompts"),
        ([[2, 40]], {}, "Prompt 0 holds .*0 to 39"),
        ([[2, 3.5]], {}, "Prompt 0 holds"),
        (np.ones((2, 3)), {}, "Prompt 0 holds"),
        (np.ones((2, 3), int), dict(mask=np.ones((3, 2))), "mask has shape"),
        (np.ones((2, 3), int), dict(mask=np.array([[1, 1, 0], [1, 0, 1]])), "prompt 1: padding between"),
        (np.ones((2, 3), int), dict(mask=np.array([[1, 1, 0], [0, 0, 0]])), "Prompt 1 is empty"),
    ],
)
def test_bad_input_is_refused(prompts, settings, message):
    model = tiny.decoder()
    with pytest.raises(UserError, match=message):
        write(model, {}, prompts, **settings)


def test_longer_than_trained_only_where_positions_have_no_end():
    model = tiny.decoder()
    params, prompts = tiny.random_params(model), unequal((4,))
    got = written(model, params, prompts, length=20, context=24, temperature=0.0)
    assert_greedy(model, params, prompts, got)
    learned = tiny.decoder(positions="learned", max_positions=16)
    with pytest.raises(UserError, match="16 learned positions"):
        write(learned, {}, prompts, length=20, context=24)
