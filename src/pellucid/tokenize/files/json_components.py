"""The components of a ``tokenizer.json``: the stage for each ``type`` of normalizer, pre-tokenizer, decoder, …

In: a component's JSON, checked field by field by :class:`TokenizerJson`. Out: the stage. A type that is not implemented
raises :class:`UnsupportedModel` with the list of implemented types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.errors import UnsupportedModel, brief, shown
from pellucid.kernels.text.split import BEHAVIORS
from pellucid.tokenize.encoding import Padding, Truncation
from pellucid.tokenize.files.tokenizer_json import MAX_LETTERS, ComponentReader, Json, TokenizerJson, read_steps
from pellucid.tokenize.patterns.matcher import matcher
from pellucid.tokenize.patterns.oniguruma_sets import PatternError, quoted
from pellucid.tokenize.patterns.published import GPT2
from pellucid.tokenize.patterns.tree import sets
from pellucid.tokenize.stages import decode_steps, normalize, pretokenize
from pellucid.tokenize.stages.decode import Decoder
from pellucid.tokenize.stages.normalize import Normalizer
from pellucid.tokenize.stages.postprocess import A, B, Template, Trim
from pellucid.tokenize.stages.pretokenize import NormalizeStep, Split, Stage
from pellucid.tokenize.unicode import union
from pellucid.tokenize.vocabulary import TokenType

MAX_IDS, MAX_TYPE_ID = 1 << 31, (1 << 32) - 1  # ids per text; greatest type id, u32 in ``tokenizers``
MAX_FILLED = 1 << 20  # ids of a padded text


def normalizers(parts: TokenizerJson, spec: Json | None) -> list[Normalizer]:
    """The steps of the normalizer."""
    return read_steps(parts, spec, "normalizer", "normalizers", _NORMALIZERS)


def _replace(parts: TokenizerJson, spec: Json) -> normalize.Replace:
    old, is_pattern = pattern(parts, spec["pattern"])
    return normalize.Replace(old, parts.text(spec, "content"), is_pattern)


def _precompiled(parts: TokenizerJson, spec: Json) -> Normalizer:
    from pellucid.tokenize.stages.precompiled_charsmap import CharsMap, PrecompiledNormalizer

    text = parts.text(spec, "precompiled_charsmap")
    return PrecompiledNormalizer(CharsMap.from_base64(text, parts.path, "normalizer.precompiled_charsmap"))


def _bert(parts: TokenizerJson, spec: Json) -> Normalizer:
    accents = spec["lowercase"] if spec["strip_accents"] is None else spec["strip_accents"]
    flags = (spec["clean_text"], spec["handle_chinese_chars"], accents, spec["lowercase"])
    return normalize.Bert(*map(bool, flags))


_BERT_FIELDS = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
_NORMALIZERS: dict[str, ComponentReader[Normalizer]] = {
    **{
        form: ComponentReader(lambda _, spec: normalize.Normalize(spec["type"]))
        for form in ("NFC", "NFD", "NFKC", "NFKD")
    },
    "Replace": ComponentReader(_replace, ("pattern", "content")),
    "Prepend": ComponentReader(lambda parts, spec: normalize.Prepend(parts.text(spec, "prepend")), ("prepend",)),
    "Strip": ComponentReader(
        lambda _, spec: normalize.Strip(bool(spec["strip_left"]), bool(spec["strip_right"])),
        ("strip_left", "strip_right"),
    ),
    "BertNormalizer": ComponentReader(_bert, _BERT_FIELDS),
    "Precompiled": ComponentReader(_precompiled, ("precompiled_charsmap",)),
    "Lowercase": ComponentReader(lambda *_: normalize.Lowercase()),
    "StripAccents": ComponentReader(lambda *_: normalize.StripAccents()),
    "Nmt": ComponentReader(lambda *_: normalize.Nmt()),
}


def pre_tokenizers(parts: TokenizerJson, spec: Json | None) -> list[Stage]:
    """The steps of the pre-tokenizer."""
    return [
        stage
        for stages in read_steps(parts, spec, "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS)
        for stage in stages
    ]


def unspelled(stages: Sequence[Stage]) -> list[Stage] | None:
    """The stages without SPELLING. None if SPELLING does not occur exactly once, or if a later stage depends on it."""
    places = [at for at, stage in enumerate(stages) if stage == SPELLING]
    if len(places) != 1 or not all(map(_same_in_bytes, stages[places[0] + 1 :])):
        return None
    return [stage for stage in stages if stage != SPELLING]


SPELLING = NormalizeStep(normalize.ByteLevel())
"""The pre-tokenizer ByteLevel without its prefix and its pattern: it spells bytes in the byte alphabet."""


def _same_in_bytes(stage: Stage) -> bool:
    """True if a step acts the same on text in the byte alphabet, because its pattern has only printable ASCII."""
    if not isinstance(stage, Split):
        return False
    searched = union(sets(matcher(stage.pattern).tree))
    return bool(searched) and searched[0][0] >= 0x21 and searched[-1][1] <= 0x7E


def _byte_level(parts: TokenizerJson, spec: Json) -> list[Stage]:
    prefix = [NormalizeStep(normalize.Prepend(" ", unless_there=True))] if spec.get("add_prefix_space") else []
    return [*prefix, *([Split(GPT2)] if spec.get("use_regex", True) else []), SPELLING]


def _split(parts: TokenizerJson, spec: Json) -> list[Stage]:
    text, is_pattern = pattern(parts, spec["pattern"])
    return [Split(text if is_pattern else quoted(text), spec["behavior"], bool(spec["invert"]))]


def _metaspace(parts: TokenizerJson, spec: Json) -> list[Stage]:
    scheme = prepend_scheme(spec)
    allowed = ("always", "first", "never")
    parts.component({"prepend_scheme": scheme}, "Metaspace", "prepend_scheme", prepend_scheme=allowed)
    space = _searchable(parts, parts.text(spec, "replacement"))
    stages: list[Stage] = [NormalizeStep(normalize.Replace(" ", space))]
    if scheme != "never":
        stages.append(NormalizeStep(normalize.Prepend(space, unless_there=True), only_first=scheme == "first"))
    if spec.get("split", True):
        stages.append(Split(quoted(space), "MergedWithNext"))
    return stages


def prepend_scheme(spec: Json) -> Any:
    """The ``prepend_scheme`` of a Metaspace component. Older files have ``add_prefix_space`` instead."""
    return spec.get("prepend_scheme", "always" if spec.get("add_prefix_space", True) else "never")


BYTE_LEVEL_FIELDS = ("add_prefix_space", "trim_offsets", "use_regex")
METASPACE_FIELDS = ("replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep")
"""Older files store the replacement twice."""
_BEHAVIORS = {"behavior": BEHAVIORS}
_PRE_TOKENIZERS: dict[str, ComponentReader[list[Stage]]] = {
    "ByteLevel": ComponentReader(_byte_level, BYTE_LEVEL_FIELDS),
    "Split": ComponentReader(_split, ("pattern", "behavior", "invert"), _BEHAVIORS),
    "Digits": ComponentReader(
        lambda _, spec: [Split(r"\p{N}", "Isolated" if spec.get("individual_digits") else "Contiguous")],
        ("individual_digits",),
    ),
    "Punctuation": ComponentReader(
        lambda _, spec: [Split(pretokenize.PUNCTUATION.pattern, spec.get("behavior", "Isolated"))],
        ("behavior",),
        _BEHAVIORS,
    ),
    "CharDelimiterSplit": ComponentReader(
        lambda parts, spec: [Split(quoted(_searchable(parts, parts.text(spec, "delimiter"))), "Removed")],
        ("delimiter",),
    ),
    "FixedLength": ComponentReader(
        lambda parts, spec: [pretokenize.Chunks(parts.whole(spec, "length", 1, MAX_IDS, 5))], ("length",)
    ),
    "Metaspace": ComponentReader(_metaspace, METASPACE_FIELDS),
    "BertPreTokenizer": ComponentReader(lambda *_: [pretokenize.BERT]),
    "WhitespaceSplit": ComponentReader(lambda *_: [pretokenize.WHITE_SPACE]),
    "Whitespace": ComponentReader(lambda *_: [pretokenize.WORDS]),
}


def post_processors(parts: TokenizerJson, spec: Json | None) -> tuple[Template, tuple[Trim, ...]]:
    """The template around texts, and the trims of offsets that run before it."""
    steps = read_steps(parts, spec, "post_processor", "processors", _POST_PROCESSORS)
    templates = [template for template, _ in steps if template != Template()]
    if len(templates) > 1:
        raise UnsupportedModel(f"{parts.path.name}: post_processor with {len(templates)} templates is not implemented")
    return templates[0] if templates else Template(), tuple(trim for _, trims in steps for trim in trims)


def _cls_sep(parts: TokenizerJson, spec: Json) -> tuple[Template, tuple[Trim, ...]]:
    cls, sep = (_named(parts, spec[key], f"post_processor.{key}") for key in ("cls", "sep"))
    single = ((cls, 0), (A, 0), (sep, 0))
    if spec["type"] == "BertProcessing":
        return Template(single, (*single, (B, 1), (sep, 1))), ()
    return Template(single, (*single, (sep, 0), (B, 0), (sep, 0))), _trims(spec)


_CLS_SEP_FIELDS = ("cls", "sep", "trim_offsets", "add_prefix_space")
_POST_PROCESSORS: dict[str, ComponentReader[tuple[Template, tuple[Trim, ...]]]] = {
    "ByteLevel": ComponentReader(lambda _, spec: (Template(), _trims(spec)), BYTE_LEVEL_FIELDS),
    "TemplateProcessing": ComponentReader(
        lambda parts, spec: (Template(_template(parts, spec, "single"), _template(parts, spec, "pair")), ()),
        ("single", "pair", "special_tokens"),
    ),
    "BertProcessing": ComponentReader(_cls_sep, _CLS_SEP_FIELDS),
    "RobertaProcessing": ComponentReader(_cls_sep, _CLS_SEP_FIELDS),
}


def _named(parts: TokenizerJson, token: Any, field: str) -> int:
    """The checked id of a token written as ``["[SEP]", 3]``."""
    index = parts.id_of(token[0], field)
    if token[1:] != [index]:
        raise parts.wrong(field, f"{brief(token)}: the vocabulary has it as {index}")
    return index


def _trims(spec: Json) -> tuple[Trim, ...]:
    return (Trim(bool(spec.get("add_prefix_space", True))),) if spec.get("trim_offsets", True) else ()


def _template(parts: TokenizerJson, spec: Json, name: str) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for item in spec[name]:
        if "Sequence" in item:
            type_id = parts.whole(item["Sequence"], "type_id", 0, MAX_TYPE_ID)
            out.append(({"A": A, "B": B}[item["Sequence"]["id"]], type_id))
            continue
        token = spec["special_tokens"].get(item["SpecialToken"]["id"])
        ids = token["ids"] if token else ()
        field = f"post_processor.special_tokens[{brief(item['SpecialToken']['id'])}]"
        if not ids or not all(type(i) is int and 0 <= i < parts.vocabulary.size for i in ids):
            raise parts.wrong(field, "its ids are missing or outside the vocabulary")
        if token is None or len(token["tokens"]) != len(ids):
            raise parts.wrong(f"{field}.tokens", f"must have one token for each of {len(ids)} ids")
        type_id = parts.whole(item["SpecialToken"], "type_id", 0, MAX_TYPE_ID)
        out.extend((index, type_id) for index in ids)
    return tuple(out)


def decoder(parts: TokenizerJson, spec: Json | None) -> Decoder:
    """The decoder; without ``spec``, it joins tokens with spaces."""
    steps = (
        read_steps(parts, spec, "decoder", "decoders", _DECODERS) if spec is not None else [decode_steps.JoinStep(" ")]
    )
    return decode_steps.StepDecoder(parts.spoken, steps, absent=parts.vocabulary.of_type(TokenType.UNUSED))


def _suffix(parts: TokenizerJson, spec: Json) -> decode_steps.Step:
    suffix = parts.text(spec, "suffix")
    if not suffix:
        raise parts.wrong("decoder.suffix", "is empty")
    return decode_steps.SuffixStep(suffix)


def _strip(parts: TokenizerJson, spec: Json) -> decode_steps.Step:
    if len(content := parts.text(spec, "content")) != 1:
        raise parts.wrong("decoder.content", f"{brief(content)} is not one character")
    return decode_steps.StripStep(content, *(parts.whole(spec, name, 0, MAX_IDS) for name in ("start", "stop")))


_DECODERS: dict[str, ComponentReader[decode_steps.Step]] = {
    "ByteLevel": ComponentReader(lambda *_: decode_steps.ByteLevelStep(), BYTE_LEVEL_FIELDS),
    "Metaspace": ComponentReader(
        lambda parts, spec: decode_steps.MetaspaceStep(
            parts.text(spec, "replacement"), prepend_scheme(spec) != "never"
        ),
        METASPACE_FIELDS,
    ),
    "WordPiece": ComponentReader(
        lambda parts, spec: decode_steps.WordPieceStep(parts.text(spec, "prefix"), bool(spec["cleanup"])),
        ("prefix", "cleanup"),
    ),
    "BPEDecoder": ComponentReader(_suffix, ("suffix",)),
    "Replace": ComponentReader(
        lambda parts, spec: decode_steps.ReplaceStep(_replace(parts, spec)), ("pattern", "content")
    ),
    "Strip": ComponentReader(_strip, ("content", "start", "stop")),
    "ByteFallback": ComponentReader(lambda *_: decode_steps.ByteFallbackStep()),
    "Fuse": ComponentReader(lambda *_: decode_steps.FuseStep()),
}


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
        spec, "padding", *("strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token")
    )
    strategy, multiple = spec["strategy"], spec.get("pad_to_multiple_of")
    length = parts.whole(strategy, "Fixed", 0, MAX_FILLED) if isinstance(strategy, dict) else None
    if multiple is not None:
        multiple = parts.whole(spec, "pad_to_multiple_of", 0, MAX_FILLED)
    side: Any = spec["direction"].lower()
    token, index = parts.text(spec, "pad_token"), parts.whole(spec, "pad_id", 0, MAX_TYPE_ID)
    type_id = parts.whole(spec, "pad_type_id", 0, MAX_TYPE_ID)
    return Padding(index, token, length, multiple, type_id, side)


def _searchable(parts: TokenizerJson, text: str) -> str:
    """Return the text. Raises :class:`UnsupportedModel` if it is too long to search for."""
    if len(text) > MAX_LETTERS:
        raise UnsupportedModel(
            f"{parts.path.name}: a stage searches for {brief(text)}, a text of {len(text):,} characters; "
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
    raise parts.wrong("pattern", f"{brief(spec)} is neither a String nor a Regex")
