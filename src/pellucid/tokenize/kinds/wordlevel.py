"""Whole words: each word is a piece or unknown.

Hugging Face calls this kind WordLevel. SentencePiece's model type WORD also splits the text into words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.tokenize.encoding import Span
from pellucid.tokenize.files.sentencepiece import WORD, SentencePieceParts
from pellucid.tokenize.files.tokenizer_json import JsonModelReader, TokenizerJson
from pellucid.tokenize.kind import Kind
from pellucid.tokenize.stages.pretokenize import BEFORE_SPACES, Split
from pellucid.tokenize.tokenizer_model import TokenizerModel, without_token


class WordLevel(TokenizerModel):
    """The model stage: one word → one id.

    A word that is not in the vocabulary becomes the id ``unknown``. If ``unknown`` is None, such a word is refused.
    ``words`` splits a pre-token into words. If ``words`` is None, a pre-token is one word. Adjacent unknown words
    become one token.
    """

    def __init__(self, ids: Mapping[str, int], unknown: int | None, words: Split | None = None) -> None:
        self._ids, self._unknown, self._words = ids, unknown, words

    def spans(self, pre_token: str) -> list[Span]:
        """The ids with the characters that they cover."""
        spans: list[Span] = []
        for start, stop in [(0, len(pre_token))] if self._words is None else self._words.spans(pre_token):
            index = self._ids.get(pre_token[start:stop], self._unknown)
            if index is None:
                raise without_token(pre_token[start:stop])
            if spans and spans[-1][0] == index == self._unknown:
                spans[-1] = (index, spans[-1][1], stop)
            else:
                spans.append((index, start, stop))
        return spans

    def explain(self, pre_token: str) -> dict[str, Any]:
        """The words that are not in the vocabulary."""
        words = [pre_token] if self._words is None else self._words(pre_token)
        unknown = [word for word in words if word not in self._ids]
        return {"unknown": f"not in the vocabulary: {', '.join(map(repr, unknown))}"} if unknown else {}


def from_json(parts: TokenizerJson) -> WordLevel:
    """The model stage of a ``tokenizer.json``. Raises FileFormatError, UnsupportedModel."""
    model = parts.component(parts.model, "model", "vocab", "unk_token")
    unknown = parts.vocabulary.ids.get(parts.text(model, "unk_token", "<unk>"))
    return WordLevel(parts.text_ids, unknown)


def from_sentencepiece(parts: SentencePieceParts) -> WordLevel:
    """The model stage of a SentencePiece file."""
    return WordLevel(parts.pieces, parts.unknown, BEFORE_SPACES)


KIND = Kind(
    "wordlevel",
    json=JsonModelReader("WordLevel", from_json),
    sentencepiece={WORD: from_sentencepiece},
)
