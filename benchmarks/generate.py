"""How fast is generation beside transformers' `generate` on torch?

usage: python benchmarks/generate.py [--sizes=10m,34m] [--batches=1,8,32] [--rounds=5] [--quick]
needs: pip install -e ".[bench]"   (torch and transformers; without them only our own times are taken)

Greedy continuations of the same prompts by the same weights, as many new tokens in both, float32. Each runs in its own process; the
processes take turns. A round's time is that of the whole call: reading the prompts, writing, and handing over the tokens.
"""

import json
import os
import statistics
import time
from typing import Any

import common
import numpy as np

from elastic_jax.parallel import huge_pages

VOCAB = {"50k": 512, "10m": 8192, "34m": 8192}
PROMPT, NEW = 64, 128


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", default="10m,34m")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestant", help="used by the script itself")
    args = parser.parse_args()
    if args.contestant:
        compete(**json.loads(args.contestant))
        return
    sizes, batches, rounds, new = args.sizes.split(","), [int(b) for b in args.batches.split(",")], args.rounds, NEW
    if args.quick:
        sizes, batches, rounds, new = ["50k"], [2], 2, 8
    names = ["elastic_jax", "transformers"] if common.package_version("transformers") else ["elastic_jax"]
    rows = [row for size in sizes for batch in batches for row in duel(size, batch, new, names, rounds)]
    common.report(
        "generate",
        "Greedy generation beside transformers on torch",
        dict(
            size="size",
            batch="batch",
            program="program",
            tokens_per_second="new tokens/s",
            fastest="fastest (tokens/s)",
            speed="speed relative to transformers",
            peak_gb="peak memory (GB)",
            ready_seconds="start to first tokens (s)",
            agreement="same tokens",
        ),
        rows,
        notes=[
            f"Prompts of {PROMPT} tokens, {new} new ones, no eos, float32. transformers: LlamaForCausalLM, sdpa attention, its "
            "default cache, torch.inference_mode.",
            "elastic_jax runs as its command line does, with large memory pages (parallel/huge_pages.py); torch as it comes.",
            "Relative speed: the median over rounds of the ratio of the two times of a round, higher is faster here.",
            "Same tokens: the share of rows in which both wrote exactly the same; logits that nearly tie may end it early.",
        ],
        out=args.out,
    )


def duel(size: str, batch: int, new: int, names: list[str], rounds: int) -> list[dict[str, Any]]:
    contestants = {}
    for name in names:
        began = time.perf_counter()
        environ = huge_pages.environment(os.environ) if name == "elastic_jax" else {}
        spec = dict(program=name, size=size, batch=batch, new=new)
        contestants[name] = common.Contestant(__file__, spec, environ)
        contestants[name].ready["ready_seconds"] = time.perf_counter() - began
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            found[name].append(contestants[name].round())
    rows = []
    written = [np.asarray(contestants[name].ready["tokens"]) for name in names]
    for name in names:
        contestants[name].close()
        seconds = [one["seconds"] for one in found[name]]
        peers = [one["seconds"] for one in found[names[-1]]]
        ratios = [peer / own for peer, own in zip(peers, seconds, strict=True)]
        rows.append(
            dict(
                size=size,
                batch=batch,
                program=name,
                tokens_per_second=batch * new / statistics.median(seconds),
                fastest=batch * new / min(seconds),
                speed=statistics.median(ratios) if len(names) > 1 else None,
                peak_gb=found[name][-1]["peak_memory"] / 1e9,
                ready_seconds=contestants[name].ready["ready_seconds"],
                agreement=float((written[0] == written[-1]).all(axis=1).mean()) if len(names) > 1 else None,
                rounds=seconds,
            )
        )
    return rows


def compete(program: str, size: str, batch: int, new: int) -> None:
    """One contestant: build, warm up, then rounds on demand."""
    prompts = np.random.default_rng(0).integers(2, VOCAB[size], (batch, PROMPT)).astype(np.int32)
    run = (elastic_jax_side if program == "elastic_jax" else transformers_side)(size, prompts, new)
    tokens = run()
    run()

    def one_round() -> dict[str, float]:
        began = time.perf_counter()
        run()
        return dict(seconds=time.perf_counter() - began)

    common.serve(one_round, tokens=np.asarray(tokens).tolist())


def weights(size: str, prompt: int, new: int) -> tuple[Any, Any]:
    """Our model, and numbers of numpy for its parameters: the same in both processes."""
    import jax

    from elastic_jax.models.config import model_config
    from elastic_jax.models.transformer import Decoder

    model = Decoder(model_config(dict(size=size), VOCAB[size], prompt + new))
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        return (path[-1].key == "scale") + 0.05 * rng.standard_normal(leaf.shape, np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, model.shapes)


def elastic_jax_side(size: str, prompts: np.ndarray, new: int) -> Any:
    import jax

    from elastic_jax.models.sampler import sample
    from elastic_jax.parallel.mesh import make_mesh

    model, params = weights(size, prompts.shape[1], new)
    mesh, key = make_mesh(), jax.random.key(0)
    params = jax.device_put(params, model.shardings(mesh))
    return lambda: sample(model, params, prompts, key, mesh, length=new, temperature=0.0, eos=()).tokens


def transformers_side(size: str, prompts: np.ndarray, new: int) -> Any:
    import torch
    import transformers

    from elastic_jax.models.families import family_for

    ours, params = weights(size, prompts.shape[1], new)
    family = family_for(ours.config)
    config = transformers.AutoConfig.for_model(**family.hf_config(ours.config))
    config._attn_implementation = "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    state = {}
    for piece in family.pieces(ours.config):
        param: Any = params
        for name in piece.path:
            param = param[name]
        state[piece.name] = torch.from_numpy(np.array(piece.from_ours(param)))
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}, left
    ids = torch.from_numpy(prompts).long()
    # Nothing ends a row; given as the model's own, since the call fills what it leaves out from there.
    model.generation_config = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    mask = torch.ones_like(ids)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return model.generate(ids, attention_mask=mask)[:, prompts.shape[1] :].numpy()

    return run


if __name__ == "__main__":
    main()
