"""How long does the paper's rebound grid take, as one study and as one transformers Trainer process per cell?

usage: python benchmarks/grid.py [--size=50k] [--seeds=3] [--quick]
needs: pip install -e ".[bench]"   (torch, transformers and accelerate; without them only our own times are taken)

Figure 4's 4 alignment volumes x 6 perturbation volumes (0 included) from pre-trained models of configs/rebound.py, for one seed and for
`seeds` of them: every cell is trained, sampled from and scored. Pre-training is done once, for all, and not timed; all start from the
same weights and train on the same rows, with the same batch, optimiser and learning rate, for the same numbers of updates, and draw the
same number of samples of the same length, scored by the same exact posterior. Ours is the command line from a cold compilation cache,
twice: as the recipe has it, and measured at the cells alone. The other is what the paper's scripts do: a process for each alignment
volume that trains and saves, then a process for each cell that loads it, trains on, samples and scores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

ALIGN = (1000, 2000, 5000, 10000)
PERTURB = (0, 100, 200, 500, 1000, 2000)
BATCH, LR, SAMPLES = 20, 3e-4, 256
PROGRAMS = {"elastic_jax": (), "elastic_jax, at the cells alone": ("--config.measures.per_octave=0",)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--size", default="50k")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cell", help="used by the script itself")
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(cell(json.loads(args.cell))), flush=True)
        return
    align, perturb = ALIGN, PERTURB
    if args.quick:
        align, perturb = (40,), (0, 20)
    peers = all(common.package_version(name) for name in ("torch", "transformers", "accelerate"))
    counts = sorted({1, 2 if args.quick else args.seeds})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = pretrained(folder, align, perturb, counts[-1], args.size, args.quick)
        rows = [ours(folder, base, program, align, perturb, seeds) for seeds in counts for program in PROGRAMS]
        if peers:
            others = {row["seeds"]: row for row in theirs(folder, align, perturb, counts)}
            for row in rows:
                row["ratio"] = others[row["seeds"]]["seconds"] / row["seconds"]
            rows += others.values()
    common.report(
        "grid",
        "The rebound grid as one study and as one Trainer process per cell",
        dict(
            program="program",
            params="parameters",
            seeds="seeds",
            cells="cells",
            updates="updates",
            processes="processes",
            seconds="wall time (s)",
            ratio="times as fast",
            corner="score at the first and the last cell",
        ),
        rows,
        notes=[
            f"Alignment volumes {align}, perturbation volumes {perturb}, batch {BATCH}, AdamW at a constant {LR:g}, "
            f"{SAMPLES} samples a cell. Pre-training is not timed. Scores are of the first seed.",
            "elastic_jax trains each alignment and each perturbation once and records the cells on the way. Besides the score it takes "
            "likelihoods and KL to base on three held-out sets at every point, and writes table and report; the first row measures at "
            "every power of two of the updates as well. None of that is asked of the other.",
        ],
        out=args.out,
    )


def pretrained(folder: Path, align: tuple, perturb: tuple, seeds: int, size: str, quick: bool) -> list[str]:
    """The command of the study in `folder`, whose bases this trains."""
    recipe = common.RESULTS.parents[1] / "configs" / "rebound.py"
    command = [sys.executable, "-m", "elastic_jax.run", f"--config={recipe}:tiny" if quick else f"--config={recipe}"]
    command += ["--config.perturb.control=false", f"--config.model.size={size}"]
    command += [f"--config.align.volumes={','.join(map(str, align))},", f"--config.measures.samples={SAMPLES}"]
    command += [f"--config.perturb.volumes={','.join(str(v) for v in perturb if v)},"]
    for stage, rows in (("align", align), ("perturb", perturb)):
        command += [f"--config.{stage}.batch_size={BATCH}", f"--config.{stage}.optim.lr={LR}"]
        command += [f"--config.data.{stage}.rows={max(rows)}"]
    _run([*command, _seeds(seeds), f"--workdir={folder / 'study'}", "--stage=pretrain"], folder / "warm")
    return command


def _seeds(count: int) -> str:
    return f"--config.seeds={','.join(map(str, range(count)))},"


def ours(folder: Path, base: list[str], name: str, align: tuple, perturb: tuple, seeds: int) -> dict[str, Any]:
    workdir = folder / f"{name}-{seeds}"
    shutil.copytree(folder / "study", workdir)
    began = time.perf_counter()
    _run([*base, _seeds(seeds), f"--workdir={workdir}", *PROGRAMS[name]], folder / f"cold-{name}-{seeds}")
    seconds = time.perf_counter() - began
    from elastic_jax.analysis import table

    rows = table.load(workdir / "measures.parquet").rows
    scores = rows[(rows.measure == "score") & (rows.stage == "perturb") & (rows.seed == 0)]

    def score(volume: int, examples: int) -> float:
        return float(scores[(scores.align_volume == volume) & (scores.examples == examples)].value.iloc[0])

    return dict(
        program=name,
        params=int(rows.params.max()),
        seeds=seeds,
        cells=seeds * len(align) * len(perturb),
        updates=seeds * (max(align) + len(align) * max(perturb)) // BATCH,
        processes=1,
        seconds=seconds,
        corner=f"{score(align[0], 0):.3f}, {score(align[-1], perturb[-1]):.3f}",
    )


def _run(command: list[str], cache: Path) -> None:
    environ = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(cache))
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-3000:]}")


def theirs(folder: Path, align: tuple, perturb: tuple, counts: list[int]) -> Iterator[dict[str, Any]]:
    """The rows of so many seeds each; the time of a few is the time until the last of them was done."""
    seconds, cells = 0.0, []
    for seed in range(counts[-1]):
        of_seed = folder / f"seed-{seed}"
        params = write_base(folder, of_seed, seed)
        began = time.perf_counter()
        for volume in align:
            aligned = of_seed / f"aligned-{volume}"
            given: dict[str, Any] = dict(folder=str(of_seed), seed=seed)
            _cell(**given, model=str(of_seed / "base"), role="align", rows=volume, save=str(aligned), score=False)
            for examples in perturb:
                cells.append(_cell(**given, model=str(aligned), role="perturb", rows=examples, save="", score=True))
        seconds += time.perf_counter() - began
        if seed + 1 in counts:
            yield dict(
                program="transformers Trainer",
                params=params,
                seeds=seed + 1,
                cells=len(cells),
                updates=(seed + 1) * (sum(align) + len(align) * sum(perturb)) // BATCH,
                processes=(seed + 1) * len(align) + len(cells),
                seconds=seconds,
                corner=f"{cells[0]['score']:.3f}, {cells[len(align) * len(perturb) - 1]['score']:.3f}",
            )


def _cell(**spec: Any) -> dict[str, Any]:
    given = json.dumps(spec)
    done = subprocess.run([sys.executable, __file__, f"--cell={given}"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cell {given} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_base(folder: Path, place: Path, seed: int) -> int:
    """The pre-trained model as transformers reads it, its rows and its prompts; returns the number of parameters."""
    import jax
    from safetensors.numpy import save_file

    from elastic_jax.models import families
    from elastic_jax.study import points

    study = points.reopen(folder / "study")
    run = next(run for run in study.runs if run.stage == "pretrain" and run.seed == seed)
    params = jax.device_get(study.params_at(run, run.updates))
    c = study.model.config
    family = families.family_for(c)

    def leaf(path: tuple[str, ...]) -> np.ndarray:
        node: Any = params
        for name in path:
            node = node[name]
        return np.asarray(node)

    tensors = {p.name: np.ascontiguousarray(p.from_ours(leaf(p.path))) for p in family.pieces(c)}
    (place / "base").mkdir(parents=True)
    save_file(tensors, str(place / "base" / "model.safetensors"), metadata={"format": "pt"})
    described = family.hf_config(c) | dict(
        architectures=[family.architecture], eos_token_id=1, pad_token_id=0, bos_token_id=1
    )
    (place / "base" / "config.json").write_text(json.dumps(described))
    rows = {f"{role}_{name}": a for role in ("align", "perturb") for name, a in study.data.train[role].arrays().items()}
    np.savez(place / "rows.npz", prompts=study.data.prompts, **rows)  # type: ignore[arg-type]
    return study.model.size


def cell(spec: dict[str, Any]) -> dict[str, Any]:
    """One process of the other program: load, train on the first rows, save or sample and score."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    folder = Path(spec["folder"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"])
    with np.load(folder / "rows.npz") as stored:
        tokens, mask = stored[f"{spec['role']}_tokens"], stored[f"{spec['role']}_mask"]
        prompts = stored["prompts"]
    if spec["rows"]:
        # The mask is of the targets, one place to the left of the labels.
        wanted = np.concatenate([np.zeros_like(mask[:, :1]), mask], axis=1).astype(bool)
        labels = np.where(wanted, tokens, -100)
        examples = [
            dict(input_ids=torch.from_numpy(t).long(), labels=torch.from_numpy(label).long())
            for t, label in zip(tokens[: spec["rows"]], labels[: spec["rows"]], strict=True)
        ]
        settings = TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=LR,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            max_grad_norm=1.0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=spec["seed"],
        )
        Trainer(model=model, args=settings, train_dataset=examples).train()  # type: ignore[arg-type]
    if spec["save"]:
        model.save_pretrained(spec["save"])
    if not spec["score"]:
        return {}
    from elastic_jax.data.universe import Universe
    from elastic_jax.measures.scorers import PosteriorScorer

    universe = Universe()
    tokenizer = universe.tokenizer()
    prompts = prompts[np.arange(SAMPLES) % len(prompts)]
    model.eval()
    torch.manual_seed(spec["seed"])
    with torch.no_grad():
        made = model.generate(
            torch.from_numpy(prompts).long(),
            attention_mask=torch.ones(prompts.shape, dtype=torch.long),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=33 - prompts.shape[1],
            pad_token_id=0,
            eos_token_id=1,
        )
    assert isinstance(made, torch.Tensor)
    out = made.numpy()
    asked, written = tokenizer.decode(prompts.tolist()), tokenizer.decode(out[:, prompts.shape[1] :].tolist())
    return dict(score=float(np.mean(PosteriorScorer(universe, "sentiment").score(asked, written))))


if __name__ == "__main__":
    main()
