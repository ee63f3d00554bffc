"""What the theory of the paper says about data: of a study, or of arrays of token numbers.

    python -m elastic_jax.theory --workdir=W [--depth=8]
    python -m elastic_jax.theory --tokens=pretrain.npy,align.npy,perturb.npy --eos=1

Code lengths and mass distributions of the token tree, pruned at growing depths; for three data sets (pre-training, alignment,
perturbation, in this order) also the elasticity theorem at their sizes.
"""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from elastic_jax import cli
from elastic_jax.errors import UserError
from elastic_jax.theory import summary
from elastic_jax.theory.corpus import Corpus
from elastic_jax.theory.tree import Cut


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "theory")
    parser.add_argument("--workdir", default="", help="of a study: its training sets, of those stages that it has")
    parser.add_argument("--study", default=None, help="one of several in the same folder; by default the latest")
    parser.add_argument("--tokens", default="", help="FILE.npy[,FILE.npy...]: integers, a data set each")
    parser.add_argument("--eos", type=int, help="with --tokens, the number that ends a response")
    parser.add_argument(
        "--sizes", default="", help="|D_i|, by default how many paths each set has: NUMBER,NUMBER,NUMBER"
    )
    parser.add_argument("--depth", type=int, default=8, help="of the deepest tree")
    parser.add_argument("--cut", choices=get_args(Cut), default="documents", help="what a path is: see docs/theory.md")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return cli.guarded(_theory, parser, argv)


def _theory(args: cli.Arguments) -> None:
    if bool(args.workdir) == bool(args.tokens):
        raise UserError("--workdir or --tokens: give one of them.")
    if args.workdir and args.eos is not None:
        raise UserError("--eos has no effect with --workdir, whose tokenizer says what ends a response. Leave it out.")
    if args.tokens and args.study is not None:
        raise UserError("--study has no effect with --tokens. Leave it out.")
    if args.depth < 1:
        raise UserError(f"--depth={args.depth}: expected 1 or more.")
    named = _of_study(args.workdir, args.study) if args.workdir else _of_files(args.tokens.split(","), args.eos)
    sizes = _sizes(args.sizes, len(named)) if args.sizes else None
    grown = summary.trees(list(named.values()), args.depth, args.cut)
    tables = {
        "code lengths (bits a path; rates in bits a token)": summary.code_lengths(grown, list(named)),
        "mass distribution": summary.mass_laws(grown, list(named)),
    }
    if len(named) == 3:
        about = "elasticity theorem, if a model were trained on the union (nats a path)"
        tables[about] = summary.responses(grown, sizes or grown[0].sizes.tolist())
    elif sizes:
        raise UserError(f"--sizes has no effect with {len(named)} data sets; the theorem is about three.")
    if args.json:
        rows = {title: json.loads(frame.to_json(orient="records") or "[]") for title, frame in tables.items()}
        print(json.dumps(rows, indent=1))
        return
    for title, frame in tables.items():
        with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_colwidth", 60):
            print(f"{title}\n{frame.to_string(index=False, float_format=lambda x: f'{x:.4g}', na_rep='-')}\n")


def _of_files(paths: list[str], eos: int | None) -> dict[str, Corpus]:
    arrays = {}
    for path in paths:
        try:
            arrays[Path(path).stem] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"--tokens={path}: expected a file of numpy.save with integers ({error}).") from error
    if len(arrays) < len(paths):
        raise UserError(f"--tokens={','.join(paths)}: two files have the same name. Rename one.")
    for path, array in zip(paths, arrays.values(), strict=True):
        if array.dtype.kind not in "iu" or not array.size:
            raise UserError(
                f"--tokens={path}: {array.dtype} of shape {array.shape}; expected integers, one at the least."
            )
    alphabet = max(int(array.max()) for array in arrays.values()) + 1
    return {name: Corpus.from_stream(array, eos=eos, alphabet=alphabet) for name, array in arrays.items()}


def _of_study(workdir: str, name: str | None) -> dict[str, Corpus]:
    from elastic_jax.study import points

    data = points.reopen(workdir, name).data
    found = {}
    for role, prepared in data.train.items():
        arrays = prepared.arrays()
        rows = np.array(arrays["tokens" if "tokens" in arrays else "chosen_tokens"])
        mask = arrays["mask" if "mask" in arrays else "chosen_mask"]
        # A row holds a text from its second token to the last that the loss counts; the first token begins it, the rest is padding.
        end = mask.shape[1] - np.argmax(mask[:, ::-1] != 0, axis=1)
        rows[:, 0] = data.tokenizer.eos_id
        rows[np.arange(rows.shape[1])[None] > end[:, None]] = data.tokenizer.eos_id
        found[role] = Corpus.from_stream(rows, eos=data.tokenizer.eos_id, alphabet=data.tokenizer.vocab_size)
    return found


def _sizes(text: str, count: int) -> list[float]:
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != count or not all(0 < size < np.inf for size in sizes):
        raise UserError(f"--sizes={text}: expected {count} numbers above 0, separated by commas.")
    return sizes


if __name__ == "__main__":
    raise SystemExit(main())
