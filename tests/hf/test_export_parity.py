"""Does transformers open what was exported, compute the same logits from the same numbers, and cut texts alike?"""

import exports
import numpy as np
import pytest
import tiny

import elastic_jax as ej

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.parity,
    # torch and transformers warn about their own futures.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()


def logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens, np.int64)), use_cache=False).logits.numpy()


def assert_same_tensors(model, folder):
    """Bit for bit what the files hold, with nothing newly made."""
    from safetensors import safe_open

    there, held = {}, model.state_dict()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names = file.keys()
            there |= {name: file.get_tensor(name) for name in names}
    assert set(held) - set(there) <= {"lm_head.weight", "embed_out.weight"}
    for name, values in there.items():
        np.testing.assert_array_equal(held[name].numpy(), values, err_msg=name)


@pytest.mark.parametrize("name", exports.MODELS)
def test_models_of_our_own(tmp_path, name):
    made, params = exports.model(name)
    out = exports.write(tmp_path / "out", made, params, shard_gb=3e-6)
    model = opened(out)
    assert type(model).__name__ == exports.MODELS[name][1]
    assert_same_tensors(model, out)
    tokens = tiny.tokens(3, 16, vocab=40)  # three times the window of Mistral
    found = logits(model, tokens)
    wanted = np.asarray(tiny.forward(made, params, tokens))[..., :40]
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["own", "based"])
def test_a_study_checkpoint_with_adapters(tmp_path, kind):
    if kind == "own":
        study, run = exports.own(tmp_path / "w"), "align-s0"
    else:
        study, run = exports.based(tmp_path / "w", tmp_path / "base"), "align-s0-base"
    out = ej.export(tmp_path / "w", run, tmp_path / "out")
    model, tokenizer = opened(out), transformers.AutoTokenizer.from_pretrained(out)
    assert_same_tensors(model, out)
    ours, length = study.data.tokenizer, study.model.config.seq_len
    rng = np.random.default_rng(0)
    texts = ours.decode([rng.integers(3, ours.vocab_size, 9).tolist() for _ in range(20)])
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == ours.encode(texts)
    assert tokenizer.batch_decode(ours.encode(texts)) == texts
    assert tokenizer.eos_token_id == ours.eos_id

    tokens = rng.integers(3, ours.vocab_size, (4, length))
    wanted = np.asarray(study.model(exports.params_of(study, run), tokens))
    rows = study.model.config.used_vocab or study.model.config.vocab_size
    np.testing.assert_allclose(logits(model, tokens), wanted[..., :rows], rtol=0, atol=1e-4)
    base = np.asarray(
        study.model(exports.params_of(study, run.replace("align", "base" if kind == "based" else "pretrain")), tokens)
    )
    assert np.abs(base - wanted).max() > 1e-3  # the adapters are in it

    written = model.generate(torch.tensor(tokens[:1, :4]), max_new_tokens=4, do_sample=False)
    assert written.shape[1] > 4 and not set(written[0, 4:].tolist()) & set(ours.never)
