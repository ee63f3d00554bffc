"""What does a SentencePiece model say, as a `tokenizer.json`?

The file is a protocol buffer, described at https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Of it
these fields are read; a kind of model or a setting that they do not cover is refused.

Models whose normalization is the identity (Llama, Mistral, Gemma) give the numbers of SentencePiece for any text. Of the others (T5,
XLM-R) the tables of characters are applied by the tokenizers library, to whole clusters of a letter and its marks: a mark on a letter
that never has it is dropped there and kept by SentencePiece.
"""

import base64
import dataclasses
import functools
from pathlib import Path
from typing import Any

from elastic_jax.data.tokenizers import spec as specs
from elastic_jax.data.tokenizers.spec import BLANK, Spec
from elastic_jax.data.tokenizers.special import Special
from elastic_jax.errors import UserError, first_line

_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
# A unigram model takes the likeliest pieces, and would take those that no text may become.
_IMPOSSIBLE = -1e6
_FIELDS = {
    "Piece": dict(piece=(1, "string", ""), score=(2, "float", "0"), type=(3, "int32", "1")),
    "Trainer": dict(
        model_type=(3, "int32", "1"),
        treat_whitespace_as_suffix=(24, "bool", "false"),
        byte_fallback=(35, "bool", "false"),
        unk_id=(40, "int32", "0"),
        bos_id=(41, "int32", "1"),
        eos_id=(42, "int32", "2"),
        pad_id=(43, "int32", "-1"),
    ),
    "Normalizer": dict(
        precompiled_charsmap=(2, "bytes", ""),
        add_dummy_prefix=(3, "bool", "true"),
        remove_extra_whitespaces=(4, "bool", "true"),
        escape_whitespaces=(5, "bool", "true"),
    ),
}


def read(file: Path, special: Special) -> tuple[Spec, Special]:
    """The spec, and `special` with what the model adds to it: names of its special tokens; a text begins with `bos`.

    A model that has a token for the beginning of a text puts it there, since the libraries of Llama 2, Mistral and Gemma do and the
    file does not say; `add_bos_token` in a `tokenizer_config.json` beside it decides otherwise. So does `legacy` about the blank that
    stands for the beginning of a text: by default, as in transformers, it also follows every special token.

    Raises:
      UserError: the file is damaged, or of a kind that is not supported.
    """
    try:
        model = _message().FromString(file.read_bytes())
    except Exception as error:  # the parser's own, of whichever implementation is installed
        raise UserError(
            f"{file}: not a SentencePiece model ({first_line(error)}). Copy it again; of Git LFS a pointer is not enough."
        ) from None
    trainer = model.trainer
    if not model.pieces:
        raise UserError(f"{file}: not a SentencePiece model: it has no pieces. Copy it again.")
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise UserError(
            f"{file}: SentencePiece model type {trainer.model_type}; unigram (1) and BPE (2) are supported."
        )
    if trainer.treat_whitespace_as_suffix or not model.normalizer.escape_whitespaces:
        raise UserError(f"{file}: a SentencePiece model with blanks at the ends of words is not supported.")
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    if any(kind == _UNUSED for *_, kind in pieces) and trainer.model_type == _BPE:
        raise UserError(f"{file}: a SentencePiece BPE model with unused pieces is not supported.")
    inner = (_bpe if trainer.model_type == _BPE else _unigram)(pieces, trainer)
    prefix = special.flag("add_prefix_space", model.normalizer.add_dummy_prefix)
    spec = specs.make_spec(inner, **_around(model.normalizer, prefix, special.flag("legacy", True)))
    spec["added_tokens"] = [
        _added(number, piece, kind, prefix)
        for number, (piece, _, kind) in enumerate(pieces)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    unknown = next((number for number, (*_, kind) in enumerate(pieces) if kind == _UNKNOWN), None)
    if unknown is not None:
        spec["added_tokens"].append(specs.added_token(unknown, pieces[unknown][0], special=True))
    return spec, _named(special, pieces, trainer)


def _named(special: Special, pieces: list[tuple[str, float, int]], trainer: Any) -> Special:
    """Special tokens by their numbers in the model, where the files beside it do not name them."""
    tokens = dict(special.tokens)
    for name in ("unk", "bos", "eos", "pad"):
        number = getattr(trainer, f"{name}_id")
        if 0 <= number < len(pieces):
            tokens.setdefault(f"{name}_token", pieces[number][0])
    add_bos = special.add_bos
    if add_bos is None and not special.settings:
        add_bos = "bos_token" in tokens
    return dataclasses.replace(special, tokens=tokens, add_bos=add_bos)


def _bpe(pieces: list[tuple[str, float, int]], trainer: Any) -> Spec:
    """Of neighbours the pair is merged whose piece has the highest score; every way to write a piece as two is a merge."""
    vocabulary = {piece: number for number, (piece, *_) in enumerate(pieces)}
    normal = {piece for piece, _, kind in pieces if kind in (_NORMAL, _USER_DEFINED)}
    found = []
    for piece, score, kind in pieces:
        if kind == _NORMAL:
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in normal and right in normal:
                    found.append((-score, vocabulary[left], vocabulary[right], left, right))
    return specs.bpe(
        vocabulary,
        [[left, right] for *_, left, right in sorted(found)],
        unk_token=pieces[trainer.unk_id][0],
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )


def _unigram(pieces: list[tuple[str, float, int]], trainer: Any) -> Spec:
    scores = [[piece, score if kind == _NORMAL else _IMPOSSIBLE] for piece, score, kind in pieces]
    return dict(type="Unigram", unk_id=trainer.unk_id, vocab=scores, byte_fallback=trainer.byte_fallback)


def _around(normalizer: Any, prefix: bool, legacy: bool) -> dict[str, Any]:
    """What happens before and after the model: normalizer, pre-tokenizer and decoder."""
    before: list[Spec] = []
    if normalizer.precompiled_charsmap:
        charsmap = base64.b64encode(normalizer.precompiled_charsmap).decode()
        before.append(dict(type="Precompiled", precompiled_charsmap=charsmap))
    if normalizer.remove_extra_whitespaces:
        before.append(dict(type="Replace", pattern=dict(Regex=" {2,}"), content=" "))
        before.append(dict(type="Strip", strip_left=True, strip_right=True))
    pre_tokenizer = None
    if legacy:
        if prefix:
            before.append(dict(type="Prepend", prepend=BLANK))
        before.append(dict(type="Replace", pattern=dict(String=" "), content=BLANK))
    else:
        scheme = "first" if prefix else "never"
        pre_tokenizer = dict(type="Metaspace", replacement=BLANK, prepend_scheme=scheme, split=False)
    decoders: list[Spec] = [
        dict(type="Replace", pattern=dict(String=BLANK), content=" "),
        dict(type="ByteFallback"),
        dict(type="Fuse"),
    ]
    if prefix:
        decoders.append(dict(type="Strip", content=" ", start=1, stop=0))
    return dict(
        normalizer=dict(type="Sequence", normalizers=before) if before else None,
        pre_tokenizer=pre_tokenizer,
        decoder=dict(type="Sequence", decoders=decoders),
    )


def _added(number: int, piece: str, kind: int, prefix: bool) -> Spec:
    """Pieces that the user defined are found before all else, in the normalized text where blanks are "▁"."""
    return specs.added_token(number, piece, special=kind == _CONTROL, normalized=BLANK in piece and not prefix)


@functools.cache
def _message() -> Any:
    """The class of the message, made from `_FIELDS`."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise UserError("Reading a SentencePiece *.model needs protobuf: pip install 'elastic_jax[hf]'.") from error
    kinds = descriptor_pb2.FieldDescriptorProto
    package = "elastic_jax.sentencepiece"
    file = descriptor_pb2.FileDescriptorProto(name="elastic_jax/sentencepiece.proto", package=package, syntax="proto2")
    types = dict(string=kinds.TYPE_STRING, float=kinds.TYPE_FLOAT, int32=kinds.TYPE_INT32, bool=kinds.TYPE_BOOL)
    types["bytes"] = kinds.TYPE_BYTES
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, default) in fields.items():
            message.field.add(
                name=field, number=number, type=types[kind], label=kinds.LABEL_OPTIONAL, default_value=default
            )
    model = file.message_type.add(name="Model")
    for field, number, name, label in (
        ("pieces", 1, "Piece", kinds.LABEL_REPEATED),
        ("trainer", 2, "Trainer", kinds.LABEL_OPTIONAL),
        ("normalizer", 3, "Normalizer", kinds.LABEL_OPTIONAL),
    ):
        model.field.add(name=field, number=number, type=kinds.TYPE_MESSAGE, type_name=f".{package}.{name}", label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))
