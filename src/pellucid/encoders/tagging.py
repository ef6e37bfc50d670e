"""Labels of tokens, with the characters that they cover (named entities, parts of speech).

The groups follow the token classification pipeline of transformers (``aggregation_strategy``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.encoders.tasks import EncoderModel
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.encoding import Encoding
from pellucid.tokenize.kinds.wordpiece import WordPiece
from pellucid.trace.edits import Edit
from pellucid.util.probabilities import sigmoid, softmax

Grouping = Literal["none", "simple", "first", "average", "max"]
GROUPINGS = ("none", "simple", "first", "average", "max")


class Tag(Struct, frozen=True):
    """A label of the characters ``start`` to ``end`` - 1 of a text, with its probability."""

    label: str
    score: float
    start: int
    end: int
    text: str


class _Word(Struct):
    """A token or a word: its characters, and the probabilities of its labels (N,)."""

    start: int
    end: int
    scores: NDArray[np.float64]
    continues: bool = False
    """True if the token continues the word of the token before it."""


def tag(
    model: EncoderModel, text: str, grouping: Grouping = "simple", edits: Sequence[Edit] | None = None
) -> list[Tag]:
    """The labels of a text's tokens, without the label "O".

    If the model has a single label, tokens with a probability of at least 1/2 have it (ELECTRA: replaced tokens).

    ``grouping`` joins tokens with the same entity, whose labels may begin with B- and I-: "none" joins no tokens,
    "simple" joins neighbouring tokens. "first", "average" and "max" first join the tokens of a word: the word has the
    label of its first token, of the mean of its probabilities, or of the token with the highest probability.

    Raises:
        InvalidRequest: the grouping is unknown.
    """
    if grouping not in GROUPINGS:
        raise InvalidRequest(f"grouping={brief(grouping)}: must be one of {', '.join(GROUPINGS)}")
    labels = model.spec.labels
    assert labels is not None
    given, encoding = model.inputs.with_offsets(text)
    (rows,) = model.encode([given], edits)
    names = labels.names
    scores: Callable[[NDArray[np.float32]], NDArray[np.float64]] = softmax
    if labels.scale == "sigmoid" and len(names) == 1:
        names, scores = ("O", *names), _of_two
    tokens = list(_tokens(model.tokenizer, text, encoding, rows, scores))
    words = tokens if grouping in ("none", "simple") else _words(tokens, grouping)
    tags = [_tag(text, word, names) for word in words]
    if grouping == "none":
        return [one for one in tags if one.label != "O"]
    return _entities(text, tags)


def _of_two(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probabilities that a token does not have the only label, and that it has it."""
    (present,) = sigmoid(logits)
    return np.array([1 - present, present])


def _tokens(
    tokenizer: Tokenizer,
    text: str,
    encoding: Encoding,
    rows: NDArray[np.float32],
    scores: Callable[[NDArray[np.float32]], NDArray[np.float64]],
) -> Iterator[_Word]:
    """The tokens of the text, without special tokens.

    In WordPiece, a token that continues a word has a prefix, so that it is longer than its characters. In other kinds,
    a token continues a word if neither its first character nor the character before it is a space.
    """
    prefixed = isinstance(tokenizer.model, WordPiece)
    unknown = tokenizer.vocabulary.ids.get(tokenizer.named_tokens.get("unk_token", ""))
    for token, logits in zip(encoding, rows):
        if token.special:
            continue
        if prefixed:
            continues = len(token.text) != token.end - token.start
        else:
            continues = token.start > 0 and " " not in text[token.start - 1 : token.start + 1]
        yield _Word(token.start, token.end, scores(logits), continues and token.id != unknown)


def _words(tokens: Sequence[_Word], grouping: Grouping) -> list[_Word]:
    """Join the tokens of each word."""
    words: list[list[_Word]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return [_Word(own[0].start, own[-1].end, _joined([one.scores for one in own], grouping)) for own in words]


def _joined(scores: Sequence[NDArray[np.float64]], grouping: Grouping) -> NDArray[np.float64]:
    if grouping == "first":
        return scores[0]
    if grouping == "average":
        return np.asarray(np.mean(scores, 0), np.float64)
    return max(scores, key=lambda own: float(own.max()))


def _tag(text: str, word: _Word, names: Sequence[str]) -> Tag:
    best = int(word.scores.argmax())
    return Tag(names[best], float(word.scores[best]), word.start, word.end, text[word.start : word.end])


def _entities(text: str, tags: Sequence[Tag]) -> list[Tag]:
    """Join neighbouring tags of one entity. A label that begins with B- begins a new entity."""
    groups: list[list[Tag]] = []
    for one in tags:
        prefix, entity = _parts(one.label)
        if groups and prefix != "B" and _parts(groups[-1][-1].label)[1] == entity:
            groups[-1].append(one)
        else:
            groups.append([one])
    found = []
    for own in groups:
        entity, start, end = _parts(own[0].label)[1], own[0].start, own[-1].end
        if entity != "O":
            score = float(np.mean([one.score for one in own]))
            found.append(Tag(entity, score, start, end, text[start:end]))
    return found


def _parts(label: str) -> tuple[str, str]:
    """The prefix B or I of a label, and its entity. A label without a prefix counts as inside."""
    if label[:2] in ("B-", "I-"):
        return label[0], label[2:]
    return "I", label
