"""What does the README.md of an exported checkpoint say: where does it come from, and what was measured of it?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_jax.models.lora import LoraConfig
from elastic_jax.study.workdir import Workdir
from elastic_jax.train.last_batch import examples_after


def text(
    workdir: Workdir,
    entry: Mapping[str, Any],
    chain: Sequence[Mapping[str, Any]],
    updates: int,
    meta: Mapping[str, Any],
    family: str,
    lora: LoraConfig | None,
) -> str:
    """The model card.

    Args:
      entry: the study, as the workdir recorded it.
      chain: the run and those that it descends from.
      meta: of the checkpoint.
    """
    run, study = chain[0], entry["config"]["name"]
    examples = examples_after(updates, run["batch_size"], run["updates"], run.get("last_rows", 0))
    measured = workdir.rows(run["run"])
    measured = measured[(measured.protocol == entry["protocol"]) & (measured.updates == updates)]
    commits = sorted({commit for commit in measured["commit"] if commit}) or [entry["environment"].get("commit", "")]
    root = next((base for base in entry.get("bases", ()) if base["label"] == chain[-1].get("model")), None)
    facts = {
        "study": study,
        "run": f"`{run['run']}`",
        "stage": f"{run['stage']} ({run['arm']} arm, {run['method'] or 'not trained'}, seed {run['seed']})",
        "updates": f"{updates:,}",
        "examples in this stage": f"{examples:,}",
        "tokens in this stage": f"{meta['tokens']:,}" if "tokens" in meta else "0",
        "alignment volume": f"{examples if run['stage'] == 'align' else run['align_volume']:,} examples",
        "perturbation volume": f"{examples if run['stage'] == 'perturb' else 0:,} examples",
        "pre-training": f"{run['pretrain_tokens']:,} tokens" if run.get("pretrain_tokens") else "not stated",
        "architecture": f"{family}, {entry['params']:,} parameters, {entry['export']['model']['param_dtype']}",
        "adapters": _adapters(lora),
        "data": f"`{entry['export']['data']}`",
        "protocol of the measures": f"`{entry['protocol']}`",
        "code": ", ".join(f"`{commit}`" for commit in commits if commit) or "an installed package",
    }
    if root is not None:
        revision = f", revision {root['revision']}" if root["revision"] else ""
        facts["base"] = f"{root['label']}{revision}, weights `{root['digest'][:16]}`"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [elastic_jax]",
        "---",
        "",
        f"# {study}: {run['name']} after {updates:,} updates",
        "",
        "A checkpoint of a study of the elasticity of language models, made with elastic_jax and written for transformers:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
        "```",
        "",
        "Of what it may be used for, its base and its data decide: their licences hold for it as well.",
        "",
        "## Lineage",
        "",
        *_table(["", ""], [[name, value] for name, value in facts.items() if value]),
        "",
        *_table(
            ["run", "stage", "examples", "updates", "identity"],
            [
                [f"`{one['run']}`", one["stage"], f"{taken:,}", f"{-(-taken // one['batch_size']):,}", f"`{one['id']}`"]
                for one, taken in _taken(chain, examples)
            ],
        ),
        "",
    ]
    lines += ["## Measures", "", *_measures(measured), ""]
    return "\n".join(lines)


def _adapters(lora: LoraConfig | None) -> str:
    if lora is None:
        return ""
    dropout = f", dropout {lora.dropout:g}" if lora.dropout else ""
    return f"merged: rank {lora.rank}, alpha {lora.alpha:g}{dropout}, on {', '.join(lora.targets)}"


def _taken(chain: Sequence[Mapping[str, Any]], examples: int) -> list[tuple[Mapping[str, Any], int]]:
    """The runs from the root on, and how many examples of each are behind the checkpoint."""
    found = []
    for one in chain:
        found.append((one, examples))
        examples = one["parent_examples"]
    return found[::-1]


def _measures(measured: Any) -> list[str]:
    rows = measured[measured.measure != "sample"]
    if not len(rows):
        return ["Not measured at this point."]
    rows = rows.drop_duplicates(["measure", "split"]).sort_values(["measure", "split"])
    values = [
        [row.measure, row.split, _number(row.value), _number(row.stderr), row.unit, f"{int(row.n):,}"]
        for row in rows.itertuples()
    ]
    return _table(["measure", "on", "value", "standard error", "unit", "n"], values)


def _number(value: float) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    shown = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"  # noqa: E731
    return [shown(head), shown(["---"] * len(head)), *map(shown, rows)]
