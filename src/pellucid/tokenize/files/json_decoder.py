"""The decoder of a ``tokenizer.json``: the step for each ``type``, in the order of the file.

A type that is not implemented raises :class:`UnsupportedModel` with the list of implemented types.
"""

from __future__ import annotations

from pellucid.errors.messages import brief
from pellucid.tokenize.files.json_components import (
    BYTE_LEVEL_FIELDS,
    MAX_IDS,
    METASPACE_FIELDS,
    pattern,
    prepend_scheme,
)
from pellucid.tokenize.files.tokenizer_json import ComponentReader, Json, TokenizerJson, read_steps
from pellucid.tokenize.stages.decode import Decoder
from pellucid.tokenize.stages.decode_steps import (
    ByteFallbackStep,
    ByteLevelStep,
    FuseStep,
    JoinStep,
    MetaspaceStep,
    ReplaceStep,
    Step,
    StripStep,
    SuffixStep,
    WordPieceStep,
)
from pellucid.tokenize.stages.normalize import Replace
from pellucid.tokenize.stages.step_decoder import StepDecoder
from pellucid.tokenize.vocabulary import TokenType


def decoder(parts: TokenizerJson, spec: Json | None) -> Decoder:
    """The decoder; without ``spec``, it joins tokens with spaces."""
    steps = read_steps(parts, spec, "decoder", "decoders", _STEPS) if spec is not None else [JoinStep(" ")]
    return StepDecoder(parts.spoken, steps, absent=parts.vocabulary.of_type(TokenType.UNUSED))


def _suffix(parts: TokenizerJson, spec: Json) -> Step:
    suffix = parts.text(spec, "suffix")
    if not suffix:
        raise parts.wrong("decoder.suffix", "is empty")
    return SuffixStep(suffix)


def _strip(parts: TokenizerJson, spec: Json) -> Step:
    if len(content := parts.text(spec, "content")) != 1:
        raise parts.wrong("decoder.content", f"{brief(content)} is not one character")
    return StripStep(content, *(parts.whole(spec, name, 0, MAX_IDS) for name in ("start", "stop")))


def _replace(parts: TokenizerJson, spec: Json) -> Step:
    old, is_pattern = pattern(parts, spec["pattern"])
    return ReplaceStep(Replace(old, parts.text(spec, "content"), is_pattern))


_STEPS: dict[str, ComponentReader[Step]] = {
    "ByteLevel": ComponentReader(lambda *_: ByteLevelStep(), BYTE_LEVEL_FIELDS),
    "Metaspace": ComponentReader(
        lambda parts, spec: MetaspaceStep(parts.text(spec, "replacement"), prepend_scheme(spec) != "never"),
        METASPACE_FIELDS,
    ),
    "WordPiece": ComponentReader(
        lambda parts, spec: WordPieceStep(parts.text(spec, "prefix"), bool(spec["cleanup"])),
        ("prefix", "cleanup"),
    ),
    "BPEDecoder": ComponentReader(_suffix, ("suffix",)),
    "Replace": ComponentReader(_replace, ("pattern", "content")),
    "Strip": ComponentReader(_strip, ("content", "start", "stop")),
    "ByteFallback": ComponentReader(lambda *_: ByteFallbackStep()),
    "Fuse": ComponentReader(lambda *_: FuseStep()),
}
