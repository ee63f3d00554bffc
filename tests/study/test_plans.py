"""Is the plan's arithmetic right, does its search find what fits, and does what cannot work say what would?"""

import dataclasses
import importlib.util
import json
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import small
import small_studies

from elastic_jax import config as config_lib
from elastic_jax.errors import UserError
from elastic_jax.models import flops
from elastic_jax.models.config import model_config
from elastic_jax.parallel import topology
from elastic_jax.parallel.mesh import batch_sharding, make_mesh
from elastic_jax.plan import main
from elastic_jax.study import estimate, planning, search
from elastic_jax.study.estimate import Layout, Work
from elastic_jax.study.planning import elsewhere, here, several
from elastic_jax.train.optim import OptimConfig

GIB = 2**30


def work(size="llama-2-7b", rows=256, length=4096, **fields):
    model = model_config(dict(size=size, dtype="bfloat16", layout="scan", **fields), vocab_size=1, seq_len=length)
    return Work(model, OptimConfig(), rows)


def test_state_is_twelve_bytes_for_each_parameter_and_is_cut_by_the_mesh():
    for layout in (Layout(fsdp=64), Layout(data=4, fsdp=16), Layout(fsdp=16, tensor=4), Layout(data=64)):
        found = estimate.estimate(work(), layout)
        state = 12 * 6_738_415_616 / (layout.fsdp * layout.tensor)
        # Norms are whole on every device.
        assert found.memory["parameters"] + found.memory["moments"] == pytest.approx(state, rel=2e-2)
        assert found.memory["moments"] == pytest.approx(2 * found.memory["parameters"], rel=1e-6)


def test_saved_activations_are_those_of_the_policy():
    c = work().model
    d, f = c.embed, c.mlp
    # Bytes per token and layer in bfloat16, with as many key heads as query heads: `models.remat` has the table.
    expected = dict(
        full=d, save_qkv_attn_mlp_in=6 * d + 2 * f, dots=5 * d + 2 * f, save_dot_with_context_except_mlp=6 * d
    )
    for policy, numbers in expected.items():
        saved = estimate.saved_bytes(dataclasses.replace(c, remat=policy), 1)
        assert saved == 2 * numbers, policy
    assert estimate.saved_bytes(dataclasses.replace(c, remat="none"), 1) > 2 * (6 * d + 2 * f)
    # Over tensor the block's input is whole, and what belongs to heads and the feed-forward is cut.
    cut = estimate.saved_bytes(dataclasses.replace(c, remat="save_qkv_attn_mlp_in"), 4)
    assert cut == 2 * (2 * d + (4 * d + 2 * f) / 4)


def test_the_reference_attention_keeps_the_square_of_the_length():
    long = dataclasses.replace(work().model, remat="none", attention="reference")
    short = dataclasses.replace(long, seq_len=2048)
    kernel = dataclasses.replace(long, attention="splash")
    grown = estimate.saved_bytes(long, 1) - estimate.saved_bytes(short, 1)
    assert grown >= 2 * long.heads * 2048  # at least bfloat16 weights of the further keys
    assert estimate.saved_bytes(kernel, 1) < estimate.saved_bytes(short, 1)


def test_flops_and_exchanges_are_the_closed_forms():
    job, layout = work(), Layout(fsdp=256, remat="full")
    found = estimate.estimate(job, layout)
    per_token = flops.training_flops(job.model, 4096)
    assert found.model_flops == per_token * 4096
    assert found.executed_flops > found.model_flops
    sent = {(e.kind, e.what): e.size for e in found.exchanges}
    assert sent[("all-gather", "weights")] == pytest.approx(2 * 2 * 6_738_415_616 * 255 / 256, rel=1e-3)
    assert sent[("reduce-scatter", "gradients")] == pytest.approx(2 * 6_738_415_616 * 255 / 256, rel=1e-3)
    replicated = estimate.estimate(job, Layout(data=256, remat="full"))
    (only,) = replicated.exchanges
    assert (only.kind, only.axis) == ("all-reduce", "data")
    assert only.size == pytest.approx(2 * 4 * 6_738_415_616 * 255 / 256, rel=1e-3)
    assert estimate.estimate(job, Layout()).exchanges == ()


def test_parts_cut_activations_and_cost_an_accumulator():
    whole = estimate.estimate(work(), Layout(fsdp=64, remat="full"))
    parts = estimate.estimate(work(), Layout(fsdp=64, remat="full", accumulate=4, reduce="micro"))
    assert parts.memory["saved activations"] == pytest.approx(whole.memory["saved activations"] / 4, rel=1e-6)
    assert (whole.memory["accumulators"], parts.memory["accumulators"]) == (0, parts.memory["parameters"])
    # One reduction per step keeps a whole gradient on every device.
    once = estimate.estimate(work(), Layout(fsdp=64, remat="full", accumulate=4, reduce="step"))
    assert once.memory["accumulators"] == pytest.approx(64 * parts.memory["accumulators"], rel=2e-2)


def test_categories_add_up_and_time_is_that_of_the_busiest():
    found = estimate.estimate(work(), Layout(fsdp=256, remat="full"))
    assert found.total == sum(found.memory.values()) and set(found.memory) == set(estimate.CATEGORIES)
    times = estimate.roofline(found, topology.parse("v5e:16x16"))
    assert times.compute is not None and times.compute == pytest.approx(found.executed_flops / 197e12)
    assert times.bound == "compute"
    assert times.exposed == pytest.approx(3 * 32 * estimate.LATENCY)
    assert search.seconds_of(times, Layout(fsdp=256), 0.5) == pytest.approx(times.compute / 0.5 + times.exposed / 0.7)


# GiB by memory_analysis(), arguments and temporaries; libtpu 0.0.42.1, jax 0.10.2, 256 rows of 4,096 tokens (docs/plans.md).
@pytest.mark.parametrize(
    ("size", "layout", "compiled"),
    [
        ("llama-2-7b", Layout(fsdp=256, remat="full"), 0.297 + 3.621),
        ("llama-2-7b", Layout(fsdp=64, remat="full"), 1.180 + 12.157),
        ("llama-2-13b", Layout(fsdp=256, remat="full"), 0.576 + 5.712),
        ("llama-3-8b", Layout(fsdp=64, remat="full"), 1.405 + 15.542),
        ("llama-2-7b", Layout(fsdp=64, remat="save_qkv_attn_mlp_in", accumulate=2, reduce="micro"), 1.180 + 28.654),
        # What the search chose, on packed rows.
        ("llama-2-7b", Layout(fsdp=256, remat="dots"), 0.297 + 13.386),
        ("llama-2-7b", Layout(fsdp=64, remat="save_qkv_attn_mlp_in"), 1.180 + 54.823),
        ("llama-2-13b", Layout(fsdp=256, remat="save_dot_with_context_except_mlp"), 0.576 + 14.549),
        ("llama-2-13b", Layout(fsdp=64, remat="dots"), 2.278 + 76.859),
        ("llama-3-8b", Layout(fsdp=256, remat="save_dot_with_context_except_mlp"), 0.354 + 9.674),
        ("llama-3-8b", Layout(fsdp=64, remat="save_qkv_attn_mlp_in"), 1.405 + 59.605),
        ("llama-3-70b", Layout(fsdp=512, remat="save_qkv_attn_mlp_in"), 1.555 + 71.772),
    ],
    ids=str,
)
def test_the_estimate_is_within_15_percent_of_what_was_compiled(size, layout, compiled):
    job = work(size, rows=512 if size == "llama-3-70b" else 256)
    assert estimate.estimate(job, layout).total / GIB == pytest.approx(compiled, rel=0.15)


def found_for(job, name, **fixed):
    top = topology.parse(name)
    return search.search(dict(align=(job, 10)), top, search.Fixed(**fixed), {}, 0.5)["align"], top


def test_what_is_found_fits_keeps_the_batch_and_uses_every_device():
    for name in ("v5e:16x16", "h100:8"):
        job = work(rows=256 if "v5" in name else 64)
        found, top = found_for(job, name, remat="full")
        assert found.fits and found.estimate.total <= top.memory
        assert found.layout.devices == top.devices
        assert job.rows % (found.layout.shards * found.layout.accumulate) == 0
        # Parameters and moments of 7B fit no device of these whole.
        assert found.layout.fsdp * found.layout.tensor > 1


def test_a_model_that_fits_everywhere_recomputes_nothing():
    found, _ = found_for(work("qwen1.5-0.5b", rows=64, length=512), "h200:8")
    assert (found.layout.tensor, found.layout.remat, found.layout.accumulate) == (1, "none", 1)


def test_what_does_not_fit_is_said_so():
    found, _ = found_for(work("llama-2-13b", rows=4), "v5e:2x2", remat="full")
    assert not found.fits


@pytest.mark.parametrize(
    ("job", "name", "fixed", "message"),
    [
        (dict(rows=100), "v5e:16x16", {}, r"256 devices cannot share align\.batch_size=100.*multiples of"),
        (dict(), "h100:8", dict(mesh=dict(data=1, fsdp=3, tensor=1)), r"multiplies to 3.*mesh\.fsdp="),
        (dict(), "h100:6", dict(mesh=dict(data=-1, fsdp=6, tensor=1)), r"embed=4096 does not divide.*mesh\.fsdp=[12]"),
        (
            dict(size="llama-3-8b"),
            "v5e:4x4",
            dict(mesh=dict(data=1, fsdp=1, tensor=16)),
            r"kv_heads=8 .*mesh\.tensor=8",
        ),
        (dict(rows=12), "h100:8", dict(mesh=dict(data=8, fsdp=1, tensor=1)), r"batch_size=12 .* Use 8 or 16"),
    ],
)
def test_what_does_not_divide_names_the_nearest_that_does(job, name, fixed, message):
    with pytest.raises(UserError, match=message):
        found_for(work(remat="full", **job), name, remat="full", **fixed)


def tiny_config():
    config = small.get_config()
    config.model.remat = "full"
    return config


def test_a_plan_for_devices_that_are_not_here(capsys):
    plan = planning.plan(tiny_config(), topology="h100:8")
    assert plan.fits and plan.topology is not None and plan.topology.name == "h100:8"
    assert [stage.stage for stage in plan.stages] == ["pretrain", "align", "perturb"]
    assert plan.params == flops.parameters(model_config(dict(plan_section(tiny_config())), plan_vocab(plan), 32))
    shown = str(plan)
    for part in ("for h100:8: 8 devices of 78.6 GiB", "assumed: 50% of the peak", "to run it so: --config.mesh.data=8"):
        assert part in shown
    assert "assumed, since the data were not read" in shown
    # The settings are ones that the config has, and that work.
    config = config_lib.load(tiny_config(), {k: str(v) for k, v in plan.settings.items()})
    config_lib.validate(config)


def plan_section(config):
    return {k: v for k, v in config.model.items() if v is not None}


def plan_vocab(plan):
    return elsewhere.vocabulary(tiny_config())


def test_json_has_every_number(tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "import small\n\ndef get_config():\n    c = small.get_config()\n    c.model.remat = 'full'\n    return c\n"
    )
    assert main([f"--config={config}", "--topology=v5e:2x4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["topology"], found["devices"], found["fits"]) == ("v5e:2x4", 8, True)
    for stage in found["stages"]:
        assert sum(stage["bytes"].values()) == stage["total_bytes"]
        assert stage["device_hours"] == pytest.approx(stage["updates"] * stage["seconds"] * 8 / 3600)
        assert 0 < stage["mfu"] < 0.55


def test_a_plan_that_does_not_fit_ends_with_the_cure(capsys):
    flags = ["--config=configs/scale_sft.py:llama-2-13b,rows=4", "--topology=v5e:2x2", "--stage=align"]
    assert main([*flags, "--config.model.remat=full"]) == 2
    out, err = capsys.readouterr()
    assert "plan of scale_sft_llama-2-13b" in out
    assert "does not fit v5e:2x2: align needs" in err and "Largest: moments" in err
    assert "--topology=v5e:4x4" in err or "--topology=v5e:4x8" in err
    assert "align.optim.moments=bfloat16" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:8"], "no such device"),
        (["--topology=h100:8", "--compile"], "can only be compiled where one is"),
        (["--topology=cpu:4096", "--compile"], "xla_force_host_platform_device_count=4096"),
        (["--compile"], "are for a --topology"),
        (["--topology=h100:8", "--hfu=1.5"], "expected a share of the peak"),
        (["--topology=h100:8", "--stage=rest"], "expected one of pretrain, align, perturb"),
    ],
)
def test_a_wrong_flag_is_refused(flags, message, capsys):
    assert main(["--config=configs/quickstart.py:tiny", "--config.model.remat=full", *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_libtpu_the_way_to_get_it_is_named(monkeypatch):
    from elastic_jax.parallel import ahead

    monkeypatch.setattr(ahead, "available", lambda platform: platform == "cpu")
    with pytest.raises(UserError, match=r"libtpu is not installed.*elastic_jax\[tpu\]"):
        ahead.devices(topology.parse("v5e:2x2"))


def test_a_cpu_topology_is_really_compiled():
    plan = planning.plan(tiny_config(), topology="cpu:2", compiled=True, stages=("align",))
    (stage,) = plan.stages
    assert stage.compiled is not None and stage.seconds is None
    # What lives between updates is known exactly.
    assert stage.estimate.arguments == pytest.approx(stage.compiled.arguments, rel=0.02)
    assert "by the compiler" in str(plan)


@pytest.mark.parametrize(
    ("at_once", "name", "expected"),
    [
        ("auto", "cpu:1", 2),  # as many as there are cores
        (3, "cpu:1", 3),
        (100, "cpu:1", 5),  # as many as there are runs
        ("off", "cpu:1", 1),
        ("off", "h100:8", 1),
        ("auto", "h100:8", None),
        ("auto", "cpu:8", None),
    ],
)
def test_a_plan_says_how_many_runs_go_on_at_a_time(at_once, name, expected, monkeypatch):
    monkeypatch.setattr(several.threads.hardware, "host_cores", lambda: 2)
    config = tiny_config()
    config.seeds, config.at_once = (0,), str(at_once)
    plan = planning.plan(config, topology=name)
    assert (plan.at_once, plan.as_json()["at_once"]) == (expected, expected)
    said = [line for line in str(plan).splitlines() if "at_once" in line]
    if expected in (None, 1):
        assert not said
    else:
        assert said == [f"  {expected} runs at a time, each in a thread (at_once); what that gains is not assumed"]
        assert plan.seconds is None


def test_threads_that_cannot_work_are_refused_by_the_plan_too():
    config = tiny_config()
    config.at_once, config.population = "2", "4"
    with pytest.raises(UserError, match="at_once=2 with a population of 4"):
        planning.plan(config, topology="cpu:1")


def test_calls_side_by_side_share_the_time_and_one_that_is_held_up_does_not_decide(monkeypatch):
    clock, calls = threading.local(), []

    def call(number):
        calls.append(number)
        clock.now = now() + (50.0 if calls.count(number) == 2 else 4.0)

    def now():
        return getattr(clock, "now", 0.0)

    monkeypatch.setattr(several, "time", SimpleNamespace(perf_counter=now))
    assert several.seconds_each(4, 5, call) == 1.0 and several.seconds_each(1, 5, call) == 4.0
    assert sorted(calls) == sorted([0, 1, 2, 3] * 5 + [0] * 5)


def test_few_updates_of_a_large_model_are_timed_and_more_of_a_small_one():
    counts = [here._timed_updates(estimate.estimate(work("1m", rows=rows, length=128), Layout())) for rows in (32, 1)]
    assert counts[0] == here.LEAST_UPDATES < counts[1] <= here.MOST_UPDATES


def test_a_study_in_threads_is_timed_in_threads_against_another_model(small_study, monkeypatch):
    both, found = threading.Barrier(2, timeout=60), []

    def measure(self, params, base, seed):
        found.append(params is base)
        if threading.current_thread() is not threading.main_thread():
            both.wait()  # until the other thread measures too

    monkeypatch.setattr(type(small_study.protocol), "measure", measure)
    small_study.config.at_once, small_study.config.perturb.volumes = "2", ()
    plan = planning.plan(small_study, timed=True)
    assert plan.at_once == 2 and found == [False] * (1 + 2 * 3)
    assert plan.seconds is not None and plan.seconds > 0
    assert "2 runs at a time, each in a thread (at_once), and timed so" in str(plan)


def test_the_rows_of_a_stage_that_ran_out_of_memory_are_named(small_study):
    assert "align needs about" in planning.out_of_memory(small_study, "align")


@pytest.fixture
def small_study(tmp_path):
    from elastic_jax.study import Study

    with small_studies.on_devices(1):
        yield Study(small.get_config(), tmp_path / "work")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'")
def test_an_update_is_compiled_for_a_slice_that_is_not_here():
    config = config_lib.load("configs/scale_sft.py:tinyllama-1.1b,rows=16")
    config.model.layers, config.model.remat = 4, "full"
    plan = planning.plan(config, topology="v5e:4x4", compiled=True, stages=("align",))
    (stage,) = plan.stages
    assert stage.compiled is not None and plan.fits
    assert stage.estimate.arguments == pytest.approx(stage.compiled.arguments, rel=0.03)


def test_arguments_are_those_of_the_program():
    """Bytes of state and batch, device by device, against the arrays' own shards."""
    from elastic_jax.models.transformer import Decoder
    from elastic_jax.train import optim, state

    devices = jax.devices()[:8]
    mesh = make_mesh(2, 2, 2, devices=devices)
    model = Decoder(model_config(dict(size="100k"), vocab_size=64, seq_len=32))
    abstract = state.abstract(model, optim.make(OptimConfig(), 1), mesh)
    batch = dict(
        tokens=jax.ShapeDtypeStruct((16, 33), jnp.int32, sharding=batch_sharding(mesh)),
        mask=jax.ShapeDtypeStruct((16, 32), jnp.uint8, sharding=batch_sharding(mesh)),
    )
    held = sum(
        leaf.dtype.itemsize * jnp.prod(jnp.array(leaf.sharding.shard_shape(leaf.shape), int)).item()
        for leaf in jax.tree.leaves((abstract, batch))
    )
    job = Work(model.config, OptimConfig(), rows=16)
    assert estimate.estimate(job, Layout(2, 2, 2)).arguments == pytest.approx(held, abs=16)


def test_the_base_model_that_measures_compare_with_counts_as_well():
    from elastic_jax.models.lora import LoraConfig

    layout = Layout(fsdp=8)
    alone, beside = (estimate.estimate(dataclasses.replace(work(), compared=on), layout) for on in (False, True))
    assert beside.total - alone.total == beside.memory["base model"]
    assert beside.memory["base model"] == pytest.approx(4 * 6_738_415_616 / 8, rel=2e-2)
    assert beside.of_update == alone.total
    # Adapters adapt the base itself, unless it is kept in another dtype than it is multiplied in.
    adapted = dataclasses.replace(work(param_dtype="bfloat16"), compared=True, lora=LoraConfig(rank=8))
    assert estimate.estimate(adapted, layout).memory["base model"] == 0
    plan = planning.plan(tiny_config(), topology="h100:1")
    found = {stage.stage: stage.estimate.memory["base model"] for stage in plan.stages}
    assert found["pretrain"] == 0 and found["align"] == found["perturb"] > 0
