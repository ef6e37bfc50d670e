"""Texts and pairs of texts to ids: text → normalize → pre-tokenize → model → post-process → ids.

Three paths run the stages, and all paths give the same ids. The plain path turns strings into ids. The aligned path
also records the characters of the text that each id covers. The compiled path (``compiled_encoder.py``) computes ids
and covered characters in compiled code. It is faster for large amounts of text, so it runs once a tokenizer has encoded
enough text for it to pay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.tokenize.encoding import Encoding, Padding, SliceableT, Span, TokenTable, Truncation, combined
from pellucid.tokenize.stages.aligned import AlignedText, without_surrogates
from pellucid.tokenize.stages.decode import Decoder
from pellucid.tokenize.stages.postprocess import Template, Trim
from pellucid.tokenize.stages.pretokenize import BEFORE_SPACES, AddedTokens, PreTokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import Vocabulary
from pellucid.util import checks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pellucid.tokenize.compiled_encoder import CompiledEncoder
    from pellucid.tokenize.stages.normalize import Normalizer

CHARACTERS_BEFORE_CACHED, CHARACTERS_BEFORE_COMPILING = 20_000, 1_000_000
"""Characters to encode before cached compiled kernels are used, and before missing kernels are compiled."""

Pair = tuple[str, str]
"""Two texts that form one sequence (BERT's sentence pairs)."""


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

    # ------------------------------------------------------------ the public methods

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False, truncation: Truncation | None = None
    ) -> list[int]:
        """Return the ids of a text.

        ``add_special`` adds the model's special tokens around it (BOS, ``[CLS]`` … ``[SEP]``), as the file specifies.
        ``parse_special`` recognises control tokens in the text: use it for rendered chat templates, never for user
        input. ``truncation`` shortens the text and keeps the added tokens. Unpaired surrogates become U+FFFD. Raises
        :class:`InvalidRequest` for a truncation that leaves no room for text.
        """
        ids = self._encode_text(checks.string("text", text), parse_special)
        if truncation is not None:
            ids = self._truncated(ids, truncation, add_special)
        return self.post_processor.ids(ids) if add_special else ids

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        truncation: Truncation | None = None,
        threads: int | None = None,
    ) -> list[list[int]]:
        """``encode`` each text, on ``threads`` threads (None: one per physical core)."""
        ids = self._each(texts, parse_special, add_special, truncation, threads, arrays=False)
        return list(map(self.post_processor.ids, ids)) if add_special else ids

    def encode_arrays(
        self,
        texts: Iterable[str],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        truncation: Truncation | None = None,
        threads: int | None = None,
    ) -> list[NDArray[np.int32]]:
        """``encode_batch`` with an array of int32 for each text.

        It is much faster than ``encode_batch`` for many texts: a list needs a Python object for every id, and threads
        cannot create Python objects in parallel.
        """
        ids = self._each(texts, parse_special, add_special, truncation, threads, arrays=True)
        return list(map(self.post_processor.array, ids)) if add_special else ids

    def _each(
        self,
        texts: Iterable[str],
        parse_special: bool,
        add_special: bool,
        truncation: Truncation | None,
        threads: int | None,
        arrays: bool,
    ) -> list[Any]:
        """The ids of each text without special tokens, as lists or as arrays, truncated for ``add_special``."""
        texts = checks.strings("texts", texts)
        compiled = self._compiled_for(sum(map(len, texts)))
        if compiled is not None:
            encode: Any = compiled.encode if arrays else compiled.lists
            ids = compiled.over_threads(encode, texts, parse_special, threads)
        else:
            ids = [self._encode_text(text, parse_special) for text in texts]
            if arrays:
                import numpy as np

                ids = [np.array(one, np.int32) for one in ids]
        return ids if truncation is None else [self._truncated(one, truncation, add_special) for one in ids]

    def encode_with_offsets(
        self, text: str, *, add_special: bool = True, parse_special: bool = False, truncation: Truncation | None = None
    ) -> Encoding:
        """Return the ids of a text with the offsets and the type of each id; otherwise like ``encode``.

        Offsets equal the offsets of Hugging Face ``tokenizers``. With ``truncation``, ``windows`` of the result are all
        windows of the text.
        """
        tokens = self._tokens(checks.string("text", text), parse_special)
        return self._windows(tokens, None, add_special, truncation)

    def encode_pair(
        self,
        first: str,
        second: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        truncation: Truncation | None = None,
    ) -> Encoding:
        """Return the ids of two texts that a model reads together, such as a question and a passage.

        The file or the tokenizer class decides the special tokens between and around the texts and the types of all
        tokens: ``[CLS] A [SEP] B [SEP]`` with types 0 and 1 for BERT. ``offsets`` of a token are in the text that
        ``sequence_ids`` names. With ``truncation``, ``windows`` of the result are all windows of the text that is cut:
        ``Truncation(384, stride=128, strategy="only_second")`` moves over a long passage and repeats the question.
        Other arguments and errors are as in ``encode``.
        """
        texts = checks.string("first", first), checks.string("second", second)
        tokens, others = (self._tokens(text, parse_special) for text in texts)
        return self._windows(tokens, others, add_special, truncation)

    def encode_pairs(
        self,
        pairs: Iterable[Pair],
        *,
        parse_special: bool = False,
        truncation: Truncation | None = None,
        threads: int | None = None,
    ) -> list[tuple[list[int], list[int]]]:
        """The ids and the type ids of each pair, as ``encode_pair`` returns them.

        It is much faster than ``encode_pair``, because it computes no offsets, and a text that occurs in many pairs is
        encoded once. ``threads`` is as in ``encode_batch``.
        """
        pairs = [_pair(pair) for pair in checks.items("pairs", pairs, "pairs of texts")]
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = dict(
            zip(texts, self.encode_batch(texts, add_special=False, parse_special=parse_special, threads=threads))
        )
        found, added = list[tuple[list[int], list[int]]](), self.post_processor.added(True)
        for pair in pairs:
            first, second = (ids[text] for text in pair)
            if truncation is not None:
                firsts, seconds = truncation.windows(first, second, added)
                first, second = firsts[0], (seconds or [second])[0]
            found.append(self.post_processor.pair_ids(first, second))
        return found

    def encode_batch_with_offsets(
        self,
        texts: Iterable[str | Pair],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        truncation: Truncation | None = None,
        padding: Padding | None = None,
    ) -> list[Encoding]:
        """``encode_with_offsets`` each text and ``encode_pair`` each pair, padded to one length by ``padding``."""
        options: dict[str, Any] = {"add_special": add_special, "parse_special": parse_special}
        options["truncation"] = truncation
        made = [
            self.encode_with_offsets(text, **options)
            if isinstance(text, str)
            else self.encode_pair(*_pair(text), **options)
            for text in checks.items("texts", texts, "texts, or pairs of texts")
        ]
        return made if padding is None else padding(made)

    def type_ids(self, count: int) -> list[int]:
        """The token type of each id of ``encode``, for ``count`` ids of a text with its special tokens."""
        return self.post_processor.type_ids(count)

    def _truncated(self, ids: SliceableT, truncation: Truncation, add_special: bool) -> SliceableT:
        """The ids of a text without special tokens, shortened so that its special tokens fit as well."""
        windows, _ = truncation.windows(ids, None, self.post_processor.added(False) if add_special else 0)
        return windows[0]

    def _windows(
        self, first: TokenTable, second: TokenTable | None, add_special: bool, truncation: Truncation | None
    ) -> Encoding:
        """The encoding of the tokens of one or two texts, with its overflowing windows."""
        template = self.post_processor if add_special else self.post_processor.plain
        windows: tuple[list[TokenTable], list[TokenTable] | None]
        windows = [first], None if second is None else [second]
        if truncation is not None:
            windows = truncation.windows(first, second, template.added(second is not None))
        encodings = [self._encoding(template, *texts) for texts in combined(*windows)]
        return replace(encodings[0], overflowing=tuple(encodings[1:]))

    def _encoding(self, template: Template, first: TokenTable, second: TokenTable | None) -> Encoding:
        for trim in self.trims:
            first, second = trim(first), None if second is None else trim(second)
        return Encoding(template.tokens(first, second, self.vocabulary.tokens))

    def _tokens(self, text: str, parse_special: bool) -> TokenTable:
        """The aligned path from text to tokens."""
        names, compiled = self.vocabulary.tokens, self._compiled_for(len(text))
        columns = None if compiled is None else compiled.spans(text, parse_special)
        ids, starts, stops = columns or list(zip(*self.spans(text, parse_special))) or ((), (), ())
        tokens = TokenTable.of_text(ids, names, starts, stops)
        if not self.trims or self._wide_ids.isdisjoint(ids):
            return tokens
        # The trims remove the white space that an added token includes, which its piece does not show.
        covered = [text[start:stop] for start, stop in zip(starts, stops)]
        pieces = [part if index in self._wide_ids else names[index] for index, part in zip(ids, covered)]
        return tokens.changed(text=pieces)

    @cached_property
    def _wide_ids(self) -> frozenset[int]:
        """The ids of added tokens that include the white space around them."""
        listed = (*self.added, *self.normalized_added)
        return frozenset(token.id for token in listed if token.lstrip or token.rstrip)

    def _encode_text(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        """The plain path from text to ids, or the compiled path; ``mark`` as in ``Encoder.ids``."""
        if not mark and (compiled := self._compiled_for(len(text))) is not None:
            return compiled.lists([text], parse_special)[0]
        return self.ids(text, parse_special, mark)

    def _compiled_for(self, length: int) -> CompiledEncoder | None:
        """Count ``length`` characters as encoded. Return the compiled encoder if it exists and enough text was encoded.

        The compiled encoder returns the same ids, but takes some hundredths of a second to start. So it is used only
        after the tokenizer has encoded ``CHARACTERS_BEFORE_CACHED`` characters. Kernels that have never been compiled
        are compiled in another process.
        """
        if "_compiled" in self.__dict__:
            return self._compiled
        seen = self.__dict__["_seen"] = self.__dict__.get("_seen", 0) + length
        if seen < CHARACTERS_BEFORE_CACHED:
            return None
        from pellucid.tokenize.compiled_encoder import is_ready

        ready = is_ready(self.model, compiles=seen >= CHARACTERS_BEFORE_COMPILING)
        return self._compiled if ready else None

    @cached_property
    def _compiled(self) -> CompiledEncoder | None:
        """The compiled encoder, or None if the stages have no compiled form."""
        from pellucid.tokenize.compiled_encoder import compiled_encoder

        return compiled_encoder(self)


def _pair(text: Any) -> Pair:
    """The two texts of a pair. Raises :class:`InvalidRequest` for other values."""
    if not isinstance(text, (tuple, list)) or len(text) != 2:
        raise InvalidRequest(f"text={brief(text)}: must be a text, or a pair of texts")
    return checks.string("text", text[0]), checks.string("text", text[1])
