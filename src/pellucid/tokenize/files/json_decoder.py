"""The decoder of a ``tokenizer.json``: the step for each ``type``, in the order of the file.

A type that is not implemented raises :class:`UnsupportedModel` with the list of implemented types.
"""

from __future__ import annotations

from collections.abc import Callable

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.tokenize.files.json_components import MAX_IDS, pattern
from pellucid.tokenize.files.tokenizer_json import Json, TokenizerJson, flat
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
    steps: list[Step] = [JoinStep(" ")] if spec is None else []
    for one in flat(parts, spec, "decoder", "decoders"):
        make = _STEPS.get(str(one.get("type")))
        if make is None:
            raise UnsupportedModel(
                f"{parts.path.name}: decoder {brief(one.get('type'))} is not implemented; known are Sequence, "
                f"{', '.join(_STEPS)}"
            )
        steps.append(make(parts, one))
    return StepDecoder(parts.spoken, steps, absent=parts.vocabulary.of_type(TokenType.UNUSED))


def _byte_level(parts: TokenizerJson, spec: Json) -> Step:
    parts.component(spec, "decoder", "add_prefix_space", "trim_offsets", "use_regex")
    return ByteLevelStep()


def _metaspace(parts: TokenizerJson, spec: Json) -> Step:
    parts.component(spec, "decoder", "replacement", "prepend_scheme", "add_prefix_space", "split", "str_rep")
    scheme = spec.get("prepend_scheme", "always" if spec.get("add_prefix_space", True) else "never")
    return MetaspaceStep(parts.text(spec, "replacement"), scheme != "never")


def _word_piece(parts: TokenizerJson, spec: Json) -> Step:
    parts.component(spec, "decoder", "prefix", "cleanup")
    return WordPieceStep(parts.text(spec, "prefix"), bool(spec["cleanup"]))


def _suffix(parts: TokenizerJson, spec: Json) -> Step:
    suffix = parts.text(parts.component(spec, "decoder", "suffix"), "suffix")
    if not suffix:
        raise FileFormatError(parts.path, "decoder.suffix", "is empty")
    return SuffixStep(suffix)


def _strip(parts: TokenizerJson, spec: Json) -> Step:
    parts.component(spec, "decoder", "content", "start", "stop")
    if len(content := parts.text(spec, "content")) != 1:
        raise FileFormatError(parts.path, "decoder.content", f"{brief(content)} is not one character")
    return StripStep(content, *(parts.whole(spec, name, 0, MAX_IDS) for name in ("start", "stop")))


def _replace(parts: TokenizerJson, spec: Json) -> Step:
    parts.component(spec, "decoder", "pattern", "content")
    old, is_pattern = pattern(parts, spec["pattern"])
    return ReplaceStep(Replace(old, parts.text(spec, "content"), is_pattern))


def _plain(step: Step) -> Callable[[TokenizerJson, Json], Step]:
    def make(parts: TokenizerJson, spec: Json) -> Step:
        parts.component(spec, "decoder")
        return step

    return make


_STEPS: dict[str, Callable[[TokenizerJson, Json], Step]] = {
    "ByteLevel": _byte_level,
    "Metaspace": _metaspace,
    "WordPiece": _word_piece,
    "BPEDecoder": _suffix,
    "Replace": _replace,
    "Strip": _strip,
    "ByteFallback": _plain(ByteFallbackStep()),
    "Fuse": _plain(FuseStep()),
}
