"""A tokenizer as compiled code: which of its stages have one, and the ways around those that do not.

In: the stages of a tokenizer. Out: :class:`CompiledEncoder`, or None where its patterns or its model have no compiled
form. Where only the normalizer has none, or gives up on a text, Python finds the added tokens and normalises, and
compiled code goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.library import shared
from pellucid.kernels.text.pieces import PART
from pellucid.tokenize.compiled.form_tables import form_table
from pellucid.tokenize.compiled.pipeline import Pipeline, Placed
from pellucid.tokenize.compiled.rewrite_table import CharacterMap, character_maps
from pellucid.tokenize.compiled.stages import Adding, CompiledStage, Cutting, Normalizing, Rewriting
from pellucid.tokenize.encoding import Span
from pellucid.tokenize.model import TokenizerModel
from pellucid.tokenize.patterns.automaton import automaton
from pellucid.tokenize.stages.added import AddedTokens
from pellucid.tokenize.stages.aligned import Aligned, without_surrogates
from pellucid.tokenize.stages.normalize import Normalizer, Replace, Sequential
from pellucid.tokenize.stages.pretokenize import Change, Split, Stage

if TYPE_CHECKING:
    from pellucid.tokenize.encoder import Encoder

T = TypeVar("T")

CHUNK = 1 << 16
"""Characters that go through the stages together: what lies between them stays in a core's cache."""


def is_cached(model: TokenizerModel) -> bool:
    """Whether a model's compiled form is there without compiling anything."""
    return model.kernel is not None and shared().kept([model.kernel])


def compiled_encoder(encoder: Encoder) -> CompiledEncoder | None:
    """The compiled form of the stages of a tokenizer, if it has one."""
    # A model that knows which characters are neighbours cuts wherever its ``cut`` would, and more.
    cutting = encoder.pre_tokenizer if encoder.model.separates else encoder.cutting
    late = _late(cutting.stages, encoder.normalizer)
    if late is None or encoder.model.kernel is None:
        return None
    return CompiledEncoder(encoder, late)


class CompiledEncoder:
    """Encodes texts. Thread-safe: each thread that is in a call has its own room."""

    def __init__(self, encoder: Encoder, late: Sequence[CompiledStage]) -> None:
        self._encoder = encoder
        early = {special: _early(encoder, special) for special in (False, True)}
        self._lost = encoder.model.lost
        self._kept = _kept(encoder) if encoder.asks_for_places else None
        changing = encoder.pre_tokenizer.changing  # which Python does where it matters what was where
        self._cuts = _late(encoder.pre_tokenizer.stages[len(changing.stages) :], encoder.normalizer)
        self._pipeline = Pipeline(early, late, encoder.model.compiled())

    def encode(self, texts: Sequence[str], parse_special: bool) -> list[NDArray[np.int32]]:
        """The ids of each text."""
        if self._kept is not None and any(text and text[0] not in self._kept for text in texts):
            return [self._one(text, parse_special) for text in texts]
        return self._all(texts, parse_special)

    def _one(self, text: str, parse_special: bool) -> NDArray[np.int32]:
        """The ids of one text, by Python where it may begin with what the normalizer does not keep in its place."""
        if text and text[0] not in (self._kept or ()):
            return np.array(self._encoder.placed_ids(text, parse_special), np.int32)
        return self._all([text], parse_special)[0]

    def _all(self, texts: Sequence[str], parse_special: bool) -> list[NDArray[np.int32]]:
        found = self._pipeline.ids(list(map(_utf8, texts)), parse_special)
        if found is not None:
            return found
        if len(texts) > 1:  # one of them is for Python
            return [self._all([text], parse_special)[0] for text in texts]
        return [self._normalized(text, parse_special) for text in texts]

    def lists(self, texts: Sequence[str], parse_special: bool) -> list[list[int]]:
        """The same as lists."""
        return [ids.tolist() for ids in self.encode(texts, parse_special)]

    @staticmethod
    def over_threads(
        encode: Callable[[Sequence[str], bool], list[T]],
        texts: Sequence[str],
        parse_special: bool,
        threads: int | None,
    ) -> list[T]:
        """One of these two, of many texts, in portions over several threads; None: one for each core."""
        portions = list(_portions(texts))
        if threads is None:
            from pellucid.runtime.executor import default_threads

            threads = default_threads()
        if threads <= 1 or len(portions) <= 1:
            return [ids for portion in portions for ids in encode(portion, parse_special)]
        with ThreadPoolExecutor(min(threads, len(portions))) as pool:
            return list(chain.from_iterable(pool.map(lambda some: encode(some, parse_special), portions)))

    def _normalized(self, text: str, parse_special: bool) -> NDArray[np.int32]:
        """The ids of one text that Python normalises."""
        segments = self._encoder.segments(without_surrogates(text), parse_special)
        data, pieces = _joined((part, index) for part, index, _ in segments)
        return self._pipeline.ids_of_pieces([data], pieces)[0]

    def spans(self, text: str, parse_special: bool) -> Iterable[Span] | None:
        """The ids of a text with the characters that they stand for; None if Python must find them.

        Python normalises and says which characters are whose; compiled code cuts, and makes the ids.
        """
        if self._cuts is None:
            return None
        changed, parts = self._encoder.pre_tokenizer.changing.aligned, list[tuple[Aligned, int | None]]()
        for part, index in self._encoder.parts(text, parse_special):
            parts += [(part, index)] if index is not None else [(one, None) for one in changed(part)]
        data, pieces = _joined((part.text, index) for part, index in parts)
        if not data:
            return ()
        if not self._lost.isdisjoint(data):
            return None  # which moves what stands behind it
        placed = self._pipeline.placed(data, pieces, self._cuts)
        characters = None if placed is None else self._characters(data, placed)
        if placed is None or characters is None:
            return None
        begin, behind = characters
        starts, ends = _origins(parts)
        stops = np.where(behind > begin, ends[behind - 1], starts[begin])
        return zip(placed.ids.tolist(), starts[begin].tolist(), stops.tolist())

    def _characters(self, data: bytes, placed: Placed) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Of each id its first character and the one behind its last; None if Python makes other ids of a piece.

        They follow from how many bytes each id stands for, where that is certain and comes to the whole piece.
        """
        ids, pieces, firsts = placed.ids, placed.pieces, placed.firsts
        known = pieces[:, 1] < 0  # added tokens, each in the place of one byte
        begins, ends = pieces[:, 0], np.where(known, pieces[:, 0] + 1, pieces[:, 1] & ~PART)
        owner = np.repeat(np.arange(len(pieces)), np.diff(firsts))
        lengths = np.ones(len(ids), np.int64)
        lengths[~known[owner]] = self._pipeline.lengths[ids[~known[owner]]]
        sums = np.bincount(owner, lengths, len(pieces))
        uncertain = (np.bincount(owner, lengths < 0, len(pieces)) > 0) | (sums != ends - begins)
        before = np.cumsum(lengths) - lengths
        start = np.where(uncertain[owner], 0, begins[owner] + before - before[firsts[owner]])
        stop = np.where(uncertain[owner], 1, start + lengths)
        character = np.cumsum(np.frombuffer(data, np.uint8) & 0xC0 != 0x80) - 1
        begin, behind = character[start], character[stop - 1] + 1
        for piece in np.flatnonzero(uncertain & (np.diff(firsts) > 0)).tolist():
            spans = self._encoder.model.spans(data[begins[piece] : ends[piece]].decode())
            which = slice(firsts[piece], firsts[piece + 1])
            if [index for index, _, _ in spans] != ids[which].tolist():
                return None
            place = character[begins[piece]]
            begin[which] = [place + at for _, at, _ in spans]
            behind[which] = [place + at for _, _, at in spans]
        return begin, behind


def _kept(encoder: Encoder) -> frozenset[str]:
    """Characters of ASCII that the normalizer leaves where they are at the beginning of a text, whatever follows."""
    stages = [encoder.normalizer]
    if isinstance(encoder.normalizer, Sequential):
        stages = [*encoder.normalizer.stages]
    if any(isinstance(stage, Replace) and (stage.is_pattern or len(stage.old) != 1) for stage in stages):
        return frozenset()
    assert encoder.normalizer is not None
    return frozenset(sign for sign in map(chr, range(0x21, 0x7F)) if encoder.normalizer(sign) == sign)


def _joined(parts: Iterable[tuple[str, int | None]]) -> tuple[bytes, list[tuple[int, int]]]:
    """Texts and ids behind one another, and their spans of bytes, as ``text/pieces.py`` has them."""
    data, pieces, done = [], [], 0
    for part, index in parts:
        # An id takes a byte, so that it has its place; one that no vocabulary lacks.
        encoded = b" " if index is not None else part.encode()
        pieces.append((done, done + len(encoded) if index is None else -1 - index))
        data.append(encoded)
        done += len(encoded)
    return b"".join(data), pieces


def _origins(parts: Iterable[tuple[Aligned, int | None]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each character of these is in the original, from and to; an id is one character."""
    starts, ends = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for part, index in parts:
        whole = part.span(0, len(part))
        for of, found in ((starts, part.starts), (ends, part.ends)):
            if index is not None:
                of.append(np.array([whole[of is ends]]))
            elif isinstance(found, range):
                of.append(np.arange(found.start, found.stop))
            else:
                of.append(np.array(found, np.int64))
    return np.concatenate(starts), np.concatenate(ends)


def _portions(texts: Sequence[str]) -> Iterable[list[str]]:
    """The texts in order, so many at a time that they have about CHUNK characters."""
    some: list[str] = []
    length = 0
    for text in texts:
        some.append(text)
        length += len(text)
        if length >= CHUNK:
            yield some
            some, length = [], 0
    if some:
        yield some


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return without_surrogates(text).encode()


def _early(encoder: Encoder, parse_special: bool) -> list[CompiledStage] | None:
    """The stages up to the pre-tokenizer; None if Python must do them."""
    stages = _rewriting([] if encoder.normalizer is None else [(encoder.normalizer, False)])
    found = [_adding(tokens, parse_special) for tokens in (encoder.added, encoder.normalized_added)]
    if stages is None or None in found:
        return None
    before, behind = found
    return [*(before or ()), *stages, *(behind or ())]


def _adding(tokens: AddedTokens, parse_special: bool) -> list[CompiledStage] | None:
    """What cuts out added tokens: nothing where all are left as text, None where some mind what is around them."""
    listed = list(tokens)
    cut_out = [token for token in listed if parse_special or not token.special]
    if not cut_out:
        return []
    if any(token.lstrip or token.rstrip or token.single_word for token in cut_out):
        return None
    emitted = [token.id if parse_special or not token.special else -1 for token in listed]
    return [Adding([token.text.encode() for token in listed], np.array(emitted, np.int32))]


def _rewriting(stages: Sequence[tuple[Normalizer, bool]]) -> list[CompiledStage] | None:
    maps = character_maps(stages)
    if maps is None:
        return None
    return [Rewriting(one) if isinstance(one, CharacterMap) else Normalizing(form_table(one)) for one in maps]


def _never(step: Stage, replaced: Normalizer | None) -> bool:
    """Whether a stage cuts at what the normalizer before it leaves nothing of: Gemma's at spaces, which are ``▁``."""
    if not isinstance(step, Split) or not isinstance(replaced, Replace) or replaced.is_pattern:
        return False
    looks_for = step.pattern.removeprefix("\\")
    return (
        looks_for == replaced.old
        and len(looks_for) == 1
        and looks_for not in replaced.new
        and not step.invert
    )


def _late(steps: Sequence[Stage], replaced: Normalizer | None) -> list[CompiledStage] | None:
    """The pre-tokenizer's stages; None if one of them has no compiled form."""
    stages: list[CompiledStage] = []
    changes: list[tuple[Normalizer, bool]] = []
    for step in steps:
        if isinstance(step, Change):
            changes.append((step.normalizer, step.only_first))
            continue
        if _never(step, replaced):
            continue
        table = automaton(step.pattern) if isinstance(step, Split) else None
        rewriting = _rewriting(changes)
        if table is None or rewriting is None or not isinstance(step, Split):
            return None
        stages += [*rewriting, Cutting(step.pattern, table, step.behavior, step.invert)]
        changes = []
    rewriting = _rewriting(changes)
    return None if rewriting is None else [*stages, *rewriting]
