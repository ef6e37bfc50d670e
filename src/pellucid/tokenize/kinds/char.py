"""Characters, SentencePiece's CHAR, and plain bytes, ByT5's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.sentencepiece import CHAR, SentencePieceParts
from pellucid.tokenize.files.sidecar import Sidecar
from pellucid.tokenize.files.tokenizer_classes import extra_pieces
from pellucid.tokenize.kind import Kind
from pellucid.tokenize.stages.decode import BytesDecoder
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.stages.pretokenize import AddedToken, AddedTokens, PreTokenizer
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import TokenType, Vocabulary


class Affixes(Struct, frozen=True):
    """Texts added to a pre-token's characters: ``prefix`` before each except the first, ``suffix`` after the last."""

    prefix: str = ""
    suffix: str = ""

    def __call__(self, pre_token: str) -> list[str]:
        """The spelling of each character, with its affixes."""
        spelled = [*pre_token[:1], *(f"{self.prefix}{character}" for character in pre_token[1:])]
        return [*spelled[:-1], f"{spelled[-1]}{self.suffix}"] if spelled else spelled

    def by_place(self) -> tuple[tuple[str, str], ...]:
        """The texts before and after a character: inside a pre-token, at its start, at its end, alone in it."""
        return (self.prefix, ""), ("", ""), (self.prefix, self.suffix), ("", self.suffix)


class Chars(TokenizerModel):
    """The model stage: the characters of a pre-token.

    ``names`` has the piece of every id. ``pieces`` maps a piece to its id, for every piece that text can become.
    ``byte_ids`` maps a byte to its id (empty: no byte fallback). ``unknown`` is the id of an unknown character, which
    has neither a piece nor pieces for its bytes (None: unknown characters are dropped). With ``fuse``, adjacent unknown
    characters become one token. With ``exactly``, only the last byte of a character covers the character, as in
    SentencePiece. Otherwise each byte covers the character, as in ``tokenizers``. ``affixes`` are added to characters
    before the characters are looked up.
    """

    def __init__(
        self,
        names: Sequence[str],
        pieces: Mapping[str, int],
        byte_ids: Mapping[int, int],
        unknown: int | None,
        fuse: bool = True,
        exactly: bool = False,
        affixes: Affixes | None = None,
    ) -> None:
        self._names, self._pieces, self._byte_ids = names, pieces, byte_ids
        self._unknown, self._fuse, self._exactly, self._affixes = unknown, fuse, exactly, affixes

    @property
    def drops(self) -> bool:
        return self._unknown is None and len(self._byte_ids) < 256

    def spans(self, pre_token: str) -> list[Span]:
        return self.symbols(pre_token)

    def symbols(self, pre_token: str) -> list[Span]:
        """The ids of the characters.

        The order is the same as in ``tokenizers``. An unknown token is not appended at once, but before the next
        character that has a piece, or at the end. So it comes after the byte tokens of the characters in between. An
        offset is the sum of the lengths in bytes of the ids before it. A dropped character therefore shifts all later
        offsets of its pre-token to the left.
        """
        symbols, widths = list[Span](), dict[int, int]()  # widths in bytes of some symbols
        waiting: Span | None = None  # the unknown token until it is appended
        width, moved = 0, False
        for at, spelled in enumerate(self._affixes(pre_token) if self._affixes else pre_token):
            index = self._pieces.get(spelled)
            data = b"" if index is not None else spelled.encode()
            if data and self._byte_ids.keys() >= set(data):
                moved = moved or waiting is not None or spelled != pre_token[at]
                widths.update((len(symbols) + place, 1) for place in range(len(data)))
                ends = [at if self._exactly else at + 1] * (len(data) - 1) + [at + 1]
                symbols.extend((self._byte_ids[byte], at, end) for byte, end in zip(data, ends))
                continue
            if index is None and self._unknown is None:
                moved = True
                continue
            if index is None and waiting is not None and self._fuse:
                waiting, width = (waiting[0], waiting[1], at + 1), width + len(pre_token[at].encode())
                continue
            if waiting is not None:
                widths[len(symbols)] = width
                symbols.append(waiting)
                waiting = None
            if index is not None:
                symbols.append((index, at, at + 1))
            elif self._unknown is not None:
                waiting, width = (self._unknown, at, at + 1), len(pre_token[at].encode())
        if waiting is not None:
            widths[len(symbols)] = width
            symbols.append(waiting)
        return self._moved(pre_token, symbols, widths) if moved else symbols

    @staticmethod
    def _moved(pre_token: str, symbols: list[Span], widths: Mapping[int, int]) -> list[Span]:
        """The symbols with new offsets, computed from the widths in bytes of the symbols before each symbol."""
        owners = [at for at, character in enumerate(pre_token) for _ in character.encode()]
        moved, done = list[Span](), 0
        for at, (index, start, _) in enumerate(symbols):
            end = done + widths.get(at, len(pre_token[start].encode()))
            covered = owners[done:end] or [len(pre_token)]  # the bytes of a suffix lie after the pre-token
            moved.append((index, covered[0], min(covered[-1] + 1, len(pre_token))))
            done = end
        return moved

    def explain(self, pre_token: str) -> dict[str, Any]:
        return {"symbols": [self._names[index] for index, _, _ in self.symbols(pre_token)]}


def from_sentencepiece(parts: SentencePieceParts) -> Chars:
    """The model stage of a SentencePiece file."""
    return Chars(parts.vocabulary.tokens, parts.pieces, parts.byte_ids, parts.unknown, exactly=True)


KIND = Kind("char", sentencepiece={CHAR: from_sentencepiece})


# Plain bytes: one id for each byte of the text (Xue et al. 2021, ByT5). The ids of special tokens come first.

SPECIAL = ("<pad>", "</s>", "<unk>")


class Bytes(TokenizerModel):
    """The model stage: the id of a byte is its value plus ``shift``."""

    def __init__(self, shift: int) -> None:
        self._shift = shift

    def __call__(self, pre_token: str) -> list[int]:
        return [self._shift + byte for byte in pre_token.encode()]

    def spans(self, pre_token: str) -> list[Span]:
        """The ids with the characters that they cover; each byte covers its whole character."""
        return [(self._shift + byte, at, at + 1) for at, letter in enumerate(pre_token) for byte in letter.encode()]

    def explain(self, pre_token: str) -> dict[str, Any]:
        return {"bytes": pre_token.encode().hex(" ")}


def from_config(folder: Path, sidecar: Sidecar) -> Tokenizer:
    """ByT5's tokenizer; ``tokenizer_config.json`` gives the number of extra ids. Raises :class:`FileFormatError`."""
    extra = extra_pieces(sidecar.config, "extra_ids", 125)
    shift = len(SPECIAL)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *(f"<extra_id_{at}>" for at in range(extra))]
    types = [TokenType.CONTROL] * shift + [TokenType.BYTE] * 256 + [TokenType.CONTROL] * extra
    vocabulary = Vocabulary(tokens, list(map(int, types)), folder, "tokens")
    special = (AddedToken(index, tokens[index], special=True) for index in sorted(vocabulary.special_ids))
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(special),
        normalized_added=AddedTokens(()),
        normalizer=None,
        pre_tokenizer=PreTokenizer(),
        model=Bytes(shift),
        post_processor=Template.around((), (vocabulary.ids["</s>"],)),
        decoder=BytesDecoder(tokens, shift),
        **sidecar.arguments(vocabulary),
    )


BYTES_KIND = Kind("bytes", classes={"ByT5Tokenizer": from_config})
