"""What does a study on text files train and measure on?

Every text serves one role: pre-training, alignment, perturbation, scorer, or one of the held-out ones. What
`data.test` and `data.train` have in common is removed from `data.train`.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.data import examples, facts, sources, study_prompts, study_tokenizer, tasks
from elastic_jax.data.chat import ChatTemplate
from elastic_jax.data.files import digest_of
from elastic_jax.data.parts import Parts
from elastic_jax.data.prepared import FORMAT, Prepared, prepare
from elastic_jax.data.roles import Pool, Row, check_disjoint, deduplicate, halves
from elastic_jax.data.templates import PLAIN, Template, is_chat, text_template
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError
from elastic_jax.measures.scorers import ClassifierScorer, accuracy

DEFAULTS: dict[str, Any] = dict(
    kind="text",
    train="tfds:imdb_reviews",
    test="tfds:imdb_reviews",  # "": a fifth of data.train
    prose="",
    train_split="train",
    test_split="test",
    prose_split="train",
    tfds_dir="",
    columns=dict(text="text", label="label", prompt="", chosen="", rejected="", id=""),
    prose_column="text",
    labels=dict(aligned="1", opposite="0"),
    where="",
    template="{answer}",  # or "paper", or "chat": the tokenizer's own
    min_chars=1,
    seq_len=128,
    seed=0,
    tokenizer=study_tokenizer.DEFAULTS,
    # prose=-1: all documents that are not held out.
    rows=dict(pretrain=8000, prose=-1, align=3000, perturb=2000, scorer=4000, heldout=256, prompts=256),
    prompt_tokens=4,
    # Of the experiment on orders; files: one entry for each name, as data.train and with its columns.
    tasks=dict(tasks.DEFAULTS, files=()),
    pack=dict(pretrain="concat", align="none", perturb="none"),
)
_TEST_SHARE = 0.2
_WEAK = 0.7  # accuracy below which a scorer deserves a warning
_CHARS_PER_TOKEN = 4  # for cutting held-out prose; rows that come out longer than seq_len are truncated
_log = logging.getLogger(__name__)


def make(config: Mapping[str, Any], root: Path, objectives: Mapping[str, str], pretrain: bool = True) -> Parts:
    """All parts of the study's data; sets that are already prepared under `root` are opened.

    Args:
      config: as `DEFAULTS`.
      root: where prepared sets, tokenizer and scorer lie.
      objectives: for "align" and "perturb" the kind of rows, "text" or "pair".
      pretrain: whether the study pre-trains; else no row is taken for it, and `data.prose` is only held out.

    Raises:
      UserError: the files do not hold what is asked.
    """
    if not pretrain:
        config = {**config, "rows": {**config["rows"], "pretrain": 0}}
    _check(config, objectives, pretrain)
    cast = _cast(config, pretrain)
    texts = functools.partial(_whole, cast.pretrain)
    tokenizer, template, folder = study_tokenizer.choose(config, root, texts)
    if isinstance(template, ChatTemplate):
        plain, whole = dataclasses.replace(template, everything=True), _conversations
    else:
        plain, whole = PLAIN, functools.partial(_whole, template=template)
    prepared = functools.partial(_prepared, config=config, root=root, tokenizer=tokenizer)
    train = {}
    if pretrain:
        train["pretrain"] = prepared("pretrain", whole(cast.pretrain), plain, pack=config["pack"]["pretrain"])
    for name, rows in cast.train.items():
        kind = objectives.get(name, "text")
        train[name] = prepared(name, _training(rows, name, kind), template, kind=kind)
    heldout = dict(pretrain=prepared("heldout-pretrain", whole(cast.heldout["pretrain"]), plain))
    for name in cast.train:
        heldout[name] = prepared(f"heldout-{name}", _training(cast.heldout[name], name, "text"), template)
    prompts, prompt_lengths, prompt_facts = study_prompts.make(cast.prompts, tokenizer, template, config)
    scorer, scorer_facts = _scorer(cast, tokenizer, config, root)
    return Parts(
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        train=train,
        heldout=heldout,
        log_prob={},
        prompts=prompts,
        prompt_lengths=prompt_lengths,
        scorer=scorer,
        facts=[
            *facts.counts_of(train),
            *facts.counts_of(heldout, "-heldout"),
            *cast.facts,
            facts.fact("vocabulary", tokenizer.vocab_size, "tokens", "tokenizer"),
            *prompt_facts,
            *scorer_facts,
        ],
    )


@dataclasses.dataclass(frozen=True)
class _Cast:
    """The rows of every role, as they were read."""

    pretrain: list[Row]
    train: dict[str, list[Row]]  # align, perturb, and the roles of tasks
    scorer: list[Row]
    heldout: dict[str, list[Row]]
    prompts: list[Row]
    test: list[Row]  # every row of data.test: the scorer's accuracy is measured on them
    facts: list[facts.Fact]


def _check(config: Mapping[str, Any], objectives: Mapping[str, str], pretrain: bool) -> None:
    """What can be known to be wrong before a file is read."""
    columns = config["columns"]
    study_tokenizer.check(config["tokenizer"], config["template"])
    has_prompt = is_chat(config["template"]) or text_template(config["template"]).has_prompt
    if bool(columns["chosen"]) != bool(columns["rejected"]):
        raise UserError(
            f"data.columns.chosen={columns['chosen']!r} and data.columns.rejected={columns['rejected']!r}: "
            "give both, or neither."
        )
    wants_pairs = [name for name, kind in objectives.items() if kind == "pair"]
    if wants_pairs and not columns["chosen"]:
        raise UserError(
            f"The objective of stage {wants_pairs[0]} compares two answers, but the data has one text "
            "a row.\n"
            "Give data.columns.chosen and data.columns.rejected, or an objective on single texts."
        )
    if columns["prompt"] and not has_prompt:
        raise UserError(
            f"data.columns.prompt={columns['prompt']!r}, but data.template={config['template']!r} has "
            "no place "
            'for it. Use a template such as "USER: {prompt} ASSISTANT: {answer}".'
        )
    if has_prompt and not columns["prompt"]:
        raise UserError(
            f"data.template={config['template']!r} asks for a prompt, but data.columns.prompt is empty. "
            "Name the column, or use a template without {prompt}."
        )
    if config["labels"]["aligned"] == config["labels"]["opposite"]:
        raise UserError(f"data.labels: aligned and opposite are both {config['labels']['aligned']!r}.")
    for name, count in config["rows"].items():
        if count < (-1 if name == "prose" else 0 if name == "pretrain" and (config["prose"] or not pretrain) else 2):
            raise UserError(f"data.rows.{name}={count}: 2 rows or more are needed.")
    names, files = config["tasks"]["names"], config["tasks"]["files"]
    if len(names) != len(files):
        raise UserError(
            f"data.tasks: {len(names)} names and {len(files)} files. On text files every task is a source of its own, such as "
            "data.tasks.files=('safe.jsonl', 'truthful.jsonl', 'empathy.jsonl')."
        )
    if names and config["tasks"]["rows"] < 2:
        raise UserError(f"data.tasks.rows={config['tasks']['rows']}: 2 rows or more are needed.")
    if config["rows"]["prose"] > 0 and not config["prose"]:
        raise UserError(
            f"data.rows.prose={config['rows']['prose']}, but data.prose is empty, so no document of prose is read. Give "
            "data.prose, or data.rows.prose=-1."
        )
    if not 0 <= config["prompt_tokens"] < config["seq_len"]:
        raise UserError(
            f"data.prompt_tokens={config['prompt_tokens']} must be from 0 to below data.seq_len={config['seq_len']}."
        )


def _read(config: Mapping[str, Any], field: str) -> list[Row]:
    """Rows of `data.train` or `data.test` after `where` and `min_chars`."""
    table = sources.read(
        config[field],
        f"data.{field}",
        split=config[f"{field}_split"],
        split_field=f"data.{field}_split",
        tfds_dir=config["tfds_dir"],
    ).where(config["where"])
    columns = config["columns"]
    if columns["chosen"]:
        answers = [table.texts(columns[name], f"data.columns.{name}") for name in ("chosen", "rejected")]
        labels = [""] * len(table)
    else:
        answers, labels = [table.texts(columns["text"], "data.columns.text")], _labels(table, config)
    return _rows(table, list(zip(*answers, strict=True)), labels, config)


def _of_task(config: Mapping[str, Any], task: str, spec: str) -> list[Row]:
    """Rows of one of `data.tasks.files` after `min_chars`; of pairs the chosen answer."""
    field, column = f"data.tasks.files ({task})", "chosen" if config["columns"]["chosen"] else "text"
    table = sources.read(
        spec, field, split=config["train_split"], split_field="data.train_split", tfds_dir=config["tfds_dir"]
    )
    answers = table.texts(config["columns"][column], f"data.columns.{column}")
    return _rows(table, [(answer,) for answer in answers], [""] * len(table), config)


def _rows(
    table: sources.Table, answers: Sequence[tuple[str, ...]], labels: Sequence[str], config: Mapping[str, Any]
) -> list[Row]:
    columns = config["columns"]

    def texts(name: str) -> list[str]:
        return table.texts(columns[name], f"data.columns.{name}")

    prompts, turns = [""] * len(table), [()] * len(table)
    if columns["prompt"] and is_chat(config["template"]):
        turns = table.conversations(columns["prompt"], "data.columns.prompt")
        known = table.column(columns["prompt"], "data.columns.prompt")
        prompts = [
            "\n".join(str(turn["content"]) for turn in those) if those else text
            for those, text in zip(turns, known, strict=True)
        ]
    elif columns["prompt"]:
        prompts = texts("prompt")
    if columns["id"]:
        ids = [str(value) for value in table.column(columns["id"], "data.columns.id")]
    else:
        ids = [table.row_id(row) for row in range(len(table))]
    rows = [
        Row(name, prompt, answer, label, messages)
        for name, prompt, answer, label, messages in zip(ids, prompts, answers, labels, turns, strict=True)
        if min(len(text.strip()) for text in answer) >= max(config["min_chars"], 1)
    ]
    if not rows:
        raise UserError(
            f"{table.field}: none of {len(table)} rows has texts of "
            f"data.min_chars={config['min_chars']} characters. "
            "Lower it, or give other files."
        )
    return rows


def _labels(table: sources.Table, config: Mapping[str, Any]) -> list[str]:
    column = config["columns"]["label"]
    names = {value: name for name, value in config["labels"].items()}
    values = [str(value) for value in table.column(column, "data.columns.label")]
    counts = Counter(values)
    unknown = [value for value in counts if value not in names]
    if unknown:
        listed = ", ".join(f"{value!r} ({count} rows)" for value, count in counts.most_common(12))
        example = " or ".join(f"{column} == {value!r}" for value in names)
        raise UserError(
            f"{table.field}: column {column!r} holds labels outside data.labels "
            f"(aligned={config['labels']['aligned']!r}, opposite={config['labels']['opposite']!r}). "
            f"It has: {listed}.\n"
            f'Set data.labels, or leave the others out: data.where="{example}".'
        )
    return [names[value] for value in values]


def _cast(config: Mapping[str, Any], trained: bool) -> _Cast:
    wanted, seed = config["rows"], config["seed"]
    labels = [""] if config["columns"]["chosen"] else ["aligned", "opposite"]
    train, test, removed = _pools(config)
    whole_test = test.rows()
    known = frozenset(key for pool in (train, test) for row in pool.rows() for key in row.keys)

    def both(pool: Pool, role: str, field: str, count: int) -> list[Row]:
        return pool.take(role, f"data.rows.{field}", halves(count, labels))

    # Roles that many runs share come first: more rows for align leave pre-training and scorer as they are.
    scorer = both(train, "scorer", "scorer", wanted["scorer"])
    pretrain = both(train, "pretrain", "pretrain", wanted["pretrain"])
    align = train.take("align", "data.rows.align", {labels[0]: wanted["align"]})
    perturb = train.take("perturb", "data.rows.perturb", {labels[-1]: wanted["perturb"]})
    held_align = test.take("heldout-align", "data.rows.heldout", {labels[0]: wanted["heldout"]})
    held_perturb = test.take("heldout-perturb", "data.rows.heldout", {labels[-1]: wanted["heldout"]})
    of_tasks, task_keys, removed_tasks = _task_rows(config, known)
    prose = _prose(config, known | task_keys, pretrain)
    held_reviews = wanted["heldout"] - len(prose.passages)
    held_pretrain = both(test, "heldout-pretrain", "heldout", held_reviews) + prose.passages
    mixed = pretrain + prose.documents if trained else []
    order = np.random.default_rng([seed, 1]).permutation(len(mixed))
    cast = {
        "pretrain": [mixed[i] for i in order],
        "align": align,
        "perturb": perturb,
        "scorer": scorer,
        "heldout-pretrain": held_pretrain,
        "heldout-align": held_align,
        "heldout-perturb": held_perturb,
        "prompts": test.rows(),
        **of_tasks,
    }
    keys = {role: [key for row in rows for key in row.keys] for role, rows in cast.items()}
    roles = [tasks.role(task) for task in config["tasks"]["names"]]
    # A passage is held out with the whole document it was cut from.
    keys["heldout-pretrain"] += [key for row in prose.held for key in row.keys]
    check_disjoint(keys)
    return _Cast(
        pretrain=cast["pretrain"],
        train=dict(align=align, perturb=perturb) | {role: of_tasks[role] for role in roles},
        scorer=scorer,
        heldout=dict(pretrain=held_pretrain, align=held_align, perturb=held_perturb)
        | {role: of_tasks[f"heldout-{role}"] for role in roles},
        prompts=cast["prompts"],
        test=whole_test,
        facts=[
            *(
                facts.fact("duplicates_removed", count, "count", name)
                for name, count in (removed | removed_tasks | dict(prose=prose.removed)).items()
            ),
            *(
                facts.fact("ids", len(rows), "count", role, text=digest_of([row.id for row in rows])[:16])
                for role, rows in cast.items()
            ),
            *facts.overlaps(keys),
            *([facts.fact("prose_share", prose.share, "fraction of characters", "pretrain")] if trained else []),
            facts.fact("prose_share", len(prose.passages) / wanted["heldout"], "fraction of rows", "pretrain-heldout"),
        ],
    )


def _task_rows(
    config: Mapping[str, Any], known: frozenset[bytes]
) -> tuple[dict[str, list[Row]], frozenset[bytes], dict[str, int]]:
    """Rows of every task, to train on and held out, that share no text with `known` or with one another; all their keys; how many rows
    were removed of each."""
    found, keys, removed = {}, frozenset(), {}
    for task, spec in zip(config["tasks"]["names"], config["tasks"]["files"], strict=True):
        role, field = tasks.role(task), f"data.tasks.files ({task})"
        groups, repeated, foreign = deduplicate(_of_task(config, task, spec), known | keys)
        removed[role] = repeated + foreign
        pool = Pool(groups, config["seed"], field)
        found[f"heldout-{role}"] = pool.take(f"heldout-{role}", "data.rows.heldout", {"": config["rows"]["heldout"]})
        found[role] = pool.take(role, "data.tasks.rows", {"": config["tasks"]["rows"]})
        keys |= {key for group in groups for row in group for key in row.keys}
    return found, keys, removed


def _pools(config: Mapping[str, Any]) -> tuple[Pool, Pool, dict[str, int]]:
    """Pools of `data.train` and `data.test` that share no text, and how many rows were removed."""
    seed, removed = config["seed"], {}
    test_groups: list[list[Row]] = []
    if config["test"]:
        test_groups, removed["test"], _ = deduplicate(_read(config, "test"))
    test_keys = frozenset(key for group in test_groups for row in group for key in row.keys)
    rows = _read(config, "train")
    groups, removed["train"], removed["train&test"] = deduplicate(rows, test_keys)
    if not groups:
        raise UserError(
            f"data.train and data.test overlap: every one of the {len(rows)} rows of data.train is also in "
            'data.test.\nGive another file, or data.test="" to hold out a fifth of data.train.'
        )
    train = Pool(groups, seed, "data.train")
    if config["test"]:
        return train, Pool(test_groups, seed, "data.test"), removed
    return (
        train,
        train.split_off(_TEST_SHARE, 'the fifth of data.train held out because data.test=""'),
        removed,
    )


@dataclasses.dataclass(frozen=True)
class _Prose:
    documents: list[Row] = dataclasses.field(default_factory=list)
    held: list[Row] = dataclasses.field(default_factory=list)  # documents never trained on
    passages: list[Row] = dataclasses.field(default_factory=list)  # of the held ones
    removed: int = 0
    share: float = 0.0  # of the characters of pre-training


def _prose(config: Mapping[str, Any], known: frozenset[bytes], reviews: Sequence[Row]) -> _Prose:
    wanted = config["rows"]["prose"]
    if not config["prose"] or not wanted:
        return _Prose()
    table = sources.read(
        config["prose"],
        "data.prose",
        split=config["prose_split"],
        split_field="data.prose_split",
        tfds_dir=config["tfds_dir"],
    )
    texts = table.texts(config["prose_column"], "data.prose_column")
    rows = [
        Row(table.row_id(i), "", (text,), "prose")
        for i, text in enumerate(texts)
        if len(text.strip()) >= max(config["min_chars"], 1)
    ]
    groups, repeated, foreign = deduplicate(rows, known)
    pool = Pool(groups, config["seed"], "data.prose")
    most = len(groups) - 1  # one document at least is held out
    if most < 1 or wanted > most:
        raise UserError(
            f"data.rows.prose={wanted}: data.prose has {len(groups)} different documents, and one at "
            "least is held "
            f"out, so {max(most, 0)} can be trained on.\nLower data.rows.prose, or give more "
            "documents in data.prose "
            "(a .txt file has one a line)."
        )
    documents = pool.rows() if wanted < 0 else pool.rows()[:wanted]
    share = _share(documents, reviews)
    rest = pool.rows()[len(documents) :]
    held: list[Row] = []
    passages: list[Row] = []
    while len(passages) < max(1, round(config["rows"]["heldout"] * share)):
        if not rest and (wanted > 0 or len(documents) < 2):
            break
        document = rest.pop() if rest else documents.pop()
        held.append(document)
        passages += _passages(document, config["seq_len"] * _CHARS_PER_TOKEN)
    share = _share(documents, reviews)
    count = min(round(config["rows"]["heldout"] * share), len(passages))
    spread = np.linspace(0, len(passages) - 1, count).astype(int)
    return _Prose(documents, held, [passages[i] for i in spread], repeated + foreign, share)


def _share(documents: Sequence[Row], reviews: Sequence[Row]) -> float:
    prose = sum(len(row.answers[0]) for row in documents)
    return prose / max(prose + sum(len(row.prompt) + len(row.answers[0]) for row in reviews), 1)


def _passages(row: Row, chars: int) -> list[Row]:
    """Consecutive pieces of a document of at most `chars` characters, cut at white space where possible."""
    text, pieces, begin = row.answers[0], [], 0
    while begin < len(text):
        end = min(begin + chars, len(text))
        if end < len(text):
            blank = max(text.rfind(" ", begin + chars // 2, end), text.rfind("\n", begin + chars // 2, end))
            end = blank if blank > begin else end
        if text[begin:end].strip():
            pieces.append(Row(f"{row.id}#{len(pieces)}", "", (text[begin:end],), "prose"))
        begin = end
    return pieces


def _whole(rows: Sequence[Row], template: Template) -> list[dict[str, str]]:
    """Texts as pre-training sees them, prompts and all; of pairs the chosen and the rejected one in turn."""
    return [
        dict(
            id=row.id,
            prompt="",
            answer=row.answers[0]
            if row.label == "prose"
            else "".join(template.split(row.prompt, row.answers[i % len(row.answers)])),
        )
        for i, row in enumerate(rows)
    ]


def _conversations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same of what a chat template arranges; prose is no conversation."""
    return [dict(id=row.id, prompt=row.asked, answer=row.answers[i % len(row.answers)]) for i, row in enumerate(rows)]


def _training(rows: Sequence[Row], stage: str, kind: str) -> list[dict[str, Any]]:
    """Rows as alignment or perturbation sees them; perturbation prefers what alignment rejects."""
    if kind == "pair":
        first, second = ("chosen", "rejected") if stage == "align" else ("rejected", "chosen")
        return [{"id": row.id, "prompt": row.asked, first: row.answers[0], second: row.answers[1]} for row in rows]
    side = 0 if stage == "align" else -1
    return [dict(id=row.id, prompt=row.asked, answer=row.answers[side]) for row in rows]


def _prepared(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    template: Template | ChatTemplate,
    *,
    config: Mapping[str, Any],
    root: Path,
    tokenizer: Tokenizer,
    kind: Any = "text",
    pack: examples.Pack = "none",
) -> Prepared:
    key = digest_of([FORMAT, rows, template.text, tokenizer.digest, config["seq_len"], kind, pack])
    return prepare(
        root,
        name,
        key,
        lambda: examples.tokenize(
            rows,
            tokenizer,
            seq_len=config["seq_len"],
            template=template,
            kind=kind,
            pack=pack,
            name=f"data.{name}",
        ),
        tokenizer_digest=tokenizer.digest,
    )


def _judged(rows: Sequence[Row]) -> tuple[list[str], np.ndarray]:
    """Texts and labels for the scorer; a pair gives two."""
    texts, labels = [], []
    for row in rows:
        texts.extend(row.answers)
        labels.extend([True, False] if len(row.answers) == 2 else [row.label == "aligned"])
    return texts, np.array(labels, bool)


def _scorer(
    cast: _Cast, tokenizer: Tokenizer, config: Mapping[str, Any], root: Path
) -> tuple[ClassifierScorer, list[facts.Fact]]:
    texts, labels = _judged(cast.scorer)
    # An answer is judged by itself: its prompt is the same whatever the answer.
    use_prompt = not config["columns"]["prompt"]
    digest = ClassifierScorer.digest_for(texts, labels, use_prompt=use_prompt)
    folder = root / f"scorer-{digest[:12]}"
    scorer = ClassifierScorer.load(folder)
    if scorer is None:
        scorer = ClassifierScorer.fit(texts, labels, use_prompt=use_prompt)
        scorer.save(folder)
    test, truth = _judged(cast.test)
    # The model's samples are as long as its rows; the accuracy on whole texts says little about them.
    cut = tokenizer.decode([ids[: config["seq_len"]] for ids in tokenizer.encode(test)])
    measured = []
    for split, judged in (("test", test), (f"test, first {config['seq_len']} tokens", cut)):
        right, error, area = accuracy(scorer.score([""] * len(judged), judged), truth)
        measured += [
            facts.fact("scorer_accuracy", right, "fraction", split, stderr=error, n=len(judged)),
            facts.fact("scorer_auc", area, "probability", split, n=len(judged)),
        ]
    if measured[0]["value"] < _WEAK:
        _log.warning(
            "The scorer is right on only %.3f of data.test: its scores say little. Raise data.rows.scorer (%d).",
            measured[0]["value"],
            config["rows"]["scorer"],
        )
    return scorer, [*measured, facts.fact("scorer_rows", len(texts), "count", "scorer")]
