"""Do we write what transformers writes?"""

import json

import jax
import numpy as np
import pytest
import tiny

from elastic_jax.hf.source import open_source
from elastic_jax.models.sampler import sample
from elastic_jax.models.transformer import Decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

VOCAB, NEW = 100, 40
SHAPE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
CONFIGS = {
    "llama": dict(SHAPE, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False),
    # A window shorter than the rows, in every other layer.
    "gemma2": dict(SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=9, max_position_embeddings=128),
    "gpt2": dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory):
    """A random model as transformers has it, and as we import it."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(request.param, **CONFIGS[request.param])
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.eval().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == request.param
    source = open_source(folder)
    model = Decoder(source.model_config(VOCAB, 64))
    return theirs, model, source.load_params(model, tiny.mesh())


def test_greedy_is_that_of_generate(both):
    theirs, model, params = both
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, VOCAB, n).tolist() for n in (5, 14, 1, 20, 9)]
    wide = max(map(len, prompts))
    ids = torch.tensor([[0] * (wide - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (wide - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def generate(eos):
        theirs.generation_config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=NEW, pad_token_id=0, eos_token_id=eos or None
        )
        with torch.inference_mode():
            return theirs.generate(ids, attention_mask=mask)[:, wide:].numpy()

    def write(eos):
        return sample(model, params, prompts, jax.random.key(0), tiny.mesh(), length=NEW, temperature=0.0, eos=eos)

    free = generate([])
    np.testing.assert_array_equal(write([]).tokens, free)
    assert len(np.unique(free)) > 10
    # Two tokens that it writes end the rows that write them.
    ends = sorted({int(free[1, 10]), int(free[3, 15])})
    expected, got = generate(ends), write(ends)
    np.testing.assert_array_equal(got.tokens[:, : expected.shape[1]], expected)
    assert (got.tokens[:, expected.shape[1] :] == 0).all()
    assert got.ended[1] == got.ended[3] == "eos" and got.lengths[1] <= 11 and got.lengths[3] <= 16
