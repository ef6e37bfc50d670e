"""The components of a ``tokenizer.json``: the stage for each ``type`` of normalizer, pre-tokenizer, …

In: a component's JSON, checked field by field by :class:`TokenizerJson`. Out: the stage. A type that is not implemented
raises :class:`UnsupportedModel` with the list of implemented types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief, shown
from pellucid.kernels.text.split import BEHAVIORS
from pellucid.tokenize.encoding import Padding, Truncation
from pellucid.tokenize.files.tokenizer_json import MAX_LETTERS, MAX_STAGES, Json, TokenizerJson, flat
from pellucid.tokenize.patterns.matcher import matcher
from pellucid.tokenize.patterns.oniguruma_sets import PatternError, quoted
from pellucid.tokenize.patterns.published import GPT2
from pellucid.tokenize.patterns.tree import sets
from pellucid.tokenize.stages import normalize, pretokenize
from pellucid.tokenize.stages.normalize import Normalizer
from pellucid.tokenize.stages.postprocess import A, B, Template, Trim
from pellucid.tokenize.stages.pretokenize import Change, Split, Stage
from pellucid.tokenize.unicode import union

MAX_IDS, MAX_SEGMENTS = 1 << 31, (1 << 32) - 1  # ids per text; greatest segment, u32 in ``tokenizers``
MAX_FILLED = 1 << 20  # ids of a padded text


def normalizers(parts: TokenizerJson, spec: Json | None) -> list[Normalizer]:
    """The steps of the normalizer, with sequences flattened."""
    each = flat(parts, spec, "normalizer", "normalizers")
    return [stage for one in each for stage in _normalizers(parts, one)]


def pre_tokenizers(parts: TokenizerJson, spec: Json | None) -> list[Stage]:
    """The steps of the pre-tokenizer, with sequences flattened."""
    each = flat(parts, spec, "pre_tokenizer", "pretokenizers")
    return [stage for one in each for stage in _pre_tokenizers(parts, one)]


def unspelled(stages: Sequence[Stage]) -> list[Stage] | None:
    """The stages without SPELLING; None if it is not there exactly once, or if a later stage depends on it."""
    places = [at for at, stage in enumerate(stages) if stage == SPELLING]
    if len(places) != 1 or not all(map(_same_in_bytes, stages[places[0] + 1 :])):
        return None
    return [stage for stage in stages if stage != SPELLING]


SPELLING = Change(normalize.ByteLevel())
"""The pre-tokenizer ByteLevel without its prefix and its pattern: it spells bytes in the byte alphabet."""


def _same_in_bytes(stage: Stage) -> bool:
    """True if a step acts the same on text in the byte alphabet: its pattern looks only for printable ASCII."""
    if not isinstance(stage, Split):
        return False
    asked = union(sets(matcher(stage.pattern).tree))
    return bool(asked) and asked[0][0] >= 0x21 and asked[-1][1] <= 0x7E


def _normalizers(parts: TokenizerJson, spec: Json) -> list[Normalizer]:
    kind = spec.get("type")
    check: Callable[..., Json] = lambda *known: parts.component(spec, "normalizer", *known)  # noqa: E731
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        check()
        return [normalize.Normalize(kind)]
    if kind == "Replace":
        check("pattern", "content")
        found, is_pattern = pattern(parts, spec["pattern"])
        return [normalize.Replace(found, parts.text(spec, "content"), is_pattern)]
    if kind == "Prepend":
        return [normalize.Prepend(parts.text(check("prepend"), "prepend"))]
    if kind == "Strip":
        check("strip_left", "strip_right")
        return [normalize.Strip(bool(spec["strip_left"]), bool(spec["strip_right"]))]
    if kind in _PLAIN:
        check()
        return [_PLAIN[kind]()]
    if kind == "Precompiled":
        from pellucid.tokenize.stages.precompiled_charsmap import CharsMap, Precompiled

        text = parts.text(check("precompiled_charsmap"), "precompiled_charsmap")
        return [Precompiled(CharsMap.from_base64(text, parts.path, "normalizer.precompiled_charsmap"))]
    if kind == "BertNormalizer":
        check("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
        accents = spec["lowercase"] if spec["strip_accents"] is None else spec["strip_accents"]
        flags = (spec["clean_text"], spec["handle_chinese_chars"], accents, spec["lowercase"])
        return [normalize.Bert(*map(bool, flags))]
    known = "Sequence, NFC, NFD, NFKC, NFKD, Replace, Prepend, Strip, BertNormalizer, Precompiled"
    raise UnsupportedModel(
        f"{parts.path.name}: normalizer {brief(kind)} is not implemented; known are {known}, {', '.join(_PLAIN)}"
    )


_PLAIN: dict[Any, Callable[[], Normalizer]] = {
    "Lowercase": normalize.Lowercase,
    "StripAccents": normalize.StripAccents,
    "Nmt": normalize.Nmt,
}


def _pre_tokenizers(parts: TokenizerJson, spec: Json) -> list[Stage]:
    kind = spec.get("type")
    check: Callable[..., Json] = lambda *known, **allowed: parts.component(  # noqa: E731
        spec, "pre_tokenizer", *known, **allowed
    )
    if kind == "ByteLevel":
        check("add_prefix_space", "trim_offsets", "use_regex")
        prefix: list[Stage] = []
        if spec.get("add_prefix_space"):
            prefix = [Change(normalize.Prepend(" ", unless_there=True))]
        return [*prefix, *([Split(GPT2)] if spec.get("use_regex", True) else []), SPELLING]
    if kind == "Split":
        check("pattern", "behavior", "invert", behavior=BEHAVIORS)
        found, is_pattern = pattern(parts, spec["pattern"])
        return [Split(found if is_pattern else quoted(found), spec["behavior"], bool(spec["invert"]))]
    if kind == "Digits":
        each = check("individual_digits").get("individual_digits")
        return [Split(r"\p{N}", "Isolated" if each else "Contiguous")]
    if kind == "Punctuation":
        check("behavior", behavior=BEHAVIORS)
        return [Split(pretokenize.PUNCTUATION.pattern, spec.get("behavior", "Isolated"))]
    if kind == "CharDelimiterSplit":
        return [Split(quoted(_searchable(parts, parts.text(check("delimiter"), "delimiter"))), "Removed")]
    if kind == "FixedLength":
        return [pretokenize.Chunks(parts.whole(check("length"), "length", 1, MAX_IDS, 5))]
    if kind in _CUTS:
        check()
        return [_CUTS[kind]]
    if kind == "Metaspace":
        # Older files have add_prefix_space, and store the replacement twice.
        check("replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep")
        scheme = spec.get("prepend_scheme", "always" if spec.get("add_prefix_space", True) else "never")
        parts.component({"prepend_scheme": scheme}, "Metaspace", "prepend_scheme", prepend_scheme=_SCHEMES)
        space = _searchable(parts, parts.text(spec, "replacement"))
        stages: list[Stage] = [Change(normalize.Replace(" ", space))]
        if scheme != "never":
            stages.append(Change(normalize.Prepend(space, unless_there=True), only_first=scheme == "first"))
        if spec.get("split", True):
            stages.append(Split(quoted(space), "MergedWithNext"))
        return stages
    known = "Sequence, ByteLevel, Split, Digits, Punctuation, CharDelimiterSplit, FixedLength, Metaspace"
    raise UnsupportedModel(
        f"{parts.path.name}: pre_tokenizer {brief(kind)} is not implemented; known are {known}, {', '.join(_CUTS)}"
    )


_SCHEMES = ("always", "first", "never")
_CUTS: dict[Any, Split] = {
    "BertPreTokenizer": pretokenize.BERT,
    "WhitespaceSplit": pretokenize.WHITE_SPACE,
    "Whitespace": pretokenize.WORDS,
}


def post_processors(parts: TokenizerJson, spec: Json | None) -> tuple[Template, tuple[Trim, ...]]:
    """The template around texts, and the trims of offsets that run before it."""
    kind = None if spec is None else spec.get("type")
    if spec is None:
        return Template(), ()
    if kind == "ByteLevel":
        parts.component(spec, "post_processor", "add_prefix_space", "trim_offsets", "use_regex")
        return Template(), _trims(spec)
    if kind == "Sequence":
        parts.component(spec, "post_processor", "processors")
        if (count := len(spec["processors"])) > MAX_STAGES:
            raise UnsupportedModel(
                f"{parts.path.name}: post_processor of {count:,} components; {MAX_STAGES} are allowed"
            )
        if any(one.get("type") == "Sequence" for one in spec["processors"]):
            raise UnsupportedModel(
                f"{parts.path.name}: post_processor Sequence in a Sequence is not implemented"
            )
        inner = [post_processors(parts, one) for one in spec["processors"]]
        acting = [template for template, _ in inner if template != Template()]
        if len(acting) > 1:
            raise UnsupportedModel(
                f"{parts.path.name}: post_processor with {len(acting)} templates is not implemented"
            )
        return acting[0] if acting else Template(), tuple(trim for _, trims in inner for trim in trims)
    if kind == "TemplateProcessing":
        parts.component(spec, "post_processor", "single", "pair", "special_tokens")
        return Template(_template(parts, spec, "single"), _template(parts, spec, "pair")), ()
    if kind in ("BertProcessing", "RobertaProcessing"):
        parts.component(spec, "post_processor", "cls", "sep", "trim_offsets", "add_prefix_space")
        cls, sep = (_named(parts, spec[key], f"post_processor.{key}") for key in ("cls", "sep"))
        single = ((cls, 0), (A, 0), (sep, 0))
        if kind == "BertProcessing":
            return Template(single, (*single, (B, 1), (sep, 1))), ()
        return Template(single, (*single, (sep, 0), (B, 0), (sep, 0))), _trims(spec)
    known = "Sequence, ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing"
    raise UnsupportedModel(
        f"{parts.path.name}: post_processor {brief(kind)} is not implemented; known are {known}"
    )


def _named(parts: TokenizerJson, token: Any, field: str) -> int:
    """The checked id of a token written as ``["[SEP]", 3]``."""
    index = parts.id_of(token[0], field)
    if token[1:] != [index]:
        raise FileFormatError(parts.path, field, f"{brief(token)}: the vocabulary has it as {index}")
    return index


def _trims(spec: Json) -> tuple[Trim, ...]:
    return (Trim(bool(spec.get("add_prefix_space", True))),) if spec.get("trim_offsets", True) else ()


def _template(parts: TokenizerJson, spec: Json, name: str) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for item in spec[name]:
        if "Sequence" in item:
            segment = parts.whole(item["Sequence"], "type_id", 0, MAX_SEGMENTS)
            out.append(({"A": A, "B": B}[item["Sequence"]["id"]], segment))
            continue
        token = spec["special_tokens"].get(item["SpecialToken"]["id"])
        ids = token["ids"] if token else ()
        field = f"post_processor.special_tokens[{brief(item['SpecialToken']['id'])}]"
        if not ids or not all(type(i) is int and 0 <= i < parts.vocabulary.size for i in ids):
            raise FileFormatError(parts.path, field, "its ids are missing or outside the vocabulary")
        if token is None or len(token["tokens"]) != len(ids):
            raise FileFormatError(parts.path, f"{field}.tokens", f"not one for each of {len(ids)} ids")
        segment = parts.whole(item["SpecialToken"], "type_id", 0, MAX_SEGMENTS)
        out.extend((index, segment) for index in ids)
    return tuple(out)


def truncation(parts: TokenizerJson, spec: Json | None) -> Truncation | None:
    """The file's truncation settings."""
    if spec is None:
        return None
    parts.component(spec, "truncation", "direction", "max_length", "strategy", "stride")
    strategies = {"LongestFirst": "longest_first", "OnlyFirst": "only_first", "OnlySecond": "only_second"}
    strategy: Any = strategies.get(spec["strategy"], spec["strategy"])
    side: Any = spec.get("direction", "Right").lower()
    longest, stride = (parts.whole(spec, key, 0, MAX_IDS) for key in ("max_length", "stride"))
    return Truncation(longest, stride, strategy, side)


def padding(parts: TokenizerJson, spec: Json | None) -> Padding | None:
    """The file's padding settings."""
    if spec is None:
        return None
    parts.component(
        spec,
        "padding",
        *("strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"),
    )
    strategy, multiple = spec["strategy"], spec.get("pad_to_multiple_of")
    length = parts.whole(strategy, "Fixed", 0, MAX_FILLED) if isinstance(strategy, dict) else None
    if multiple is not None:
        multiple = parts.whole(spec, "pad_to_multiple_of", 0, MAX_FILLED)
    side: Any = spec["direction"].lower()
    token, index = parts.text(spec, "pad_token"), parts.whole(spec, "pad_id", 0, MAX_SEGMENTS)
    segment = parts.whole(spec, "pad_type_id", 0, MAX_SEGMENTS)
    return Padding(index, token, length, multiple, segment, side)


def _searchable(parts: TokenizerJson, text: str) -> str:
    """Return the text. Raises :class:`UnsupportedModel` if it is too long to search for."""
    if len(text) > MAX_LETTERS:
        raise UnsupportedModel(
            f"{parts.path.name}: {brief(text)} of {len(text):,} characters, which is to be looked for; "
            f"{MAX_LETTERS:,} are allowed"
        )
    return text


def pattern(parts: TokenizerJson, spec: Any) -> tuple[str, bool]:
    """The text in ``{"String": …}`` or ``{"Regex": …}``, and True for a Regex."""
    if isinstance(spec, dict) and len(spec) == 1 and isinstance(text := next(iter(spec.values())), str):
        if "Regex" in spec:
            try:
                matcher(text)
            except PatternError as bad:
                raise UnsupportedModel(f"{parts.path.name}: pattern {shown(text)!r}: {bad}") from None
            return text, True
        if "String" in spec:
            return _searchable(parts, text), False
    raise FileFormatError(parts.path, "pattern", f"{brief(spec)} is neither a String nor a Regex")
