"""Characters: each becomes a piece, the pieces of its bytes, or the unknown token. SentencePiece's model type CHAR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.sentencepiece import CHAR, SentencePieceParts
from pellucid.tokenize.kind import Kind
from pellucid.tokenize.model import TokenizerModel
from pellucid.tokenize.stages.pretokenize import Split


class Chars(TokenizerModel):
    """The model stage: the characters of a pre-token.

    ``names`` has the piece of every id; ``pieces`` maps text to id for every piece that text may become; ``byte_ids``
    maps byte to id (empty: no byte fallback); ``unknown`` is the id of characters without a piece or bytes (None: they
    are dropped); ``fuse`` joins adjacent unknown characters into one token. ``exactly`` follows SentencePiece: only the
    last byte of a character covers it; otherwise all its bytes do, as in ``tokenizers``.
    """

    cut: Split | None = None

    def __init__(
        self,
        names: Sequence[str],
        pieces: Mapping[str, int],
        byte_ids: Mapping[int, int],
        unknown: int | None,
        fuse: bool = True,
        exactly: bool = False,
    ) -> None:
        self._names, self._pieces, self._byte_ids = names, pieces, byte_ids
        self._unknown, self._fuse, self._exactly = unknown, fuse, exactly

    def __call__(self, piece: str) -> list[int]:
        return [index for index, _, _ in self.spans(piece)]

    def spans(self, piece: str) -> list[Span]:
        """The ids with the characters that they cover."""
        return self.symbols(piece)

    def symbols(self, piece: str) -> list[Span]:
        """The ids of the characters.

        A dropped character shifts the offsets after it in its pre-token to the left by its bytes, as in ``tokenizers``,
        which adds up the bytes of the ids.
        """
        symbols: list[Span] = []
        dropped = False
        open_ = False  # whether the last symbol is the unknown token
        for at, character in enumerate(piece):
            index = self._pieces.get(character)
            if index is not None:
                symbols.append((index, at, at + 1))
                open_ = False
                continue
            data = character.encode()
            if self._byte_ids.keys() >= set(data):
                ends = [at if self._exactly else at + 1] * (len(data) - 1) + [at + 1]
                symbols.extend((self._byte_ids[byte], at, end) for byte, end in zip(data, ends))
                open_ = False
            elif self._unknown is None:
                dropped = True
            elif self._fuse and open_:
                symbols[-1] = (self._unknown, symbols[-1][1], at + 1)
            else:
                symbols.append((self._unknown, at, at + 1))
                open_ = True
        return self._moved(piece, symbols) if dropped else symbols

    def _moved(self, piece: str, symbols: list[Span]) -> list[Span]:
        owners = [at for at, character in enumerate(piece) for _ in character.encode()]
        values, moved, done = set(self._byte_ids.values()), list[Span](), 0
        for index, start, _ in symbols:
            end = done + (1 if index in values else len(piece[start].encode()))
            moved.append((index, owners[done], owners[end - 1] + 1))
            done = end
        return moved

    def explain(self, piece: str) -> dict[str, Any]:
        """The pieces of the characters."""
        return {"symbols": [self._names[index] for index, _, _ in self.symbols(piece)]}


def from_sentencepiece(parts: SentencePieceParts) -> Chars:
    """The model stage of a SentencePiece file."""
    return Chars(parts.vocabulary.tokens, parts.pieces, parts.byte_ids, parts.unknown, exactly=True)


KIND = Kind("char", sentencepiece={CHAR: from_sentencepiece})
