"""The components of a ``tokenizer.json``: what each ``type`` of normalizer, pre-tokenizer, … is here.

In: a component's JSON, checked field by field through :class:`Parts`. Out: the stage. What is not listed raises
:class:`UnsupportedModel` with the list of what is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.kernels.text_split import BEHAVIORS
from pellucid.tokenize import normalize, pretokenize
from pellucid.tokenize.decode import ByteFallbackDecoder, ByteLevelDecoder, Decoder, WordPieceDecoder
from pellucid.tokenize.patterns import GPT2
from pellucid.tokenize.postprocess import A, B, Template

if TYPE_CHECKING:
    from pellucid.tokenize.base import Normalizer, PreTokenizer
    from pellucid.tokenize.huggingface import Json, Parts


def normalizers(parts: Parts, spec: Json | None) -> list[Normalizer]:
    if spec is None:
        return []
    kind = spec.get("type")
    check: Callable[..., Json] = lambda *known: parts.component(spec, "normalizer", *known)  # noqa: E731
    if kind == "Sequence":
        return [stage for inner in check("normalizers")["normalizers"] for stage in normalizers(parts, inner)]
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        check()
        return [normalize.Form(kind)]
    if kind == "Replace":
        check("pattern", "content")
        pattern, is_pattern = _pattern(parts, spec["pattern"])
        return [normalize.Replace(pattern, parts.text(spec, "content"), is_pattern)]
    if kind == "Prepend":
        return [normalize.Prepend(parts.text(check("prepend"), "prepend"))]
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


def pre_tokenizers(parts: Parts, spec: Json | None) -> list[PreTokenizer]:
    if spec is None:
        return []
    kind = spec.get("type")
    check: Callable[..., Json] = lambda *known, **allowed: parts.component(  # noqa: E731
        spec, "pre_tokenizer", *known, **allowed
    )
    if kind == "Sequence":
        inner = check("pretokenizers")["pretokenizers"]
        return [stage for one in inner for stage in pre_tokenizers(parts, one)]
    if kind == "ByteLevel":
        # The change of alphabet that this stands for is in the model stage (kinds/byte_bpe.py).
        check("add_prefix_space", "trim_offsets", "use_regex")
        prefix: list[PreTokenizer] = [pretokenize.PrefixSpace()] if spec.get("add_prefix_space") else []
        return [*prefix, pretokenize.Split(GPT2)] if spec.get("use_regex", True) else prefix
    if kind == "Split":
        check("pattern", "behavior", "invert", behavior=BEHAVIORS)
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
        return [pretokenize.BertSplit()]
    if kind == "WhitespaceSplit":
        check()
        return [pretokenize.Split(r"\p{White_Space}+", "Removed")]
    if kind == "Metaspace":
        check("replacement", "prepend_scheme", "split", prepend_scheme=("always", "first", "never"))
        space = parts.text(spec, "replacement")
        stages: list[PreTokenizer] = [pretokenize.Translate(" ", space)]
        if spec["prepend_scheme"] != "never":
            stages.append(pretokenize.PrefixSpace(space, spec["prepend_scheme"] == "first"))
        if spec.get("split", True):
            stages.append(pretokenize.Split(_escape(space), "MergedWithNext"))
        return stages
    known = "Sequence, ByteLevel, Split, Digits, BertPreTokenizer, WhitespaceSplit, Metaspace"
    raise UnsupportedModel(f"{parts.path.name}: pre_tokenizer {kind!r} is not implemented; known are {known}")


def post_processor(parts: Parts, spec: Json | None) -> Template:
    kind = None if spec is None else spec.get("type")
    if spec is None:
        return Template()
    if kind == "ByteLevel":
        # It moves offsets, not ids.
        parts.component(spec, "post_processor", "add_prefix_space", "trim_offsets", "use_regex")
        return Template()
    if kind == "Sequence":
        parts.component(spec, "post_processor", "processors")
        inner = [post_processor(parts, one) for one in spec["processors"]]
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
        parts.component(spec, "post_processor", "cls", "sep", "trim_offsets", "add_prefix_space")
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


def decoder(parts: Parts, spec: Json | None) -> Decoder:
    kind = None if spec is None else spec.get("type")
    tokens = parts.vocabulary.tokens
    verbatim = frozenset(token.id for token in parts.added)
    if kind == "ByteLevel":
        parts.component(spec or {}, "decoder", "add_prefix_space", "trim_offsets", "use_regex")
        return ByteLevelDecoder(tokens, verbatim)
    if spec is not None and kind == "WordPiece":
        parts.component(spec, "decoder", "prefix", "cleanup")
        return WordPieceDecoder(tokens, parts.text(spec, "prefix"), bool(spec["cleanup"]))
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
            import regex  # type: ignore[import-untyped]

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
