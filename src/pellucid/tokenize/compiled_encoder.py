"""A tokenizer as compiled code, with a fallback to Python for stages that have no compiled form.

In: the stages of a tokenizer. Out: :class:`CompiledEncoder`, or None if a pattern or the model has no compiled form.
If only the normalizer has no compiled form, or gives up on a text, Python finds the added tokens and normalizes, and
compiled code runs the other stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.background import background_compiler
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.text.pieces import PART
from pellucid.kernels.text.rewrite import RULES
from pellucid.tokenize.compiled.compiled_pipeline import (
    AddedTokenStage,
    CompiledPipeline,
    CompiledStage,
    SpanIds,
    SplitStage,
)
from pellucid.tokenize.compiled.rewrite_table import rewrite_stages
from pellucid.tokenize.encoding import Columns
from pellucid.tokenize.patterns.automaton import automaton
from pellucid.tokenize.stages.aligned import AlignedText, places_of, without_surrogates
from pellucid.tokenize.stages.normalize import Normalizer, Replace, Sequential
from pellucid.tokenize.stages.pretokenize import AddedTokens, NormalizeStep, Split, Stage
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.util.interpreter import run_apart

if TYPE_CHECKING:
    from pellucid.tokenize.encoder import Encoder

T = TypeVar("T")

BATCH_CHARACTERS = 1 << 16
"""Characters per batch. The results between the stages of a batch of this size stay in a core's cache."""

STAGE_KERNELS = (
    *(KernelKey(f"text.{name}") for name in ("split", "added", "neighbours", "normalize")),
    *(KernelKey(f"text.{name}") for name in ("words", "splits", "tree", "layout", "pairs")),
    *(KernelKey("text.apart", everywhere=everywhere) for everywhere in (False, True)),
    *(KernelKey("text.rewrite", rules=rules) for rules in RULES),
)
"""The kernels of all stages except the model, and the kernels that build their tables."""

MAX_PYTHON_CHARACTERS = 256
"""Maximum characters of several texts that Python normalizes together. Python takes about as long for this number of
characters as a call of compiled code takes."""


def is_ready(model: TokenizerModel, *, compiles: bool) -> bool:
    """True if all kernels of a model's compiled form are compiled; ``compiles`` starts to compile missing kernels.

    True for a model without a compiled form.
    """
    return model.kernel is None or background_compiler().ready((model.kernel, *STAGE_KERNELS), compiles=compiles)


def compiled_encoder(encoder: Encoder) -> CompiledEncoder | None:
    """The compiled form of the stages of a tokenizer, or None."""
    # The compiled form of a model with ``separates`` cuts at all positions of ``cut`` itself, and at other positions.
    cutting = encoder.pre_tokenizer if encoder.model.separates else encoder.cutting
    pretokenize = _pretokenize_stages(cutting.stages, encoder.normalizer)
    if pretokenize is None or encoder.model.kernel is None:
        return None
    return CompiledEncoder(encoder, pretokenize)


class CompiledEncoder:
    """Encodes texts. Thread-safe: each thread uses its own buffers during a call."""

    def __init__(self, encoder: Encoder, pretokenize: Sequence[CompiledStage]) -> None:
        self._encoder = encoder
        normalize = {special: _normalize_stages(encoder, special) for special in (False, True)}
        self._kept_in_place = _kept_in_place(encoder) if encoder.needs_alignment else None
        # Python runs the stages that change text when offsets are needed.
        splits = encoder.pre_tokenizer.stages[len(encoder.pre_tokenizer.changing.stages) :]
        self._split_stages = _pretokenize_stages(splits, encoder.normalizer)
        self._pipeline = CompiledPipeline(normalize, pretokenize, encoder.model.compiled())

    def encode(self, texts: Sequence[str], parse_special: bool) -> list[NDArray[np.int32]]:
        """The ids of each text."""
        if self._kept_in_place is None:
            return self._encode_all(texts, parse_special)
        stay = [not text or text[0] in self._kept_in_place for text in texts]
        together = iter(self._encode_all([text for text, stays in zip(texts, stay) if stays], parse_special))
        return [
            next(together) if stays else np.array(self._encoder.aligned_ids(text, parse_special), np.int32)
            for text, stays in zip(texts, stay)
        ]

    def _encode_all(self, texts: Sequence[str], parse_special: bool) -> list[NDArray[np.int32]]:
        """The ids of each text. A text that compiled code cannot normalize is normalized by Python."""
        if not self._pipeline.normalizes(parse_special):
            return self._normalized(texts, parse_special)
        ids = self._pipeline.ids(list(map(_utf8, texts)), parse_special)
        if ids is not None:
            return ids
        if len(texts) == 1 or sum(map(len, texts)) <= MAX_PYTHON_CHARACTERS:
            return self._normalized(texts, parse_special)
        return self._in_halves(self._encode_all, texts, parse_special)

    @staticmethod
    def _in_halves(
        encode: Callable[[Sequence[str], bool], list[NDArray[np.int32]]], texts: Sequence[str], parse_special: bool
    ) -> list[NDArray[np.int32]]:
        """Apply ``encode`` to each half of the texts, so that fewer texts fall back to Python."""
        half = len(texts) // 2
        return encode(texts[:half], parse_special) + encode(texts[half:], parse_special)

    def lists(self, texts: Sequence[str], parse_special: bool) -> list[list[int]]:
        return [ids.tolist() for ids in self.encode(texts, parse_special)]

    @staticmethod
    def over_threads(
        encode: Callable[[Sequence[str], bool], list[T]], texts: Sequence[str], parse_special: bool, threads: int | None
    ) -> list[T]:
        """Apply ``encode`` or ``lists`` to many texts, in batches over ``threads`` threads (None: one per core)."""
        batches = list(_batches(texts))
        if threads is None:
            from pellucid.runtime.processors import processors

            threads = processors().threads
        if threads <= 1 or len(batches) <= 1:
            return [ids for batch in batches for ids in encode(batch, parse_special)]

        def encoded(check: Callable[[], None]) -> list[T]:
            def batch_ids(batch: Sequence[str]) -> list[T]:
                check()
                return encode(batch, parse_special)

            with ThreadPoolExecutor(min(threads, len(batches))) as pool:
                return list(chain.from_iterable(pool.map(batch_ids, batches)))

        return run_apart(encoded)

    def _normalized(self, texts: Sequence[str], parse_special: bool) -> list[NDArray[np.int32]]:
        data, pieces, done = list[bytes](), list[tuple[int, int]](), 0
        for text in texts:
            segments = self._encoder.segments(without_surrogates(text), parse_special)
            joined, spans = _joined(((part, index) for part, index, _ in segments), done)
            data.append(joined)
            pieces += spans
            done += len(joined)
        ids = self._pipeline.ids_of_pieces(data, pieces)
        if ids is not None:
            return ids
        if len(texts) == 1:  # the pre-tokenizer's prefix or replaced spaces make the text much longer
            return [np.array(self._encoder.ids(texts[0], parse_special), np.int32)]
        return self._in_halves(self._normalized, texts, parse_special)

    def spans(self, text: str, parse_special: bool) -> Columns | None:
        """The ids of a text, and the start and end of the characters that each id covers.

        None if Python must find the ids. Python normalizes and tracks the origin of each character; compiled code cuts
        the text and computes the ids.
        """
        if self._split_stages is None:
            return None
        changed, parts = self._encoder.pre_tokenizer.changing.aligned, list[tuple[AlignedText, int | None]]()
        for part, index in self._encoder.parts(text, parse_special):
            parts += [(part, index)] if index is not None else [(piece, None) for piece in changed(part)]
        data, pieces = _joined((part.text, index) for part, index in parts)
        if not data:
            return [], [], []
        placed = self._pipeline.ids_with_spans(data, pieces, self._split_stages)
        characters = None if placed is None else self._characters(data, placed)
        if placed is None or characters is None:
            return None
        begin, end = characters
        starts, ends = _origins(parts)
        stops = np.where(end > begin, ends[end - 1], starts[begin])
        return placed.ids.tolist(), starts[begin].tolist(), stops.tolist()

    def _characters(self, data: bytes, placed: SpanIds) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The start and end of each id in characters, (T,) each, the end excluded; None if Python finds other ids.

        The offsets follow from the number of bytes of each id, if these numbers are known and add up to the length of
        the pre-token. If a pre-token has a single id of unknown length, this id covers the whole pre-token, unless
        the model drops characters. Python finds the spans of all other pre-tokens.
        """
        ids, pieces, firsts = placed.ids, placed.pieces, placed.firsts
        known = pieces[:, 1] < 0  # added tokens; each takes one byte
        begins, ends = pieces[:, 0], np.where(known, pieces[:, 0] + 1, pieces[:, 1] & ~PART)
        counts = np.diff(firsts)
        owner = np.repeat(np.arange(len(pieces)), counts)
        lengths = np.ones(len(ids), np.int64)
        lengths[~known[owner]] = self._pipeline.lengths[ids[~known[owner]]]
        alone = (counts[owner] == 1) & (lengths < 0) & (not self._encoder.model.drops)
        lengths[alone] = (ends - begins)[owner[alone]]
        sums = np.bincount(owner, lengths, len(pieces))
        uncertain = (np.bincount(owner, lengths < 0, len(pieces)) > 0) | (sums != ends - begins)
        if self._encoder.model.drops and uncertain.any():
            return None  # dropped characters shift all later offsets, also in the next parts of the pre-token
        before = np.cumsum(lengths) - lengths
        start = np.where(uncertain[owner], 0, begins[owner] + before - before[firsts[owner]])
        stop = np.where(uncertain[owner], 1, start + lengths)
        character = np.cumsum(np.frombuffer(data, np.uint8) & 0xC0 != 0x80) - 1
        begin, end = character[start], character[stop - 1] + 1
        for piece in np.flatnonzero(uncertain & (counts > 0)).tolist():
            spans = self._encoder.model.spans(data[begins[piece] : ends[piece]].decode())
            which = slice(firsts[piece], firsts[piece + 1])
            if [index for index, _, _ in spans] != ids[which].tolist():
                return None
            place = character[begins[piece]]
            begin[which] = [place + at for _, at, _ in spans]
            end[which] = [place + at for _, _, at in spans]
        return begin, end


def _kept_in_place(encoder: Encoder) -> frozenset[str]:
    """The ASCII characters that the normalizer leaves unchanged at the start of every text."""
    stages = [encoder.normalizer]
    if isinstance(encoder.normalizer, Sequential):
        stages = [*encoder.normalizer.stages]
    if any(isinstance(stage, Replace) and (stage.is_pattern or len(stage.old) != 1) for stage in stages):
        return frozenset()
    assert encoder.normalizer is not None
    return frozenset(sign for sign in map(chr, range(0x21, 0x7F)) if encoder.normalizer(sign) == sign)


def _joined(parts: Iterable[tuple[str, int | None]], done: int = 0) -> tuple[bytes, list[tuple[int, int]]]:
    """The concatenated texts in UTF-8, and the span of bytes of each part as ``kernels/text/pieces.py`` encodes it.

    The first span starts at ``done``.
    """
    data, pieces = [], []
    for part, index in parts:
        # An added token takes one byte, so that it has a position.
        encoded = b" " if index is not None else part.encode()
        pieces.append((done, done + len(encoded) if index is None else -1 - index))
        data.append(encoded)
        done += len(encoded)
    return b"".join(data), pieces


def _origins(parts: Iterable[tuple[AlignedText, int | None]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The start and end in the original text of each character of the parts; an added token is one character."""
    starts, ends = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for part, index in parts:
        start, end = part.span(0, len(part))
        starts.append(places_of(part.starts if index is None else [start]))
        ends.append(places_of(part.ends if index is None else [end]))
    return np.concatenate(starts), np.concatenate(ends)


def _batches(texts: Sequence[str]) -> Iterable[list[str]]:
    """The texts in order, in batches of about BATCH_CHARACTERS characters."""
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= BATCH_CHARACTERS:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return without_surrogates(text).encode()


def _normalize_stages(encoder: Encoder, parse_special: bool) -> list[CompiledStage] | None:
    """The stages before the pre-tokenizer; None if Python must run them."""
    normalizers = [] if encoder.normalizer is None else [(encoder.normalizer, False)]
    before, after = (_added_token_stages(tokens, parse_special) for tokens in (encoder.added, encoder.normalized_added))
    stages = rewrite_stages(normalizers)
    return None if before is None or stages is None or after is None else [*before, *stages, *after]


def _added_token_stages(tokens: AddedTokens, parse_special: bool) -> list[CompiledStage] | None:
    """The stage that cuts out added tokens; empty if there are none, None if some depend on neighbouring characters."""
    listed = list(tokens)
    cut_out = [token for token in listed if parse_special or not token.special]
    if not cut_out:
        return []
    if any(token.lstrip or token.rstrip or token.single_word or token.text_start for token in cut_out):
        return None
    emitted = [token.id if parse_special or not token.special else -1 for token in listed]
    return [AddedTokenStage([token.text.encode() for token in listed], np.array(emitted, np.int32))]


def _never_cuts(step: Stage, replaced: Normalizer | None) -> bool:
    """True if a stage never cuts, because the normalizer replaces all characters that it cuts at (Gemma: the space)."""
    if not isinstance(step, Split) or not isinstance(replaced, Replace) or replaced.is_pattern:
        return False
    looks_for = step.pattern.removeprefix("\\")
    return looks_for == replaced.old and len(looks_for) == 1 and looks_for not in replaced.new and not step.invert


def _pretokenize_stages(steps: Sequence[Stage], replaced: Normalizer | None) -> list[CompiledStage] | None:
    """The compiled stages of the pre-tokenizer; None if a stage has no compiled form."""
    stages: list[CompiledStage] = []
    changes: list[tuple[Normalizer, bool]] = []
    for step in steps:
        if isinstance(step, NormalizeStep):
            changes.append((step.normalizer, step.only_first))
            continue
        if _never_cuts(step, replaced):
            continue
        table = automaton(step.pattern) if isinstance(step, Split) else None
        rewriting = rewrite_stages(changes)
        if table is None or rewriting is None or not isinstance(step, Split):
            return None
        stages += [*rewriting, SplitStage(step.pattern, table, step.behavior, step.invert)]
        changes = []
    rewriting = rewrite_stages(changes)
    return None if rewriting is None else [*stages, *rewriting]
