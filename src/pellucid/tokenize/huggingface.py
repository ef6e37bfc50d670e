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
from typing import Any

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.tokenize import normalize, pretokenize
from pellucid.tokenize.added import AddedToken, AddedTokens
from pellucid.tokenize.base import Model, Normalizer, PreTokenizer, Tokenizer
from pellucid.tokenize.decode import ByteFallbackDecoder, ByteLevelDecoder, Decoder, WordPieceDecoder
from pellucid.tokenize.gguf import end_ids
from pellucid.tokenize.patterns import GPT2
from pellucid.tokenize.postprocess import A, B, Template
from pellucid.tokenize.vocabulary import TokenType, Vocabulary

Json = Mapping[str, Any]


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
        # Files older than 2020 leave the model's type out where its fields tell it.
        if "type" not in self.model:
            raise FileFormatError(path, "model.type", "missing")
        self.vocab = self._ids()
        self.added = [self._added(at, token) for at, token in enumerate(spec.get("added_tokens") or ())]
        self.vocabulary = self._vocabulary()

    def of(self, name: str) -> Json | None:
        """The component of that name, or None where it is null or missing."""
        value = self._spec.get(name)
        if value is not None and not isinstance(value, dict):
            raise FileFormatError(self.path, name, f"expected an object, found {type(value).__name__}")
        return value

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

    def has_pre_tokenizer(self, kind: str) -> bool:
        """Whether the pre-tokenizer is, or contains, one of this type."""
        spec = self.of("pre_tokenizer") or {}
        return kind in (spec.get("type"), *(inner.get("type") for inner in spec.get("pretokenizers", ())))

    def _ids(self) -> dict[str, int]:
        vocab = self.model.get("vocab")
        if not isinstance(vocab, dict):
            known = "BPE, WordPiece"
            raise UnsupportedModel(
                f"{self.path.name}: model {self.model.get('type')!r} has no table of pieces; known are {known}"
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
        if not ids:
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
        return from_json(folder / "tokenizer.json", config, _read(folder / "generation_config.json"))
    if (folder / "vocab.txt").is_file():
        from pellucid.tokenize.kinds.wordpiece import from_vocab_txt

        return from_vocab_txt(folder / "vocab.txt", config)
    raise UnsupportedModel(f"{folder.name}: no tokenizer found; known are tokenizer.json and vocab.txt")


def from_json(path: Path, config: Json, generation: Json) -> Tokenizer:
    """A tokenizer from ``tokenizer.json`` and the contents of ``tokenizer_config``/``generation_config.json``."""
    from pellucid.tokenize.load import known_kinds

    parts = Parts(path, _read(path))
    kinds = {name: kind for name, kind in known_kinds().items() if hasattr(kind, "claims")}
    claiming = [kind for kind in kinds.values() if kind.claims(parts)]
    if not claiming:
        raise UnsupportedModel(
            f"{path.name}: model type {parts.model['type']!r} is not implemented; known are {', '.join(kinds)}"
        )
    model: Model = claiming[0].from_json(parts)
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
    ends = generation.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    if not all(end is None or (type(end) is int and 0 <= end < vocabulary.size) for end in listed):
        raise FileFormatError(
            path.parent / "generation_config.json", "eos_token_id", f"{ends!r} is not a token id"
        )
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(token for token in parts.added if not token.normalized),
        normalized_added=AddedTokens(token for token in parts.added if token.normalized),
        normalizer=normalize.sequence(_normalizers(parts, parts.of("normalizer"))),
        pre_tokenizer=pretokenize.sequence(_pre_tokenizers(parts, parts.of("pre_tokenizer"))),
        model=model,
        post_processor=_post_processor(parts, parts.of("post_processor")),
        decoder=_decoder(parts, parts.of("decoder")),
        bos_id=vocabulary.ids.get(named.get("bos_token", "")),
        eos_ids=end_ids(vocabulary, [*listed, vocabulary.ids.get(named.get("eos_token", ""))]),
        chat_template=_chat_template(path.parent, config),
        named_tokens=named,
    )


def _normalizers(parts: Parts, spec: Json | None) -> list[Normalizer]:
    if spec is None:
        return []
    kind = spec.get("type")
    check: Callable[..., Json] = lambda *known: parts.component(spec, "normalizer", *known)  # noqa: E731
    if kind == "Sequence":
        return [
            stage for inner in check("normalizers")["normalizers"] for stage in _normalizers(parts, inner)
        ]
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        check()
        return [normalize.Form(kind)]
    if kind == "Replace":
        check("pattern", "content")
        pattern, is_pattern = _pattern(parts, spec["pattern"])
        return [normalize.Replace(pattern, spec["content"], is_pattern)]
    if kind == "Prepend":
        return [normalize.Prepend(check("prepend")["prepend"])]
    if kind == "Strip":
        check("strip_left", "strip_right")
        return [normalize.Strip(bool(spec["strip_left"]), bool(spec["strip_right"]))]
    if kind in ("Lowercase", "StripAccents"):
        check()
        return [normalize.Lowercase() if kind == "Lowercase" else normalize.StripAccents()]
    if kind == "BertNormalizer":
        check("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
        accents = spec["lowercase"] if spec["strip_accents"] is None else spec["strip_accents"]
        flags = (spec["clean_text"], spec["handle_chinese_chars"], accents, spec["lowercase"])
        return [normalize.Bert(*map(bool, flags))]
    known = "Sequence, NFC, NFD, NFKC, NFKD, Replace, Prepend, Strip, Lowercase, StripAccents, BertNormalizer"
    raise UnsupportedModel(f"{parts.path.name}: normalizer {kind!r} is not implemented; known are {known}")


def _pre_tokenizers(parts: Parts, spec: Json | None) -> list[PreTokenizer]:
    if spec is None:
        return []
    kind = spec.get("type")
    check: Callable[..., Json] = lambda *known, **allowed: parts.component(  # noqa: E731
        spec, "pre_tokenizer", *known, **allowed
    )
    if kind == "Sequence":
        inner = check("pretokenizers")["pretokenizers"]
        return [stage for one in inner for stage in _pre_tokenizers(parts, one)]
    if kind == "ByteLevel":
        # The change of alphabet that this stands for is in the model stage (kinds/byte_bpe.py).
        check("add_prefix_space", "trim_offsets", "use_regex")
        prefix: list[PreTokenizer] = [pretokenize.PrefixSpace()] if spec.get("add_prefix_space") else []
        return [*prefix, pretokenize.Split(GPT2)] if spec.get("use_regex", True) else prefix
    if kind == "Split":
        check("pattern", "behavior", "invert", behavior=pretokenize.BEHAVIORS)
        pattern, is_pattern = _pattern(parts, spec["pattern"])
        return [
            pretokenize.Split(
                pattern if is_pattern else _escape(pattern), spec["behavior"], bool(spec["invert"])
            )
        ]
    if kind == "Digits":
        each = check("individual_digits").get("individual_digits")
        return [pretokenize.Split(r"\p{N}", "Isolated" if each else "Contiguous")]
    if kind == "BertPreTokenizer":
        check()
        return [pretokenize.BERT]
    if kind == "WhitespaceSplit":
        check()
        return [pretokenize.Split(r"\p{White_Space}+", "Removed")]
    if kind == "Metaspace":
        check("replacement", "prepend_scheme", "split", prepend_scheme=("always", "first", "never"))
        space = spec["replacement"]
        stages: list[PreTokenizer] = [pretokenize.Translate(" ", space)]
        if spec["prepend_scheme"] != "never":
            stages.append(pretokenize.PrefixSpace(space, spec["prepend_scheme"] == "first"))
        if spec.get("split", True):
            stages.append(pretokenize.Split(_escape(space), "MergedWithNext"))
        return stages
    known = "Sequence, ByteLevel, Split, Digits, BertPreTokenizer, WhitespaceSplit, Metaspace"
    raise UnsupportedModel(f"{parts.path.name}: pre_tokenizer {kind!r} is not implemented; known are {known}")


def _post_processor(parts: Parts, spec: Json | None) -> Template:
    kind = None if spec is None else spec.get("type")
    if spec is None or kind == "ByteLevel":
        return Template()
    if kind == "Sequence":
        inner = [_post_processor(parts, one) for one in spec["processors"]]
        acting = [template for template in inner if template != Template()]
        if len(acting) > 1:
            raise UnsupportedModel(
                f"{parts.path.name}: post_processor with {len(acting)} templates is not implemented"
            )
        return acting[0] if acting else Template()
    if kind == "TemplateProcessing":
        parts.component(spec, "post_processor", "single", "pair", "special_tokens")
        return Template(_template(parts, spec, "single"), _template(parts, spec, "pair"))
    if kind in ("BertProcessing", "RobertaProcessing"):
        cls, sep = (parts.id_of(spec[key][0], f"post_processor.{key}") for key in ("cls", "sep"))
        single = ((cls, 0), (A, 0), (sep, 0))
        if kind == "BertProcessing":
            return Template(single, (*single, (B, 1), (sep, 1)))
        return Template(single, (*single, (sep, 0), (B, 0), (sep, 0)))
    known = "Sequence, ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing"
    raise UnsupportedModel(
        f"{parts.path.name}: post_processor {kind!r} is not implemented; known are {known}"
    )


def _template(parts: Parts, spec: Json, name: str) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for item in spec[name]:
        if "Sequence" in item:
            out.append(({"A": A, "B": B}[item["Sequence"]["id"]], item["Sequence"]["type_id"]))
            continue
        token = spec["special_tokens"].get(item["SpecialToken"]["id"])
        ids = token["ids"] if token else ()
        if not ids or not all(type(i) is int and 0 <= i < parts.vocabulary.size for i in ids):
            field = f"post_processor.special_tokens[{item['SpecialToken']['id']!r}]"
            raise FileFormatError(parts.path, field, "its ids are missing or outside the vocabulary")
        out.extend((index, item["SpecialToken"]["type_id"]) for index in ids)
    return tuple(out)


def _decoder(parts: Parts, spec: Json | None) -> Decoder:
    kind = None if spec is None else spec.get("type")
    tokens = parts.vocabulary.tokens
    verbatim = frozenset(token.id for token in parts.added)
    if kind == "ByteLevel":
        return ByteLevelDecoder(tokens, verbatim)
    if spec is not None and kind == "WordPiece":
        parts.component(spec, "decoder", "prefix", "cleanup")
        return WordPieceDecoder(tokens, spec["prefix"], bool(spec["cleanup"]))
    if spec is not None and kind == "Sequence":
        from pellucid.tokenize.kinds.sentencepiece_bpe import SPACE, byte_table

        replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        usual = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if spec["decoders"] in (usual, [*usual, strip]):
            values = byte_table(parts.vocabulary, parts.path, "model.vocab")
            verbatim = frozenset(token.id for token in parts.added if token.special)
            return ByteFallbackDecoder(tokens, values, verbatim, strip=spec["decoders"] != usual)
        inner = ", ".join(str(one.get("type")) for one in spec["decoders"])
        raise UnsupportedModel(
            f"{parts.path.name}: decoder Sequence of {inner} is not implemented; "
            "known is Replace ▁, ByteFallback, Fuse and perhaps Strip"
        )
    raise UnsupportedModel(
        f"{parts.path.name}: decoder {kind!r} is not implemented; known are ByteLevel, WordPiece, Sequence"
    )


def _pattern(parts: Parts, spec: Any) -> tuple[str, bool]:
    """(text, whether it is a pattern) of ``{"String": …}`` or ``{"Regex": …}``."""
    if isinstance(spec, dict) and len(spec) == 1 and isinstance(text := next(iter(spec.values())), str):
        if "Regex" in spec:
            import regex

            try:
                regex.compile(text)
            except regex.error as bad:
                raise UnsupportedModel(
                    f"{parts.path.name}: pattern {text!r} is not understood: {bad}"
                ) from None
            return text, True
        if "String" in spec:
            return text, False
    raise FileFormatError(parts.path, "pattern", f"{spec!r} is neither a String nor a Regex")


def _escape(text: str) -> str:
    from re import escape

    return escape(text)


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
