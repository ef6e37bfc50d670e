"""A vocabulary in the form that llguidance reads."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING

from pellucid.sample.step import TokenizerProtocol

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_TREES = 4  # cached for one vocabulary
MAX_FORCED_BYTES, UNCERTAIN_TOKENS = 1 << 13, 16
"""A long forced text is tokenized in parts of ``MAX_FORCED_BYTES``. The last ``UNCERTAIN_TOKENS`` tokens of a part are
dropped, because the tokens at its end depend on the text after it."""


class _Vocabulary:
    """A vocabulary in the form that llguidance reads. A vocabulary without an end token gets an end token."""

    def __init__(self, tokenizer: TokenizerProtocol, ends: frozenset[int]) -> None:
        size = tokenizer.vocab_size
        self.bos_token_id = None
        self.eos_token_id = min(ends, default=size)
        self.special_token_ids = [token for token in range(size) if tokenizer.is_special(token)]
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        if not ends:
            self.special_token_ids.append(size)
            self.tokens.append(b"<end>")
        self._tokenizer, self._size = weakref.ref(tokenizer), size

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text. For a long text, only the tokens of its beginning."""
        data = text if isinstance(text, bytes) else text.encode()
        if len(data) > MAX_FORCED_BYTES:  # llguidance holds the GIL during this call
            return self(data[: _whole_characters(data, MAX_FORCED_BYTES)])[:-UNCERTAIN_TOKENS]
        tokenizer = self._tokenizer()
        ids = (
            [] if tokenizer is None else tokenizer.encode(data.decode("utf-8", "replace"), add_special=False)
        )
        # Some tokenizers put a space before a text, and the bytes may not be valid UTF-8.
        return ids if b"".join(self.tokens[token] for token in ids) == data else self._longest_matches(data)

    def _longest_matches(self, data: bytes) -> list[int]:
        """Tokenize by the longest match at each position, up to the first position without a match."""
        tokens, at = [], 0
        while at < len(data):
            for stop in range(min(at + self._longest, len(data)), at, -1):
                if (token := self._by_bytes.get(data[at:stop])) is not None:
                    tokens.append(token)
                    at = stop
                    break
            else:
                return tokens
        return tokens

    @functools.cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        """The lowest token id of each byte string."""
        special = set(self.special_token_ids)
        return {self.tokens[token]: token for token in range(self._size - 1, -1, -1) if token not in special}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)


def _whole_characters(data: bytes, limit: int) -> int:
    """The last position, at most ``limit``, at which a UTF-8 character begins."""
    return next((at for at in range(limit, max(limit - 4, 0), -1) if data[at] & 0xC0 != 0x80), limit)


_trees: weakref.WeakKeyDictionary[TokenizerProtocol, dict[frozenset[int], LLTokenizer]] = (
    weakref.WeakKeyDictionary()
)
"""llguidance's trees of a vocabulary, by the tokens that end a text. Building a tree of 262,144 tokens takes 1 s."""


def tree_of(tokenizer: TokenizerProtocol, ends: frozenset[int]) -> LLTokenizer:
    """llguidance's tree of a vocabulary. ``ends`` are the tokens that end a text."""
    from llguidance import LLTokenizer, TokenizerWrapper

    known = _trees.setdefault(tokenizer, {})
    if ends not in known:
        if len(known) >= MAX_TREES:
            known.pop(next(iter(known)))
        pieces = _Vocabulary(tokenizer, ends)
        wrapped = TokenizerWrapper(pieces)
        known[ends] = LLTokenizer(
            wrapped, n_vocab=len(pieces.tokens), eos_token=sorted(ends) or [tokenizer.vocab_size]
        )
    return known[ends]
