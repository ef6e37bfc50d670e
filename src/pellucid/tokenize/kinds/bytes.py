"""Plain bytes: one id for each byte of the text (Xue et al. 2021, ByT5). The ids of special tokens come first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.sidecar import Sidecar
from pellucid.tokenize.files.tokenizer_classes import extra_pieces
from pellucid.tokenize.kind import Kind
from pellucid.tokenize.stages.added_tokens import AddedToken, AddedTokens
from pellucid.tokenize.stages.decode import BytesDecoder
from pellucid.tokenize.stages.postprocess import Template
from pellucid.tokenize.stages.pretokenize import PreTokenizer
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel
from pellucid.tokenize.vocabulary import TokenType, Vocabulary

SPECIAL = ("<pad>", "</s>", "<unk>")


class Bytes(TokenizerModel):
    """The model stage: the id of a byte is its value plus ``shift``."""

    def __init__(self, shift: int) -> None:
        self._shift = shift

    def __call__(self, pre_token: str) -> list[int]:
        return [self._shift + byte for byte in pre_token.encode()]

    def spans(self, pre_token: str) -> list[Span]:
        """The ids with the characters that they cover; each byte covers its whole character."""
        return [
            (self._shift + byte, at, at + 1)
            for at, letter in enumerate(pre_token)
            for byte in letter.encode()
        ]

    def explain(self, pre_token: str) -> dict[str, Any]:
        """The bytes in hexadecimal."""
        return {"bytes": pre_token.encode().hex(" ")}


def from_config(folder: Path, sidecar: Sidecar) -> Tokenizer:
    """ByT5's tokenizer; ``tokenizer_config.json`` gives the number of extra ids. Raises :class:`FileFormatError`."""
    extra = extra_pieces(sidecar.config, "extra_ids", 125)
    shift = len(SPECIAL)
    tokens = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *(f"<extra_id_{at}>" for at in range(extra)),
    ]
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


KIND = Kind("bytes", classes={"ByT5Tokenizer": from_config})
