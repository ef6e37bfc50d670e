"""The stages from text to ids, run in Python: text → normalize → pre-tokenize → model → ids.

Three paths run the stages, and all paths give the same ids. The plain path turns strings into ids. The aligned path
also records the characters of the text that each id covers. The compiled path (``compiled_encoder.py``) computes ids
and covered characters in compiled code. It is faster for large amounts of text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from pellucid.tokenize.encoding import Span
from pellucid.tokenize.stages.aligned import AlignedText, without_surrogates
from pellucid.tokenize.stages.decode import Decoder
from pellucid.tokenize.stages.postprocess import Template, Trim
from pellucid.tokenize.stages.pretokenize import BEFORE_SPACES, AddedTokens, PreTokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pellucid.tokenize.stages.normalize import Normalizer


class _IdCache(dict[str, list[int]]):
    """A bounded cache of the ids of pre-tokens."""

    MAX_ENTRIES, MAX_CHARACTERS = 1 << 16, 64

    def __init__(self, model: TokenizerModel) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, pre_token: str) -> list[int]:
        ids = self._model(pre_token)
        if len(pre_token) <= self.MAX_CHARACTERS:
            if len(self) >= self.MAX_ENTRIES:
                self.clear()
            self[pre_token] = ids
        return ids


@dataclass(frozen=True, eq=False)
class Encoder:
    """The stages of a tokenizer, and the methods that run them.

    A text passes through ``added`` (cuts out added tokens), ``normalizer``, ``normalized_added`` (cuts out added tokens
    that are matched in normalized text), ``pre_tokenizer`` and ``model``. Then ``trims`` remove white space from the
    offsets of an ``Encoding``, and ``post_processor`` adds special tokens around the ids. ``decoder`` turns ids back
    into text.
    """

    vocabulary: Vocabulary
    added: AddedTokens
    normalized_added: AddedTokens
    normalizer: Normalizer | None
    pre_tokenizer: PreTokenizer
    model: TokenizerModel
    post_processor: Template
    decoder: Decoder
    trims: tuple[Trim, ...] = ()
    _id_cache: _IdCache = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_id_cache", _IdCache(self.model))

    @property
    def vocab_size(self) -> int:
        """Number of ids, V."""
        return self.vocabulary.size

    def ids(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        """The ids of a text, without special tokens around it.

        ``mark`` is the character that ``chat/conversation.py: guard`` inserted into control tokens that a user spelled
        out, so that they are not matched as control tokens. It is removed before the pre-tokenizer runs. "" means that
        no mark was inserted.
        """
        if self.needs_alignment:
            return self.aligned_ids(text, parse_special, mark)
        ids: list[int] = []
        for part, index, first in self.segments(without_surrogates(text), parse_special):
            if index is not None:
                ids.append(index)
                continue
            pre_tokens = self.cutting(part.replace(mark, "") if mark else part, first)
            ids.extend(chain.from_iterable(map(self._id_cache.__getitem__, pre_tokens)))
        return ids

    def aligned_ids(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        """The aligned path from text to ids; ``mark`` as in ``ids``."""
        ids: list[int] = []
        for pre_token, index in self.pre_tokens(text, parse_special, mark):
            ids += self._id_cache[pre_token.text] if index is None else [index]
        return ids

    @property
    def needs_alignment(self) -> bool:
        """True if the encoder must know which normalized characters come from the very start of the text.

        A step of the pre-tokenizer may change only the start of the text, for example by inserting a space. If a
        normalizer has dropped the first characters, the first normalized character is not the start of the text.
        """
        return self.normalizer is not None and self.pre_tokenizer.has_first

    @cached_property
    def cutting(self) -> PreTokenizer:
        """The pre-tokenizer, followed by the model's own split (``TokenizerModel.cut``).

        The split is left out if the pre-tokenizer already makes it. It is also left out if the model drops characters,
        because the two characters around a dropped character may merge.
        """
        cut, stages = self.model.cut, self.pre_tokenizer.stages
        if cut is None or self.model.drops or (stages and stages[-1] == BEFORE_SPACES):
            return self.pre_tokenizer
        return PreTokenizer((*stages, cut))

    def spans(self, text: str, parse_special: bool) -> Iterator[Span]:
        """The ids, and the start and end of the characters of the text that each id covers."""
        for pre_token, index in self.pre_tokens(text, parse_special):
            if index is not None:
                yield index, *pre_token.span(0, len(pre_token))
                continue
            for token, start, stop in self.model.spans(pre_token.text):
                yield token, *pre_token.span(start, stop)

    def pre_tokens(self, text: str, parse_special: bool, mark: str = "") -> Iterator[tuple[AlignedText, int | None]]:
        """The pre-tokens and added tokens of a text in order; the id is None for a pre-token."""
        for part, index in self.parts(text, parse_special):
            if index is not None:
                yield part, index
            else:
                plain = part.without(mark) if mark else part
                yield from ((pre_token, None) for pre_token in self.pre_tokenizer.aligned(plain))

    def parts(self, text: str, parse_special: bool) -> Iterator[tuple[AlignedText, int | None]]:
        """The parts of the normalized text, cut at added tokens; the id is None for a part that is text."""
        original = AlignedText.of_any(text)
        for start, stop, index in self.added.split(original.text, parse_special):
            part = original.part(start, stop)
            if index is not None:
                yield part, index
                continue
            normal = part if self.normalizer is None else self.normalizer.aligned(part)
            for low, high, added in self.normalized_added.split(normal.text, parse_special):
                yield normal.part(low, high), added

    def segments(self, text: str, parse_special: bool) -> Iterator[tuple[str, int | None, bool]]:
        """``parts`` on the plain path: for each part its text, its id or None, and True if it begins the whole text."""
        for at, (start, stop, index) in enumerate(self.added.split(text, parse_special)):
            part = text[start:stop]
            if index is not None:
                yield part, index, at == 0
                continue
            normal = part if self.normalizer is None else self.normalizer(part)
            for inner, (low, high, added) in enumerate(self.normalized_added.split(normal, parse_special)):
                yield normal[low:high], added, at == 0 and inner == 0

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that an id adds to a text. Raises :class:`InvalidRequest` for an unknown id."""
        return self.decoder.piece(self.vocabulary.check(token_id), False)

    def token_text(self, token_id: int) -> str:
        """The piece as the file spells it ("Ġthe", "▁the", "##ing").

        Raises :class:`InvalidRequest` for an unknown id.
        """
        return self.vocabulary.tokens[self.vocabulary.check(token_id)]

    def id_of(self, token: str) -> int | None:
        """The id of a piece as the file spells it, or None."""
        return self.vocabulary.ids.get(token)

    def is_special(self, token_id: int) -> bool:
        """True for a control token and the unknown token. Raises :class:`InvalidRequest` for an unknown id."""
        return self.vocabulary.check(token_id) in self.vocabulary.special_ids
