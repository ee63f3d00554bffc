"""Do the numbers of a checkpoint arrive in their places, on any mesh, and is everything that is wrong said at once?"""

import dataclasses

import hf_checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_checkpoints import BFLOAT16, CONFIGS
from safetensors.numpy import save_file

from elastic_jax.errors import UserError
from elastic_jax.hf import load
from elastic_jax.hf.source import open_source
from elastic_jax.hf.tensors import SINGLE
from elastic_jax.models.transformer import Decoder, unstack
from elastic_jax.parallel.mesh import make_mesh

LAYOUTS = pytest.mark.parametrize("layout", ["unroll", "scan"])


@pytest.fixture
def one(cpu_devices):
    return make_mesh(devices=cpu_devices[:1])


@pytest.fixture
def eight(cpu_devices):
    return make_mesh(data=2, fsdp=2, tensor=2, devices=cpu_devices)


def imported(folder, mesh, **execution):
    source = open_source(folder)
    model = Decoder(source.model_config(0, 16, **execution))
    return model, source.load_params(model, mesh)


def unstacked(model, params):
    plain = unstack(params, model.config.layers) if model.config.layout == "scan" else params
    return {path: np.asarray(leaf) for path, leaf in hf_checkpoints.leaves(plain)}


def expected(hf_config, numbers, model, dtype=np.float32):
    """The parameters, put together from whole tensors; rows of no tensor are zero."""
    family, c = hf_checkpoints.model(hf_config)
    unrolled = Decoder(dataclasses.replace(model.config, layout="unroll"))
    params = {path: np.zeros(leaf.shape, dtype) for path, leaf in hf_checkpoints.leaves(unrolled.shapes)}
    for piece in family.pieces(c):
        params[piece.path][piece.region] = piece.to_ours(numbers[piece.name]).astype(dtype)
    return params


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path].dtype == value.dtype and found[path].shape == value.shape
        assert found[path].tobytes() == value.tobytes(), path


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_on_eight_devices(name, eight, tmp_path):
    hf_config = hf_checkpoints.config(name)
    numbers = hf_checkpoints.tensors(hf_config)
    model, params = imported(hf_checkpoints.write(tmp_path, hf_config, numbers, files=3), eight)
    assert model.config.vocab_size == 128 and model.config.used_vocab == hf_checkpoints.VOCAB
    assert_same(unstacked(model, params), expected(hf_config, numbers, model))
    wanted = dict(hf_checkpoints.leaves(model.shardings(eight)))
    assert all(leaf.sharding == wanted[path] for path, leaf in hf_checkpoints.leaves(params))


@LAYOUTS
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("to", ["float32", "bfloat16"])
@pytest.mark.parametrize("of", [np.float32, np.float16, BFLOAT16], ids=["float32", "float16", "bfloat16"])
def test_dtypes_and_layouts(of, to, name, layout, one, tmp_path):
    hf_config = hf_checkpoints.config(name)
    numbers = hf_checkpoints.tensors(hf_config, of)
    folder = hf_checkpoints.write(tmp_path, hf_config, numbers)
    model, params = imported(folder, one, layout=layout, param_dtype=to)
    assert_same(unstacked(model, params), expected(hf_config, numbers, model, jnp.dtype(to)))


def test_layers_are_stacked_in_place_on_devices_of_another_memory(one, eight, tmp_path, monkeypatch):
    """What accelerators do with `layout="scan"`: the host holds one layer at a time."""
    hf_config = hf_checkpoints.config("qwen2")
    numbers = hf_checkpoints.tensors(hf_config, BFLOAT16)
    folder = hf_checkpoints.write(tmp_path, hf_config, numbers)
    monkeypatch.setattr(load, "_on_host", lambda mesh: False)
    shapes, zeros = [], load._zeros
    monkeypatch.setattr(load, "_zeros", lambda shape, dtype: shapes.append(shape) or zeros(shape, dtype))
    for mesh in (one, eight):
        model, params = imported(folder, mesh, layout="scan", param_dtype="bfloat16")
        assert_same(unstacked(model, params), expected(hf_config, numbers, model, BFLOAT16))
        wanted = dict(hf_checkpoints.leaves(model.shardings(mesh)))
        assert all(leaf.sharding == wanted[path] for path, leaf in hf_checkpoints.leaves(params))
    assert max(map(len, shapes)) == 4  # no buffer has a dim of layers beside those of qkv


@LAYOUTS
def test_eight_devices_give_the_numbers_of_one(layout, one, eight, tmp_path):
    folder = hf_checkpoints.write(tmp_path, hf_checkpoints.config("gemma2"), files=2)
    model, alone = imported(folder, one, layout=layout)
    _, sharded = imported(folder, eight, layout=layout)
    assert_same(unstacked(model, sharded), unstacked(model, alone))


def test_a_large_transpose_is_cut_into_tiles_and_spans(one, tmp_path, monkeypatch):
    """Sizes that no tile divides, and spans of a few rows."""
    monkeypatch.setattr(load, "_SPAN", 5000)
    monkeypatch.setattr(load, "_RUN", 128)
    sizes = dict(hidden_size=200, intermediate_size=333, num_attention_heads=2, num_key_value_heads=1, head_dim=100)
    for name, dtype in (("llama", np.float32), ("mistral", BFLOAT16)):
        hf_config = hf_checkpoints.config(name, **sizes, num_hidden_layers=1)
        numbers = hf_checkpoints.tensors(hf_config, dtype)
        model, params = imported(hf_checkpoints.write(tmp_path / name, hf_config, numbers), one)
        assert_same(unstacked(model, params), expected(hf_config, numbers, model))


def test_a_device_reads_no_more_than_its_part(eight, tmp_path, monkeypatch):
    hf_config = hf_checkpoints.config("llama")
    folder = hf_checkpoints.write(tmp_path, hf_config)
    copied = []
    copy = load._copy
    monkeypatch.setattr(load, "_copy", lambda target, source: copied.append(source.size) or copy(target, source))
    imported(folder, eight)
    # Two devices (those of `data`) hold each part, and every number is read once for all of them.
    numbers = hf_checkpoints.tensors(hf_config)
    assert sum(copied) == sum(tensor.size for tensor in numbers.values())
    # A matrix has four parts: half of its rows and half of its columns.
    assert copied.count(24 * 16 // 4) == 4 * 3 * hf_config["num_hidden_layers"]


@LAYOUTS
def test_the_files_may_go_once_the_parameters_are_there(layout, one, tmp_path):
    """No array looks into a mapped file, and none changes when its buffer is given away."""
    hf_config = hf_checkpoints.config("gpt2", n_embd=64)
    numbers = hf_checkpoints.tensors(hf_config)
    folder = hf_checkpoints.write(tmp_path, hf_config, numbers)
    model, params = imported(folder, one, layout=layout)
    size = (folder / SINGLE).stat().st_size
    with open(folder / SINGLE, "r+b") as file:
        file.write(b"\0" * size)
    wanted = expected(hf_config, numbers, model)
    assert_same(unstacked(model, params), wanted)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(params)
    assert_same(unstacked(model, doubled), {path: 2 * value for path, value in wanted.items()})


def test_names_without_prefix_and_tensors_that_do_not_count(one, tmp_path):
    hf_config = hf_checkpoints.config("gpt2")
    numbers = hf_checkpoints.tensors(hf_config)
    on_disk = {name.removeprefix("transformer."): value for name, value in numbers.items()}
    on_disk["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.uint8)
    on_disk["lm_head.weight"] = np.ones((1, 1), np.float32)  # tied: whatever stands there
    model, params = imported(hf_checkpoints.write(tmp_path, hf_config, on_disk), one)
    assert_same(unstacked(model, params), expected(hf_config, numbers, model))


def test_a_body_without_head_beside_tensors_of_the_caller(one, tmp_path):
    """What a scorer reads."""
    hf_config = hf_checkpoints.config("llama")
    numbers = hf_checkpoints.tensors(hf_config)
    del numbers["lm_head.weight"]
    source = open_source(
        hf_checkpoints.write(tmp_path, hf_config, {**numbers, "score.weight": np.ones((1, 16), np.float32)})
    )
    model = Decoder(source.model_config(0, 16))
    with pytest.raises(UserError, match=r"2 of its tensors.*\n  missing: lm_head.weight.*\n  left over: score.weight"):
        source.load_params(model, one)
    params = load.load_params(model, one, source.tensors, source.family, head=False, others=["score.weight"])
    wanted = expected(hf_config, {**numbers, "lm_head.weight": np.zeros((37, 16))}, model)
    del wanted[("head",)]
    assert_same(unstacked(model, params), wanted)


def test_everything_that_is_wrong_is_listed_with_its_file(one, tmp_path, monkeypatch):
    hf_config = hf_checkpoints.config("llama")
    numbers = hf_checkpoints.tensors(hf_config)
    del numbers["model.norm.weight"], numbers["model.layers.2.mlp.up_proj.weight"]
    numbers["model.layers.3.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
    numbers["model.layers.0.mlp.down_proj.weight"] = np.zeros((24, 16), np.float32)
    numbers["model.layers.1.mlp.down_proj.weight"] = np.zeros((16, 24), np.int8)
    folder = hf_checkpoints.write(tmp_path, hf_config, numbers)
    monkeypatch.setattr(load, "_zeros", lambda *_: pytest.fail("allocated"))
    with pytest.raises(UserError) as raised:
        imported(folder, one)
    message = str(raised.value)
    assert "5 of its tensors are not those that its config.json describes (Llama)" in message
    for line in (
        "missing: model.norm.weight [16]",
        "missing: model.layers.2.mlp.up_proj.weight [24, 16]",
        f"left over: model.layers.3.mlp.up_proj.weight [24, 16] in {SINGLE}",
        f"of another shape: model.layers.0.mlp.down_proj.weight [24, 16] in {SINGLE}, expected [16, 24]",
        f"not of floating point: model.layers.1.mlp.down_proj.weight int8 in {SINGLE}",
    ):
        assert f"  {line}\n" in message


def test_a_long_list_is_cut(one, tmp_path):
    folder = hf_checkpoints.write(tmp_path, hf_checkpoints.config("llama", num_hidden_layers=9))
    save_file({"a": np.zeros(1, np.float32)}, folder / SINGLE)
    with pytest.raises(UserError, match=r"85 of its tensors(.*\n){41}  and 45 more"):
        imported(folder, one)


def test_a_model_that_does_not_divide_over_the_mesh(cpu_devices, tmp_path):
    folder = hf_checkpoints.write(tmp_path, hf_checkpoints.config("llama"))
    with pytest.raises(UserError, match="'kv_heads' has size 2, which does not divide over mesh axis tensor = 8"):
        imported(folder, make_mesh(data=1, tensor=8, devices=cpu_devices))


@pytest.mark.parity
def test_the_language_model_inside_one_that_sees(one, tmp_path):
    """Gemma 3 as it is published from 4B on: the tensors of its eyes are left where they are."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    text = {k: v for k, v in CONFIGS["gemma3"].items() if k != "model_type"}
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=2
    )
    config = transformers.Gemma3Config(
        text, vision, mm_tokens_per_image=4, image_token_index=36, boi_token_index=35, eoi_token_index=34
    )
    torch.manual_seed(0)
    reference = transformers.Gemma3ForConditionalGeneration(config).eval()
    reference.save_pretrained(tmp_path)
    model, params = imported(tmp_path, one)
    tokens = np.random.default_rng(0).integers(3, 30, (2, 16))
    with torch.no_grad():
        wanted = reference(
            input_ids=torch.tensor(tokens), token_type_ids=torch.zeros((2, 16), dtype=torch.long)
        ).logits.numpy()
    found = np.asarray(jax.jit(model)(params, tokens.astype(np.int32)))[..., : hf_checkpoints.VOCAB]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted).max() > 0.1
