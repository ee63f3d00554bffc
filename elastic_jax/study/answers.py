"""What does a checkpoint write to the shared queries, and is that written down already?

The queries are the first prompts of the study's data, different ones before repeated ones. Every author draws with the same key, so
that what two of them write differs by the authors alone. Answers are kept as `answers/<author>-<examples>-<identity>.npz` in the
working directory, with what the author itself says of every token, and beside it a JSON file with their counts and digest: a file that
is damaged is written again, and has to come out the same, since runs may have been trained on it.
"""

import dataclasses
import hashlib
import json
import logging
import threading
import zlib
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from elastic_jax import environment
from elastic_jax.data import prepared as prepared_lib
from elastic_jax.data.arrays import read_arrays, write_arrays
from elastic_jax.data.examples import COUNTS, TokenRows
from elastic_jax.data.files import digest_of, write_text
from elastic_jax.data.pipeline import batch_at
from elastic_jax.data.prepared import Prepared
from elastic_jax.errors import UserError
from elastic_jax.measures import answers as measures
from elastic_jax.models.filters import Choice
from elastic_jax.models.sampler import LogProgress, sample
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel import distributed
from elastic_jax.study import agree
from elastic_jax.study.tree import Answers, Cross, Run

if TYPE_CHECKING:
    from elastic_jax.data.build import StudyData
    from elastic_jax.study.workdir import Workdir

FIELDS = ("tokens", "mask", "self_nll", "drawn_nll")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How queries are answered: of the section `resistance`, and `batch_size` of `measures`."""

    queries: int
    heldout: int
    temperature: float
    top_k: int
    top_p: float
    length: int
    batch_size: int


def queries(data: "StudyData", count: int) -> list[list[int]]:
    """The first `count` prompts, different ones before repeated ones.

    Raises:
      UserError: there are fewer.
    """
    known = data.prompt_rows()
    if count > len(known):
        raise UserError(
            f"resistance.queries and resistance.heldout ask for {count} queries, and the data have {len(known)} prompts. Lower them, or "
            "raise data.prompts.rows (data.kind='universe') or data.rows.prompts (text)."
        )
    first: dict[tuple[int, ...], int] = {}
    for place, row in enumerate(known):
        first.setdefault(tuple(row), place)
    repeated = sorted(set(range(len(known))) - set(first.values()))
    return [known[place] for place in [*first.values(), *repeated][:count]]


def queries_digest(data: "StudyData", count: int) -> str:
    """Identity of the queries and of the tokenizer that says where an answer ends."""
    return digest_of([queries(data, count), data.tokenizer.digest])


def room(data: "StudyData", seq_len: int, length: int, count: int) -> int:
    """Tokens of an answer: `length`, or what the longest query leaves of a row.

    Raises:
      UserError: `length` is more than that.
    """
    longest = seq_len + 1 - max(map(len, queries(data, count)))
    if length > longest:
        raise UserError(
            f"resistance.length={length}: after the longest query a row of data.seq_len={seq_len} has room for {longest} tokens. Use "
            f"{longest} or less, or 0 to fill the row."
        )
    return length or longest


class Library:
    """The answers of a study.

    Args:
      mesh: without lanes.
      params_at: a run and a point of it -> its parameters.
    """

    def __init__(
        self,
        workdir: "Workdir",
        model: Decoder,
        mesh: Mesh,
        data: "StudyData",
        settings: Settings,
        params_at: Callable[[Run, int], Params],
    ):
        self._workdir, self._model, self._mesh, self._data = workdir, model, mesh, data
        self._settings, self._params_at = settings, params_at
        self._lock = threading.RLock()  # nothing is written twice when several runs ask for it
        self._read: dict[str, dict[str, np.ndarray]] = {}
        self._trained: dict[str, Prepared] = {}

    def trained(self, cross: Cross) -> Prepared:
        """The answers that the run trains on, as prepared rows; written first where they are not there yet."""
        with self._lock:
            return self._trained_rows(cross)

    def _trained_rows(self, cross: Cross) -> Prepared:
        name = digest_of([cross.answers.identity, cross.queries, cross.opposite.identity if cross.cut else ""])
        if name not in self._trained:
            whole, mask = self.answers(cross.answers), self.mask(cross)
            tokens, kept = whole["tokens"][: cross.queries], mask[: cross.queries]
            # Beyond what counts nothing has to be read, and equal rows have equal digests.
            seen = np.arange(tokens.shape[1])[None] <= _last(kept)[:, None]
            tokens = np.where(seen, tokens, np.int32(self._data.tokenizer.pad_id))
            counts = dict.fromkeys(COUNTS, 0) | dict(
                rows=len(tokens), tokens=int(seen.sum()), loss_tokens=int(kept.sum(dtype=np.int64))
            )
            ids = tuple(f"query-{i}" for i in range(len(tokens)))
            rows = TokenRows("text", self._model.config.seq_len, dict(tokens=tokens, mask=kept), ids, counts)
            content = _digest(dict(tokens=tokens, mask=kept))
            tokenizer = self._data.tokenizer.digest
            make = partial(
                prepared_lib.prepare, self._workdir.data, "answers", content, lambda: rows, tokenizer_digest=tokenizer
            )
            agree.from_main(lambda: bool(make()))
            self._trained[name] = make()
        return self._trained[name]

    def mask(self, cross: Cross) -> np.ndarray:
        """[n, T] uint8: the targets that count, of all answers, held-out ones too."""
        mask = self.answers(cross.answers)["mask"]
        return np.minimum(mask, self.answers(cross.opposite)["mask"]) if cross.cut else mask

    def rows(self, run: Run, params: Params, number: int, losses: list[float]) -> list[dict[str, Any]]:
        """What is measured of a run on answers after `number` updates.

        Args:
          losses: of every update so far.
        """
        cross = run.cross
        assert cross is not None
        whole, mask = self.answers(cross.answers), self.mask(cross)
        trained, heldout = slice(0, cross.queries), slice(cross.queries, None)
        rows = []
        for split, part in ((measures.TRAINED, trained), (measures.HELDOUT, heldout)):
            own = {name: values[part] for name, values in whole.items()}
            # What was trained on is measured as a whole before that; after it, it says nothing of other answers.
            if part is heldout or number == 0:
                nll = self._token_nll(params, own["tokens"])
                rows += measures.loss_rows(nll, own, mask[part], split)
            if number == 0:
                rows += measures.answer_rows(own, mask[part], split)
        if number == run.updates and len(losses) == run.updates:
            seen = self.batches(run)
            rows += measures.epoch_rows(losses, seen, {n: v[trained] for n, v in whole.items()}, mask[trained])
        return rows

    def batches(self, run: Run) -> list[np.ndarray]:
        """The rows of every batch of the run."""
        from elastic_jax.study.execute import order_seed

        assert run.cross is not None
        of = partial(batch_at, self.trained(run.cross), batch_size=run.batch_size, seed=order_seed(run))
        return [of(step)["row"] for step in range(run.updates)]

    def answers(self, answers: Answers) -> dict[str, np.ndarray]:
        """FIELDS of the answers: `tokens` [n, T+1] of query and answer, `mask` [n, T] of the answer, with the token that ended it;
        `self_nll` and `drawn_nll` [n, T]: see `measures.answers`.

        Raises:
          UserError: a damaged file comes out differently when it is written again.
        """
        with self._lock:
            return self._answers_of(answers)

    def _answers_of(self, answers: Answers) -> dict[str, np.ndarray]:
        if answers.key not in self._read:
            path = self._workdir.answers / f"{answers.key}.npz"
            if not agree.from_main(lambda: read_arrays(path, FIELDS) is not None):
                self._write(answers, path)
            found = read_arrays(path, FIELDS)
            if found is None:
                raise UserError(f"{path}: cannot be read on this process. All of them need one disk or bucket.")
            self._read[answers.key] = found
        return self._read[answers.key]

    @cached_property
    def _token_nll(self) -> measures.TokenNll:
        return measures.make_token_nll(self._model, self._mesh, self._settings.batch_size)

    @cached_property
    def _choice(self) -> Choice:
        s, tokenizer = self._settings, self._data.tokenizer
        return Choice(s.temperature, s.top_k, s.top_p, tuple(map(int, tokenizer.never)))

    @cached_property
    def _drawn_nll(self) -> measures.TokenNll:
        return measures.make_drawn_nll(self._model, self._mesh, self._settings.batch_size, self._choice)

    def _write(self, answers: Answers, path: epath.Path) -> None:
        settings, tokenizer, length = self._settings, self._data.tokenizer, self._model.config.seq_len
        asked = queries(self._data, settings.queries + settings.heldout)
        _log.info("%s writes %d answers", answers.key, len(asked))
        params = self._params_at(answers.author, answers.updates)
        key = jax.random.fold_in(jax.random.key(np.uint32(answers.author.seed)), zlib.crc32(b"answers"))
        written = sample(
            self._model,
            params,
            asked,
            key,
            self._mesh,
            length=room(self._data, length, settings.length, len(asked)),
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            eos=tokenizer.eos_ids,
            never=tokenizer.never,
            pad=tokenizer.pad_id,
            progress=LogProgress(),
        )
        tokens = np.full((len(asked), length + 1), tokenizer.pad_id, np.int32)
        mask = np.zeros((len(asked), length), np.uint8)
        for i, (query, count) in enumerate(zip(asked, written.lengths, strict=True)):
            end = len(query) + int(count)
            tokens[i, : len(query)], tokens[i, len(query) : end] = query, written.tokens[i, :count]
            mask[i, len(query) - 1 : end - 1] = 1
        arrays = dict(
            tokens=tokens,
            mask=mask,
            self_nll=self._token_nll(params, tokens),
            drawn_nll=self._drawn_nll(params, tokens),
        )
        if distributed.is_main():
            self._keep(answers, path, arrays, list(written.ended))
        distributed.barrier(answers.key)

    def _keep(self, answers: Answers, path: epath.Path, arrays: dict[str, np.ndarray], ended: list[str]) -> None:
        self._workdir.check_lock()
        about, described = path.with_suffix(".json"), {}
        if about.exists():
            try:
                described = json.loads(about.read_text())
            except ValueError:
                described = {}
        digest = _digest(arrays)
        if described.get("digest", digest) != digest:
            raise UserError(
                f"{path}: it was damaged, and written again the answers are others (another device or version writes other bits). Put the "
                f"old file back; or remove {about.name}, and the runs that trained on it, to begin them anew."
            )
        lengths = arrays["mask"].sum(axis=1)
        drawn = np.where(arrays["mask"] != 0, arrays["drawn_nll"], 0).sum(dtype=np.float64)
        own = np.where(arrays["mask"] != 0, arrays["self_nll"], 0).sum(dtype=np.float64)
        write_arrays(path, arrays, compressed=True)
        settings = dataclasses.asdict(self._settings)
        settings.pop("batch_size")
        facts = dict(
            author=answers.author.key,
            updates=answers.updates,
            identity=answers.identity,
            digest=digest,
            settings=settings,
            answers=len(lengths),
            tokens=int(lengths.sum()),
            shortest=int(lengths.min()),
            longest=int(lengths.max()),
            ended={why: ended.count(why) for why in sorted(set(ended))},
            entropy=drawn / int(lengths.sum()),
            self_loss=own / int(lengths.sum()),
            commit=environment.commit(),
        )
        write_text(about, json.dumps(facts, indent=1) + "\n")


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of what was written, and of what of it counts."""
    content = hashlib.sha256(np.ascontiguousarray(arrays["tokens"]).data)
    content.update(np.ascontiguousarray(arrays["mask"]).data)
    return content.hexdigest()


def _last(mask: np.ndarray) -> np.ndarray:
    """[n]: the place in the row of tokens of the last target that counts."""
    return mask.shape[1] - np.argmax(mask[:, ::-1] != 0, axis=1)
