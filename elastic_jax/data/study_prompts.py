"""What is a model given to write on, in a study on text files?"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elastic_jax.data import facts
from elastic_jax.data.chat import ChatTemplate
from elastic_jax.data.documents import encode_prompts
from elastic_jax.data.roles import Row
from elastic_jax.data.templates import Template
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError

_LONGEST_PROMPT = 0.75  # of a row; what is left is for the answer
_log = logging.getLogger(__name__)


def make(
    rows: Sequence[Row], tokenizer: Tokenizer, template: Template | ChatTemplate, config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None, list[facts.Fact]]:
    """Prompts padded on the left, [n, P], their lengths where they differ, and facts about them.

    They are those of `rows` where the template has a place for them, and otherwise the first tokens of the texts.

    Raises:
      UserError: too few rows are long enough, or all prompts are too long.
    """
    wanted = config["rows"]["prompts"]
    if not rows:
        raise UserError(
            f"data.rows.prompts={wanted}: no row of data.test is left for prompts. "
            "Lower data.rows.heldout, or give more rows in data.test."
        )
    if isinstance(template, ChatTemplate) or template.has_prompt:
        asked = {json.dumps(row.asked): row.asked for row in rows}  # each once
        encoded = encode_prompts(list(asked.values()), tokenizer, template)
        most = max(int(_LONGEST_PROMPT * config["seq_len"]), 1)
        fitting = [ids for ids in encoded if len(ids) <= most]
        if not fitting:
            raise UserError(
                f"data.seq_len={config['seq_len']}: every prompt of data.test takes more than {_LONGEST_PROMPT:.0%} of it and leaves "
                "too little for an answer. Raise data.seq_len."
            )
    else:
        parts = [template.split("", row.answers[0]) for row in rows]
        (head,) = encode_prompts([""], tokenizer, template)
        encoded = tokenizer.encode([body for _, body in parts], continued=bool(parts[0][0]))
        length = config["prompt_tokens"]
        fitting = [head + ids[:length] for ids in encoded if len(ids) >= length]
        if not fitting:
            raise UserError(
                f"data.prompt_tokens={length}: none of the {len(rows)} rows left in data.test is so long. Lower it."
            )
        if len(fitting) < wanted:
            raise UserError(
                f"data.rows.prompts={wanted}: {len(fitting)} rows of data.test are left that have "
                f"data.prompt_tokens={length} tokens.\nLower data.rows.prompts or data.rows.heldout, "
                "or give more rows in data.test."
            )
        if not fitting[0]:
            raise UserError(
                "data.prompt_tokens=0: a text of this tokenizer begins with no token of its own, so the model would be given nothing. "
                "Use 1 or more."
            )
    fits, fitting = len(fitting) / len(encoded), fitting[:wanted]
    if len(fitting) < wanted:
        _log.warning("data.rows.prompts=%d: only %d different prompts leave room for an answer.", wanted, len(fitting))
    lengths = np.array([len(ids) for ids in fitting], np.int32)
    prompts = np.full((len(fitting), lengths.max()), tokenizer.pad_id, np.int32)
    for row, ids in zip(prompts, fitting, strict=True):
        row[len(row) - len(ids) :] = ids
    return (
        prompts,
        None if (lengths == prompts.shape[1]).all() else lengths,
        [
            facts.fact("prompts", len(prompts), "count", "prompts"),
            facts.fact("prompt_tokens", lengths.mean(), "tokens", "prompts"),
            facts.fact("longest_prompt", lengths.max(), "tokens", "prompts"),
            facts.fact("prompts_that_fit", fits, "fraction", "prompts", n=len(encoded)),
        ],
    )
