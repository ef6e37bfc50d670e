"""The public methods that turn texts and pairs of texts into ids: as lists, as arrays, and with offsets.

They run the stages in Python at first, and as compiled code once a tokenizer has encoded enough text for it to pay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pellucid.errors import InvalidRequest, brief
from pellucid.tokenize.encoder import Encoder
from pellucid.tokenize.encoding import Encoding, Padding, SliceableT, TokenTable, Truncation, combined
from pellucid.tokenize.stages.postprocess import Template
from pellucid.util import checks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pellucid.tokenize.compiled_encoder import CompiledEncoder

CHARACTERS_BEFORE_CACHED, CHARACTERS_BEFORE_COMPILING = 20_000, 1_000_000
"""Characters to encode before cached compiled kernels are used, and before missing kernels are compiled."""

Pair = tuple[str, str]
"""Two texts that form one sequence (BERT's sentence pairs)."""


@dataclass(frozen=True, eq=False)
class TextEncoder(Encoder):
    """The stages of a tokenizer with the public methods that encode texts."""

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
        texts = checks.strings("texts", texts)
        compiled = self._compiled_for(sum(map(len, texts)))
        if compiled is None:
            ids = [self._encode_text(text, parse_special) for text in texts]
        else:
            ids = compiled.over_threads(compiled.lists, texts, parse_special, threads)
        if truncation is not None:
            ids = [self._truncated(one, truncation, add_special) for one in ids]
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
        import numpy as np

        texts = checks.strings("texts", texts)
        compiled = self._compiled_for(sum(map(len, texts)))
        if compiled is None:
            ids = [np.array(self._encode_text(text, parse_special), np.int32) for text in texts]
        else:
            ids = compiled.over_threads(compiled.encode, texts, parse_special, threads)
        if truncation is not None:
            ids = [self._truncated(one, truncation, add_special) for one in ids]
        return list(map(self.post_processor.array, ids)) if add_special else ids

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
