"""Finds and reads the tokenizer of a model folder.

In: the folder, or a file in it. Out: a :class:`Tokenizer`. The first file that exists is used, in this order:
``tokenizer.json``, which is complete; ``tekken.json``; ``vocab.json`` with ``merges.txt``; tiktoken's ranks; a
SentencePiece model, which M2M-100 and Marian have beside a ``vocab.json``; ``vocab.txt``; ByT5's config, because ByT5
needs no other file. The format of a file is detected from its contents, not from its name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pellucid.errors import FileFormatError, InvalidRequest, UnsupportedModel, brief
from pellucid.tokenize import parsed_cache
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files import json_components, sentencepiece, vocab_files
from pellucid.tokenize.files.json_model import JsonModelReader
from pellucid.tokenize.files.sentencepiece import ModelBuilder, SentencePieceFile
from pellucid.tokenize.files.sidecar import Json, Sidecar, parse_json
from pellucid.tokenize.files.tokenizer_classes import (
    SENTENCEPIECE,
    VOCAB_JSON_MERGES,
    VOCAB_JSON_SENTENCEPIECE,
    VOCAB_TXT,
    TokenizerClass,
)
from pellucid.tokenize.files.tokenizer_json import TokenizerJson
from pellucid.tokenize.files.vocab_files import read_ids
from pellucid.tokenize.kind import json_models, known_kinds, sentencepiece_models
from pellucid.tokenize.stages import normalize
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.stages.pretokenize import AddedToken, AddedTokens, PreTokenizer
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import TokenType, Vocabulary

# Builds a tokenizer from ``tokenizer.json``, the format of Hugging Face ``tokenizers``.
#
# In: the file's contents. Out: a :class:`Tokenizer`. ``files/json_components.py`` builds each component of the file.
# No part is skipped: an unknown component, field or value raises :class:`UnsupportedModel`, which names it.
# ``truncation`` and ``padding`` are read, but applied only on request.

Models = Sequence[JsonModelReader]
SpecReader = Callable[[bytes, Path, Sidecar], Json]


def from_tokenizer_json(path: Path, sidecar: Sidecar, models: Models, read: SpecReader | None = None) -> Tokenizer:
    """A tokenizer from a ``tokenizer.json``; a reader in ``models`` builds the model stage.

    ``read`` is for a file of another format. It takes the file's bytes, its path and its sidecar files, and returns the
    contents of a ``tokenizer.json``. The large parts are parsed once and cached.

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    data = path.read_bytes()
    identity = [path.name, sidecar.named, sidecar.added, sidecar.kind, sidecar.model_type]
    context = b"" if read is None else json.dumps(identity).encode()
    place = parsed_cache.cache_name(data, context) if len(data) >= parsed_cache.WORTH_CACHING else None
    if place is not None and (arrays := parsed_cache.read(place)) is not None:
        spec = json.loads(parsed_cache.text_of(arrays["spec"]))
        return _build(TokenizerJson(path, spec, arrays, numbers=read is None), sidecar, models)
    parts = _checked(path, parse_json(data, path) if read is None else read(data, path, sidecar), models, read is None)
    tokenizer = _build(parts, sidecar, models)
    if place is not None and (arrays := parts.to_cache()) is not None:
        parsed_cache.write(place, arrays)
    return tokenizer


def from_spec(path: Path, spec: Json, sidecar: Sidecar, models: Models) -> Tokenizer:
    """A tokenizer of a known class, from its vocabulary as the contents of a ``tokenizer.json``.

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    tokenizer = _build(_checked(path, spec, models, numbers=False), sidecar, models)
    return dataclasses.replace(tokenizer, post_processor=sidecar.template(tokenizer.vocabulary, path))


def _checked(path: Path, spec: Json, models: Models, numbers: bool) -> TokenizerJson:
    known = sorted({model.type for model in models})
    name = spec["model"].get("type") if isinstance(spec.get("model"), dict) else None
    if name is None:
        raise FileFormatError(path, "model.type", "missing")
    if name not in known:
        raise UnsupportedModel(
            f"{path.name}: model type {brief(name)} is not implemented; known are {', '.join(known)}"
        )
    return TokenizerJson(path, spec, numbers=numbers)


def _normalized(parts: TokenizerJson, normalizer: normalize.Normalizer | None) -> list[AddedToken]:
    """The added tokens that are matched in normalized text, with their texts normalized. Also sets ``parts.spoken``."""
    tokens = [token for token in parts.added if token.normalized]
    if normalizer is None:
        return tokens
    try:
        normalized = [replace(token, text=normalizer(token.text)) for token in tokens]
    except InvalidRequest as refused:
        raise parts.wrong("added_tokens", str(refused)) from None
    for token, written in zip(tokens, normalized):
        if token.text and not written.text:
            problem = f"the normalizer leaves nothing of {brief(token.text)}, so the token can never match"
            raise parts.wrong("added_tokens", problem)
    changed = {new.id: new.text for new, old in zip(normalized, tokens) if new.text != old.text}
    if changed:
        parts.spoken = [changed.get(index, token) for index, token in enumerate(parts.vocabulary.tokens)]
    return normalized


def _build(parts: TokenizerJson, sidecar: Sidecar, models: Models) -> Tokenizer:
    stages = parts.build(json_components.pre_tokenizers, "pre_tokenizer")
    (reader,) = (r for r in models if r.type == parts.model["type"] and r.claims(parts, stages))
    model: TokenizerModel = parts.build(lambda parts, _: reader.build(parts), "model")
    vocabulary = parts.vocabulary
    template, trims = parts.build(json_components.post_processors, "post_processor")
    if sidecar.speaks(vocabulary):
        # The source language of the config overrides the file, as in transformers.
        template = sidecar.template(vocabulary, parts.path)
    normalizer = normalize.sequence(parts.build(json_components.normalizers, "normalizer"))
    normalized = _normalized(parts, normalizer)
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(token for token in parts.added if not token.normalized),
        normalized_added=AddedTokens(normalized),
        normalizer=normalizer,
        pre_tokenizer=PreTokenizer(tuple(json_components.unspelled(stages) or () if model.spells_bytes else stages)),
        model=model,
        post_processor=template,
        trims=trims,
        decoder=parts.build(json_components.decoder, "decoder"),
        **sidecar.arguments(vocabulary),
        truncation=parts.build(json_components.truncation, "truncation"),
        padding=parts.build(json_components.padding, "padding"),
    )


FILES = "tokenizer.json, vocab.json with merges.txt, tekken.json, *.tiktoken, *.model, vocab.txt"


def load_path(path: Path) -> Tokenizer:
    """The tokenizer of a model folder or a tokenizer file; for a weights file, the tokenizer of its folder.

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    folder = path if path.is_dir() else path.parent
    sidecar = Sidecar.read(folder)
    if path.is_file() and (read := _reader(path)) is not None:
        return read(path, sidecar)
    for name in tokenizer_files(folder):
        read = _reader(folder / name)
        if read is not None:
            return read(folder / name, sidecar)
    classes = {name: read for kind in known_kinds().values() for name, read in kind.classes.items()}
    if sidecar.kind in classes:
        return classes[sidecar.kind](folder, sidecar)
    for text in sorted(folder.glob("*.txt")):
        _refuse_rwkv(text)
    raise UnsupportedModel(f"{folder.name}: no tokenizer found; known are {FILES}")


Reader = Callable[[Path, Sidecar], Tokenizer]


def tokenizer_files(folder: Path) -> list[str]:
    """The files of a folder that may hold its tokenizer, in order of preference."""
    # Mistral's names end with the version. Marian has a source.spm and a target.spm.
    patterns = ("*.tiktoken", "*.model", "*.model.v*", "source.spm")
    others = sorted(file.name for pattern in patterns for file in folder.glob(pattern))
    listed = ["tokenizer.json", "tekken.json", "vocab.json", *others, "vocab.txt"]
    return [name for name in listed if (folder / name).is_file()]


def _reader(path: Path) -> Reader | None:
    if path.name in ("tokenizer_config.json", "config.json", "special_tokens_map.json", "generation_config.json"):
        return None
    if path.name == "vocab.json":
        has_merges = path.with_name("merges.txt").is_file()
        return _of_spec(vocab_files.read_vocab_json, VOCAB_JSON_MERGES, "GPT2Tokenizer") if has_merges else None
    head = _head(path)
    if vocab_files.is_tekken(head):
        return lambda path, sidecar: from_tokenizer_json(
            path, vocab_files.tekken_sidecar(sidecar), json_models(), vocab_files.read_tekken
        )
    if path.suffix == ".json":
        return lambda path, sidecar: from_tokenizer_json(path, sidecar, json_models())
    _refuse_rwkv(path)
    if path.suffix == ".txt":
        return _of_spec(vocab_files.read_vocab_txt, VOCAB_TXT, "BertTokenizer")
    if path.suffix == ".tiktoken" or vocab_files.is_tiktoken(head):
        return lambda path, sidecar: from_tokenizer_json(path, sidecar, json_models(), vocab_files.read_tiktoken)
    return _sentencepiece if ".model" in path.name or path.suffix == ".spm" or _PROTO.match(head) else None


_PROTO = re.compile(rb"\n.\n.<unk>\x15", re.DOTALL)
"""The beginning of a SentencePiece model: the message of the first piece, its text, and the key of its score."""
_RWKV = re.compile(rb"\d+ b?(['\"]).*\1 \d+\r?\n")
"""The first line of an RWKV vocabulary: an id, a piece as a Python literal, and its length in bytes."""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(vocab_files.HEAD)


def _refuse_rwkv(path: Path) -> None:
    if _RWKV.match(_head(path)):
        raise UnsupportedModel(
            f"{path.name}: a vocabulary of RWKV, whose tokenizer (the longest match in a trie of bytes) is not "
            f"implemented; use a model with one of {FILES}"
        )


def _of_spec(read: Callable[[Path, Sidecar], Json], file: str, default: str) -> Reader:
    """The reader of a vocabulary file of the kind ``file``; ``default`` is the class if no file names one."""

    def read_file(path: Path, sidecar: Sidecar) -> Tokenizer:
        known = sidecar.for_file(file, default)
        return from_spec(path, read(path, known), known, json_models())

    return read_file


REFUSED = ("Barthez", "BertGeneration", "BigBird", "FNet", "Reformer", "RemBert", "Seamless", "Speech", "XLNet")
"""Beginnings of the names of tokenizer classes that change a SentencePiece file in ways that are not implemented."""
ADDS_BOS_EOS = {"LlamaTokenizer": (True, False), "GemmaTokenizer": (True, False)}
"""Tokenizer classes that add BOS or EOS to texts unless the config says otherwise."""


def _sentencepiece(path: Path, sidecar: Sidecar) -> Tokenizer:
    kind, known = sidecar.kind or "", sidecar.known
    if kind.startswith(REFUSED) or (known is not None and known.file not in (SENTENCEPIECE, VOCAB_JSON_SENTENCEPIECE)):
        raise UnsupportedModel(f"{path.name} of a {kind} is not implemented; save the tokenizer as tokenizer.json")
    file = sentencepiece.read(path.read_bytes(), path)
    models = sentencepiece_models()
    if known is None:
        return sentencepiece.from_file(file, path, models, sidecar, partial(_bos_eos, path, sidecar))
    if known.file == VOCAB_JSON_SENTENCEPIECE:
        return from_vocab_json(file, path, models, sidecar)
    return from_class(file, path, models, sidecar)


def _bos_eos(path: Path, sidecar: Sidecar, named: Mapping[str, int]) -> Template:
    """BOS and EOS around texts, as the config or the class says. ``named`` are the ids of the named tokens."""
    around = dict[str, list[int]]()
    for name, default in zip(("bos", "eos"), ADDS_BOS_EOS.get(sidecar.kind or "", (False, False))):
        around[name] = []
        if sidecar.config.get(f"add_{name}_token", default):
            if name not in named:
                problem = "not in the vocabulary, but must be put around texts"
                raise FileFormatError(path, f"{name}_piece", problem)
            around[name] = [named[name]]
    return Template.around(around["bos"], around["eos"])


# The ids of a SentencePiece file in a model whose tokenizer class numbers the pieces differently.
#
# In: the file and its class (``files/tokenizer_classes.py``), or the ids of a ``vocab.json``. Out: a tokenizer.
# ``files/sentencepiece.py`` builds it from a copy of the file with one piece per id of the model.

LANGUAGE = re.compile(">>(.+)<<")
"""A token of Marian's vocabularies, which begins a text and names the language to translate into."""


def with_class_pieces(
    file: SentencePieceFile, known: TokenizerClass, config: Json, names: Mapping[str, str]
) -> SentencePieceFile:
    """The file with the pieces of its class at the start and the end. ``names`` are the special tokens."""
    first, kept, own = known.first(config), slice(known.replaced, None), set(file.pieces)
    last = [piece for piece in known.last(config) if piece not in own]
    unknown = names["unk_token"] if TokenType.UNKNOWN in file.types[: known.replaced] else None
    types = [_type(piece, unknown) for piece in first]
    scores = file.scores[kept]
    if known.splits_commas:
        scores = [score - 100 * _joins_comma(piece) for piece, score in zip(file.pieces[kept], scores)]
    return replace(
        file,
        pieces=[*first, *file.pieces[kept], *last],
        scores=[*[0.0] * len(first), *scores, *[0.0] * len(last)],
        types=[*types, *file.types[kept], *[int(TokenType.CONTROL)] * len(last)],
    )


def _type(piece: str, unknown: str | None) -> int:
    """The type of a piece that a class puts before the pieces of the file."""
    if piece.endswith("NOTUSED"):
        return int(TokenType.UNUSED)
    return int(TokenType.UNKNOWN if piece == unknown else TokenType.CONTROL)


def _joins_comma(piece: str) -> bool:
    return piece.endswith(",") and piece[-2:-1].isdigit()


def with_vocab_ids(
    file: SentencePieceFile, ids: Mapping[str, int], special: Mapping[str, int], path: Path
) -> SentencePieceFile:
    """The file with the ids of a ``vocab.json``; pieces that the ``vocab.json`` lacks follow.

    ``special`` maps tokens that text does not become to their types. Raises :class:`FileFormatError`.
    """
    size = len(ids)
    if sorted(ids.values()) != list(range(size)):
        raise FileFormatError(path, "vocab.json", f"the ids of {size} pieces are not 0 to {size - 1}")
    own = {piece: at for at, piece in enumerate(file.pieces)}
    pieces, scores, types = sorted(ids, key=ids.__getitem__), list[float](), list[int]()
    for piece in pieces:
        at = own.get(piece)
        scores.append(0.0 if at is None else file.scores[at])
        types.append(special.get(piece, int(TokenType.UNUSED) if at is None else file.types[at]))
    for piece, at in own.items():
        if piece not in ids and file.types[at] in (TokenType.NORMAL, TokenType.USER_DEFINED):
            pieces.append(piece)
            scores.append(file.scores[at])
            types.append(file.types[at])
    return replace(file, pieces=pieces, scores=scores, types=types)


class KnownPieces(TokenizerModel):
    """A model stage whose pieces from the id ``size`` on are unknown to the neural network."""

    def __init__(self, model: TokenizerModel, size: int, unknown: int) -> None:
        self._model, self._size, self._unknown = model, size, unknown

    def spans(self, pre_token: str) -> list[Span]:
        spans = self._model.spans(pre_token)
        return [(index if index < self._size else self._unknown, start, end) for index, start, end in spans]

    def explain(self, pre_token: str) -> Mapping[str, Any]:
        return self._model.explain(pre_token)


def from_class(file: SentencePieceFile, path: Path, models: Mapping[int, ModelBuilder], sidecar: Sidecar) -> Tokenizer:
    """A tokenizer with the ids and special tokens of a known class. Raises as ``sentencepiece.from_file``."""
    known = sidecar.known
    assert known is not None
    if sidecar.config.get("split_by_punct"):
        raise UnsupportedModel(f"{path.name}: split_by_punct in tokenizer_config.json is not implemented")
    file = with_class_pieces(file, known, sidecar.config, sidecar.names())
    return sentencepiece.from_file(file, path, models, sidecar, normalizers=known.normalizers(sidecar.config))


def from_vocab_json(
    file: SentencePieceFile, path: Path, models: Mapping[int, ModelBuilder], sidecar: Sidecar
) -> Tokenizer:
    """A tokenizer with the ids of the ``vocab.json`` next to a SentencePiece file. Raises as ``from_class``.

    The texts that a Marian model writes have a SentencePiece file of their own, ``target.spm``, and may have ids of
    their own, in ``target_vocab.json``.
    """
    of_source, of_target = (path.with_name(name) for name in ("vocab.json", "target_vocab.json"))
    source = _with_ids_of(file, path, of_source, models, sidecar)
    if not (other := path.with_name("target.spm")).is_file():
        return source
    of_target = of_target if sidecar.config.get("separate_vocabs") else of_source
    target = sentencepiece.read(other.read_bytes(), other)
    return dataclasses.replace(source, target=_with_ids_of(target, other, of_target, models, sidecar))


def _with_ids_of(
    file: SentencePieceFile, path: Path, vocab: Path, models: Mapping[int, ModelBuilder], sidecar: Sidecar
) -> Tokenizer:
    """A tokenizer with the ids of the file ``vocab``, and of the languages after them."""
    if not vocab.is_file():
        raise FileFormatError(vocab, "file", f"missing: {path.name} of a {sidecar.kind} has its ids there")
    ids = read_ids(vocab)
    tokens = sidecar.languages
    ids |= {token: len(ids) + at for at, token in enumerate(tokens.values())}
    names, started = sidecar.names(), {piece: LANGUAGE.fullmatch(piece) for piece in ids}
    special = dict.fromkeys((*names.values(), *tokens.values()), int(TokenType.CONTROL))
    special |= {piece: int(TokenType.UNUSED) for piece, found in started.items() if found}
    special[names["unk_token"]] = int(TokenType.UNKNOWN)
    whole = with_vocab_ids(file, ids, special, vocab)
    found = sentencepiece.from_file(whole, path, models, sidecar)
    size, pieces = len(ids), found.vocabulary
    if pieces.size > size:
        (unknown,) = pieces.of_type(TokenType.UNKNOWN)
        pieces = Vocabulary(pieces.tokens[:size], pieces.types[:size], vocab, "vocab.json")
        found = dataclasses.replace(found, vocabulary=pieces, model=KnownPieces(found.model, size, unknown))
    if not any(started.values()):
        return found
    codes = {match[1]: ids[piece] for piece, match in started.items() if match}
    added = [*found.added, *(AddedToken(ids[f">>{code}<<"], f">>{code}<<", text_start=True) for code in codes)]
    return dataclasses.replace(found, added=AddedTokens(added), languages=codes)
