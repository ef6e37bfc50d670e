"""The tokenizer of a model folder: ``tokenizer.json``, or ``vocab.txt``, and the small files beside it.

In: the folder. Out: a :class:`Tokenizer`. The format is that of Hugging Face ``tokenizers``; each component of
the file is built by the table of its stage below. A component, a field or a value that is not known here is an
:class:`UnsupportedModel` that names it: nothing is skipped. The exceptions are ``padding`` and ``truncation``:
both depend on the batch and the model's context, which are the caller's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.model.config import Config
from pellucid.tokenize import components, normalize, pretokenize
from pellucid.tokenize.added import AddedToken, AddedTokens
from pellucid.tokenize.base import Model, Tokenizer
from pellucid.tokenize.gguf import end_ids
from pellucid.tokenize.vocabulary import TokenType, Vocabulary

Json = Mapping[str, Any]
Stage = TypeVar("Stage")


class Parts:
    """A parsed ``tokenizer.json`` and the means to read it with checks.

    Attributes: ``path``; ``model`` the model's JSON; ``vocab`` the model's piece → id; ``vocabulary`` with the
    added tokens; ``added`` the added tokens.
    """

    def __init__(self, path: Path, spec: Json) -> None:
        self.path = path
        self._spec = self.component(
            {"type": "tokenizer.json", **spec},
            "file",
            *("version", "truncation", "padding", "added_tokens", "normalizer"),
            *("pre_tokenizer", "post_processor", "decoder", "model"),
        )
        self.model: Json = self.of("model") or {}
        self.vocab = self._ids()
        added = spec.get("added_tokens") or []
        if not isinstance(added, list):
            raise FileFormatError(path, "added_tokens", f"expected an array, found {type(added).__name__}")
        self.added = [self._added(at, token) for at, token in enumerate(added)]
        self.vocabulary = self._vocabulary()

    def of(self, name: str) -> Json | None:
        """The component of that name, or None where it is null or missing."""
        value = self._spec.get(name)
        if value is not None and not isinstance(value, dict):
            raise FileFormatError(self.path, name, f"expected an object, found {type(value).__name__}")
        return value

    def build(self, make: Callable[[Parts, Json | None], Stage], name: str) -> Stage:
        """The stage that ``make`` makes of the component ``name``; what it trips over is the file's fault."""
        try:
            return make(self, self.of(name))
        except (KeyError, IndexError, TypeError, AttributeError) as bad:
            problem = f"a field is missing or of the wrong type: {type(bad).__name__} {bad}"
            raise FileFormatError(self.path, name, problem) from bad

    def component(self, spec: Json, where: str, *known: str, **allowed: Sequence[Any]) -> Json:
        """``spec``, if it has no fields but ``known`` ones, and only the ``allowed`` values in some of them."""
        kind = spec.get("type", where)
        for key in spec.keys() - {"type", *known}:
            raise UnsupportedModel(
                f"{self.path.name}: {where} {kind}: field {key!r} is not implemented; known are {', '.join(known)}"
            )
        for key, values in allowed.items():
            if key in spec and spec[key] not in values:
                raise UnsupportedModel(
                    f"{self.path.name}: {where} {kind}: {key}={spec[key]!r} is not implemented; "
                    f"possible are {', '.join(map(repr, values))}"
                )
        return spec

    def id_of(self, token: Any, field: str) -> int:
        """The id of a token that the file names."""
        if not isinstance(token, str) or token not in self.vocabulary.ids:
            raise FileFormatError(self.path, field, f"{token!r} is not in the vocabulary")
        return self.vocabulary.ids[token]

    def text(self, spec: Json, key: str, default: str | None = None) -> str:
        """The string in a field."""
        value = spec.get(key, default)
        if not isinstance(value, str):
            raise FileFormatError(self.path, key, f"expected a string, found {value!r:.80}")
        return value

    def has_pre_tokenizer(self, kind: str) -> bool:
        """Whether the pre-tokenizer is, or contains, one of this type."""
        spec = self.of("pre_tokenizer") or {}
        inner = spec.get("pretokenizers")
        stages = [spec, *(inner if isinstance(inner, list) else ())]
        return any(isinstance(stage, dict) and stage.get("type") == kind for stage in stages)

    def _ids(self) -> dict[str, int]:
        vocab = self.model.get("vocab")
        if not isinstance(vocab, dict):
            raise FileFormatError(
                self.path, "model.vocab", f"expected an object, found {type(vocab).__name__}"
            )
        if not set(map(type, vocab.values())) <= {int}:
            piece = next(piece for piece, index in vocab.items() if type(index) is not int)
            raise FileFormatError(self.path, "model.vocab", f"the id of {piece!r} is {vocab[piece]!r}")
        return vocab

    def _added(self, at: int, token: Any) -> AddedToken:
        where = f"added_tokens[{at}]"
        if (
            not isinstance(token, dict)
            or type(token.get("id")) is not int
            or not isinstance(token.get("content"), str)
        ):
            raise FileFormatError(self.path, where, f"{token!r} has no id and content")
        flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
        self.component(token, where, "id", "content", *flags)
        if self.vocab.get(token["content"], token["id"]) != token["id"]:
            raise FileFormatError(self.path, where, f"{token['content']!r} has another id in the vocabulary")
        return AddedToken(token["id"], token["content"], **{flag: bool(token.get(flag)) for flag in flags})

    def _vocabulary(self) -> Vocabulary:
        ids = {**self.vocab, **{token.text: token.id for token in self.added}}
        if not self.vocab:
            raise FileFormatError(self.path, "model.vocab", "the vocabulary is empty")
        size = max(ids.values()) + 1
        if min(ids.values()) < 0 or size > 2 * len(ids) + 1024:
            piece = min(ids, key=ids.__getitem__) if min(ids.values()) < 0 else max(ids, key=ids.__getitem__)
            raise FileFormatError(
                self.path,
                "model.vocab",
                f"the id of {piece!r}, {ids[piece]}, is out of range for {len(ids):,} pieces",
            )
        # Ids that no piece has (some files leave gaps) get a name that no text can hold.
        tokens = [f"\0unused {index}" for index in range(size)]
        types = [int(TokenType.UNUSED)] * size
        for piece, index in ids.items():
            if types[index] != TokenType.UNUSED:
                raise FileFormatError(
                    self.path, "model.vocab", f"{tokens[index]!r} and {piece!r} share id {index}"
                )
            tokens[index], types[index] = piece, int(TokenType.NORMAL)
        if self.model.get("byte_fallback"):
            for name in (f"<0x{byte:02X}>" for byte in range(256)):
                if name in ids:
                    types[ids[name]] = int(TokenType.BYTE)
        for token in self.added:
            types[token.id] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
        return Vocabulary(tokens, types, self.path, "model.vocab")


def load_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder (or of the folder that a model file is in).

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    folder = folder if folder.is_dir() else folder.parent
    config = _read(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        # Where there is no generation_config.json, transformers makes one from config.json.
        own = folder / "generation_config.json"
        generation = own if own.is_file() else folder / "config.json"
        return from_json(folder / "tokenizer.json", config, Config(_read(generation), generation))
    if (folder / "vocab.txt").is_file():
        from pellucid.tokenize.kinds.wordpiece import from_vocab_txt

        return from_vocab_txt(folder / "vocab.txt", config)
    raise UnsupportedModel(f"{folder.name}: no tokenizer found; known are tokenizer.json and vocab.txt")


def from_json(path: Path, config: Json, generation: Config) -> Tokenizer:
    """A tokenizer from ``tokenizer.json`` and the contents of ``tokenizer_config``/``generation_config.json``."""
    from pellucid.tokenize.load import known_kinds

    spec = _read(path)
    kinds = [kind for kind in known_kinds().values() if hasattr(kind, "JSON_MODEL")]
    known = sorted({kind.JSON_MODEL for kind in kinds})
    name = spec["model"].get("type") if isinstance(spec.get("model"), dict) else None
    if name is None:
        raise FileFormatError(path, "model.type", "missing")
    if name not in known:
        raise UnsupportedModel(
            f"{path.name}: model type {name!r} is not implemented; known are {', '.join(known)}"
        )
    parts = Parts(path, spec)
    claiming = [kind for kind in kinds if name == kind.JSON_MODEL and kind.claims(parts)]
    model: Model = parts.build(lambda parts, _: claiming[0].from_json(parts), "model")
    vocabulary = parts.vocabulary
    named = {
        key: text
        for key in (
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        )
        if (text := _content(config.get(key))) is not None
    }
    for key in ("bos_token_id", "eos_token_id"):
        generation.token_ids(key, vocabulary.size)
    ends = generation.values.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(token for token in parts.added if not token.normalized),
        normalized_added=AddedTokens(token for token in parts.added if token.normalized),
        normalizer=normalize.sequence(parts.build(components.normalizers, "normalizer")),
        pre_tokenizer=pretokenize.sequence(parts.build(components.pre_tokenizers, "pre_tokenizer")),
        model=model,
        post_processor=parts.build(components.post_processor, "post_processor"),
        decoder=parts.build(components.decoder, "decoder"),
        bos_id=vocabulary.ids.get(named.get("bos_token", "")),
        eos_ids=end_ids(vocabulary, [*listed, vocabulary.ids.get(named.get("eos_token", ""))]),
        chat_template=_chat_template(path.parent, config),
        named_tokens=named,
    )


def _content(token: Any) -> str | None:
    """The text of a token that is written as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _chat_template(folder: Path, config: Json) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read(path: Path) -> Json:
    """A JSON file as an object; an empty one where there is no file. Raises :class:`FileFormatError`."""
    if not path.is_file():
        return {}

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FileFormatError(path, "JSON", f"{twice!r} is listed twice")
        return found

    try:
        spec = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise FileFormatError(path, "JSON", str(bad), getattr(bad, "pos", None)) from None
    if not isinstance(spec, dict):
        raise FileFormatError(path, "JSON", f"expected an object, found {type(spec).__name__}")
    return spec
