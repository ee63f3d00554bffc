"""Which files of a folder are a tokenizer, and what do they say together?"""

import functools
import json
import os
from pathlib import Path

from elastic_jax.data.tokenizers import gpt2_files, sentencepiece_model, tiktoken_ranks
from elastic_jax.data.tokenizers import spec as specs
from elastic_jax.data.tokenizers.pretrained import PretrainedTokenizer
from elastic_jax.data.tokenizers.protocol import CONFIG_FILE, TOKENIZER_FILE
from elastic_jax.data.tokenizers.spec import Spec
from elastic_jax.data.tokenizers.special import GENERATION_FILE, JINJA_FILE, MAP_FILE, read_special
from elastic_jax.errors import UserError, first_line


def load_pretrained(path: str | os.PathLike, layout: str = "") -> PretrainedTokenizer:
    """The tokenizer in a folder or file.

    A folder is searched for `tokenizer.json`, then a SentencePiece model (`tokenizer.model`, `spiece.model`, or the only `*.model`),
    then tiktoken ranks (`*.tiktoken`; a `tokenizer.model` that holds ranks is taken as such), then `vocab.json` with `merges.txt`.
    Special tokens and chat template are read from the files beside it, see `elastic_jax.data.tokenizers.special`.

    Args:
      path: of a folder or one of these files.
      layout: of tiktoken ranks, which say neither how text is cut nor what the special tokens are: one of
        `elastic_jax.data.tokenizers.tiktoken_ranks.LAYOUTS`. By default the one whose number of ranks it is.

    Raises:
      UserError: no tokenizer is there, a file is damaged, or nothing says what a text ends with.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"data.tokenizer.path={os.fspath(path)!r}: no such folder or file. Hub ids are not read here: give the folder that "
            "`hf download ID --local-dir FOLDER` made, or the id in base.hf."
        )
    folder = path if path.is_dir() else path.parent
    try:
        stamps = tuple((file.name, *_stamp(file)) for file in sorted(folder.iterdir()) if file.is_file())
        return _load(path.absolute(), layout, stamps)
    except OSError as error:
        raise UserError(f"data.tokenizer.path={os.fspath(path)!r}: cannot be read ({first_line(error)}).") from None


@functools.lru_cache(maxsize=2)  # a study asks for its tokenizer in several places
def _load(path: Path, layout: str, stamps: tuple) -> PretrainedTokenizer:
    del stamps  # tell a folder from the same one with other files
    folder = path if path.is_dir() else path.parent
    file = _found(path) if path.is_dir() else path
    special = read_special(folder)
    kept = [TOKENIZER_FILE, CONFIG_FILE, MAP_FILE, JINJA_FILE, GENERATION_FILE, "added_tokens.json"]
    if layout and not tiktoken_ranks.is_ranks(file):
        raise UserError(f"data.tokenizer.layout={layout!r} is for tiktoken ranks, which {file} is not. Leave it empty.")
    if file.suffix == ".json" and file.name != "vocab.json":
        spec = _read_spec(file)
    elif file.name in ("vocab.json", "merges.txt"):
        spec, special = gpt2_files.read(folder, special)
        kept += ["vocab.json", "merges.txt"]
    elif tiktoken_ranks.is_ranks(file):
        spec, special = tiktoken_ranks.read(file, layout, special)
        kept.append(file.name)
    else:
        spec, special = sentencepiece_model.read(file, special)
        kept.append(file.name)
    files = {name: (folder / name).read_bytes() for name in kept if (folder / name).is_file()}
    if file.suffix == ".json" and file.name not in (TOKENIZER_FILE, "vocab.json"):
        files[TOKENIZER_FILE] = file.read_bytes()
    elif file.name != TOKENIZER_FILE:
        files.pop(TOKENIZER_FILE, None)  # another tokenizer than the one that was asked for
    return PretrainedTokenizer(spec, special, files, where=str(file))


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _found(folder: Path) -> Path:
    for name in (TOKENIZER_FILE, "tokenizer.model", "spiece.model"):
        if (folder / name).is_file():
            return folder / name
    for pattern in ("*.model", "*.tiktoken"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise UserError(f"data.tokenizer.path={os.fspath(folder)!r}: several {pattern} files; name one of them.")
        if found:
            return found[0]
    if (folder / "vocab.json").is_file():
        return folder / "vocab.json"
    raise UserError(
        f"data.tokenizer.path={os.fspath(folder)!r}: no tokenizer here. {TOKENIZER_FILE}, a SentencePiece *.model, a *.tiktoken file "
        "or vocab.json with merges.txt was expected."
    )


def _read_spec(file: Path) -> Spec:
    try:
        spec = json.loads(file.read_text("utf-8"))
        spec = specs.make_spec(dict(spec["model"])) | spec
        _ = [(token["id"], token["content"], token["special"]) for token in spec["added_tokens"]]
        specs.leading_specials(spec["post_processor"])
        return spec
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a whole tokenizer.json ({first_line(error)}). Copy it again.") from None
