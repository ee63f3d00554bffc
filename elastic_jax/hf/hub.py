"""How does a hub id become a folder on this machine?

Only config, tokenizer and safetensors files are fetched, into the cache of `huggingface_hub`, which also answers without a network
for what it has fetched before.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

from elastic_jax.errors import UserError, first_line
from elastic_jax.hf.tensors import no_weights

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = "*.safetensors"
WANTED = ("*.json", _WEIGHTS, "*.model", "*.tiktoken", "*.jinja", "merges.txt", "vocab.txt")
# Other formats and precisions of the same weights, and whatever lies in folders of its own.
UNWANTED = ("*/*", "consolidated*", "*.fp16.safetensors", "*.fp16.safetensors.index.json")


def is_id(where: str) -> bool:
    """Whether `where` has the form of a hub id: name, or owner/name."""
    return _ID.fullmatch(where) is not None and ".." not in where and not where.endswith((".", "-"))


def download(repo: str, revision: str = "", weights: bool = True, asked: str = "") -> tuple[Path, str]:
    """Fetches a model.

    Args:
      repo: its id on the hub.
      revision: a branch, a tag or a commit; "" is the main branch.
      weights: False leaves them where they are: config and tokenizer say what the model is.
      asked: the field by which it was asked for, where that is not `base.hf`.

    Returns:
      The folder with its files, and the commit that they are of.

    Raises:
      UserError: the package, the network, the model, the revision, the permission or the weights are missing.
    """
    named = asked or f"base.hf={repo}" + (f", base.revision={revision}" if revision else "")
    elsewhere = f"download the model elsewhere, and give its folder{'' if asked else ' as base.hf'}."
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"{named}: there is no such folder, and fetching it from the Hugging Face hub needs huggingface_hub: "
            "pip install 'elastic_jax[hf]'."
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=[pattern for pattern in WANTED if weights or pattern != _WEIGHTS],
            ignore_patterns=list(UNWANTED),
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{named}: the model is gated. Accept its terms on its page of the hub, and log in with `hf auth login` or set "
            f"HF_TOKEN. Or {elsewhere}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{named}: the model has no such revision. {_revisions(huggingface_hub, repo)}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{named}: there is no such folder here and no such model on the hub, or it is private. Check the spelling (owner/name); "
            f"for a private model log in with `hf auth login` or set HF_TOKEN. Or {elsewhere}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{named}: the hub cannot be reached from here, and its cache does not hold the model. To go on, {elsewhere}"
        ) from error
    except Exception as error:  # of the disk, and of requests (0.x) or httpx (1.x)
        raise UserError(
            f"{named} could not be downloaded: {first_line(error)}\nTo go on without it, {elsewhere}"
        ) from error
    path = Path(folder)
    if weights and not any(path.glob(_WEIGHTS)):
        names = [item.name for item in path.iterdir()]
        with contextlib.suppress(Exception):  # a better message, where the hub still answers
            names = list(huggingface_hub.HfApi().list_repo_files(repo, revision=revision or None))
        raise UserError(f"{named}: {no_weights(Path(repo), names)}")
    return path, path.name


def _revisions(huggingface_hub: Any, repo: str) -> str:
    """The revisions that there are, for the end of a message."""
    with contextlib.suppress(Exception):
        refs = huggingface_hub.HfApi().list_repo_refs(repo)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return f"It has {', '.join(names[:20])}" + (f", and {len(names) - 20} more." if len(names) > 20 else ".")
    return "Look at the branches and tags of the model on the hub."
