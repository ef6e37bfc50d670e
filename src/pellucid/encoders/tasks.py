"""The tasks of encoders: vectors, scores of labels, tokens at masks, answers in a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.inputs import Inputs
from pellucid.errors import InvalidRequest, brief
from pellucid.model.config import MAX_DIMENSION
from pellucid.model.outputs import scores_of
from pellucid.model.spec import ModelSpec
from pellucid.sample.candidates import Candidates
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.encoding import Encoding
from pellucid.tokenize.infill import masks_of
from pellucid.tokenize.kinds.wordpiece import WordPiece
from pellucid.trace.edits import Edit
from pellucid.util.checks import whole
from pellucid.util.probabilities import sigmoid, softmax


class EncoderModel(Protocol):
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def inputs(self) -> Inputs: ...
    def encode(self, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None) -> list[NDArray[np.float32]]:
        """Run texts through the model. Returns the outputs of each text: (1, N) if the model pools, else (tokens, N).

        The texts run together in the engine's steps. A text's outputs have the same bits whatever else runs.
        """
        ...


# Vectors of texts: sentence vectors, sparse vectors (SPLADE), and vectors of all tokens (ColBERT).


def embed(
    model: EncoderModel,
    encoded: Sequence[list[int]],
    dimensions: int | None = None,
    edits: Sequence[Edit] | None = None,
) -> NDArray[np.float32]:
    """The sentence vectors (B, N) of token ids, cut to ``dimensions`` components, by default as the file states. Raises
    InvalidRequest if the model does not state that its vectors can be cut to this length.
    """
    width = vector_width(model, dimensions)
    vectors = np.concatenate(model.encode([EncoderInput(ids) for ids in encoded], edits))
    if width == model.spec.truncate_dim:  # as sentence-transformers, which does not scale them again
        return np.ascontiguousarray(vectors[:, :width])
    return shortened(vectors, width)


def vector_width(model: EncoderModel, dimensions: int | None) -> int:
    """Length of the vectors that are cut to ``dimensions`` components (None: the length that the file states). Raises
    InvalidRequest if the model does not state that its vectors can be cut to this length.
    """
    spec, lengths = model.spec, model.spec.matryoshka
    if dimensions is None:
        return spec.truncate_dim or spec.output_width
    dimensions = whole("dimensions", dimensions, 1, MAX_DIMENSION)
    if dimensions == spec.output_width:
        return dimensions
    if lengths is None:
        raise InvalidRequest(
            f"dimensions={dimensions}: the vectors have {spec.output_width} components, and the model states no "
            "shorter length: leave it out"
        )
    if dimensions > spec.output_width or (lengths and dimensions not in lengths):
        known = ", ".join(map(str, lengths)) if lengths else f"1 to {spec.output_width}"
        raise InvalidRequest(f"dimensions={dimensions}: the model's vectors can be cut to {known}")
    return dimensions


def shortened(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """First ``width`` components of each vector, (B, width) float32. Cut vectors are scaled to length 1."""
    return vectors if width == vectors.shape[1] else unit_length(vectors[:, :width])


def unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each vector (B, N) scaled to length 1, float32."""
    values = vectors.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (values / np.maximum(lengths, 1e-30)).astype(np.float32)
    return scaled


def sparse(
    model: EncoderModel, encoded: Sequence[list[int]], edits: Sequence[Edit] | None = None
) -> list[dict[int, float]]:
    """The sparse vector of each text: the weights above 0 by token id, in the order of the ids.

    If the file states a maximum number of weights, the largest weights are kept.
    """
    found, most = [], model.spec.max_active
    for rows in model.encode([EncoderInput(ids) for ids in encoded], edits):
        (ids,) = rows[0].nonzero()
        if 0 < most < len(ids):
            ids = np.sort(ids[np.argsort(-rows[0, ids], kind="stable")[:most]])
        found.append({int(token): float(rows[0, token]) for token in ids})
    return found


def token_vectors(
    model: EncoderModel, encoded: Sequence[list[int]], edits: Sequence[Edit] | None = None
) -> list[NDArray[np.float32]]:
    return model.encode([EncoderInput(ids) for ids in encoded], edits)


# Scores of labels: classification of texts and of pairs of texts.


class Classification(Struct, frozen=True):
    """The scores of a text's labels. ``logits`` are the values before the scale of ``Labels``."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    logits: tuple[float, ...]

    @property
    def label(self) -> str:
        """The label with the highest score."""
        return self.ranked[0][0]

    @property
    def score(self) -> float:
        """The highest score."""
        return max(self.scores)

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """All labels with their scores, the highest first."""
        return sorted(zip(self.labels, self.scores), key=lambda pair: -pair[1])


def classify(
    model: EncoderModel, texts: Sequence[EncoderInput], edits: Sequence[Edit] | None = None
) -> list[Classification]:
    labels = model.spec.labels
    assert labels is not None
    found = []
    for rows in model.encode(texts, edits):
        logits = rows[0]
        found.append(Classification(labels.names, tuple(scores_of(labels, logits)), tuple(logits.tolist())))
    return found


# The tokens at the masks of a text, from a masked language model (Devlin et al. 2019).


class FilledToken(Struct, frozen=True):
    """A token for a mask: its id, its text, its probability, and the text with the token in place of the mask."""

    token: int
    text: str
    probability: float
    filled: str


def fill(model: EncoderModel, text: str, top: int = 5, edits: Sequence[Edit] | None = None) -> list[list[FilledToken]]:
    """The ``top`` most likely tokens for each mask of a text, the most likely first. Raises InvalidRequest if the text
    has no mask, or the tokenizer has no mask token.
    """
    ids = model.inputs.sentences([text])[0]
    places = masks_of(model.tokenizer, ids)
    (rows,) = model.encode([EncoderInput(ids, first_output=places[0])], edits)
    size = model.inputs.vocabulary
    return [_likely(model, ids, place, rows[place - places[0], :size], top) for place in places]


def _likely(
    model: EncoderModel, ids: list[int], place: int, logits: NDArray[np.float32], top: int
) -> list[FilledToken]:
    best = np.argsort(-logits, kind="stable")[:top]
    logs = Candidates.of(logits, f"position {place}").log_probabilities(best)
    tokenizer, found = model.tokenizer, []
    for token, log in zip(best.tolist(), logs.tolist()):
        whole = tokenizer.decode([*ids[:place], token, *ids[place + 1 :]], skip_special=True)
        part = tokenizer.decode([token], skip_special=False)
        found.append(FilledToken(token, part, math.exp(log), whole))
    return found


# The part of a text that answers a question (Rajpurkar et al. 2016; with BERT: Devlin et al. 2019).

STRIDE = 128  # the overlap of the windows of a long text, in tokens


class AnswerSpan(Struct, frozen=True):
    """The characters ``start`` to ``end`` - 1 of a text as an answer, with their probability in their window.

    ``text`` is "" and both offsets are 0 if the text has no answer.
    """

    text: str
    score: float
    start: int
    end: int


def answer(
    model: EncoderModel,
    question: str,
    text: str,
    *,
    top: int = 1,
    longest: int,
    unanswerable: bool = False,
    edits: Sequence[Edit] | None = None,
) -> list[AnswerSpan]:
    """The ``top`` most likely answers of at most ``longest`` tokens, the most likely first.

    A long text is read in windows. With ``unanswerable``, "no answer" is a possible answer: its score is the lowest
    score of the first token among the windows. Raises ContextOverflow if the question leaves no room for the text.
    """
    stride = min(STRIDE, model.inputs.context // 2 - 1)
    windows = model.inputs.windows(question, text, stride)
    found, none = dict[tuple[int, int], float](), 1.0
    for (_, window), rows in zip(windows, model.encode([given for given, _ in windows], edits)):
        spans, first = _spans(window, rows, longest)
        none = min(none, first)
        for start, end, score in spans:
            found[start, end] = max(score, found.get((start, end), 0.0))
    answers = [AnswerSpan(text[start:end], score, start, end) for (start, end), score in found.items()]
    if unanswerable:
        answers.append(AnswerSpan("", none, 0, 0))
    return sorted(answers, key=lambda one: (-one.score, one.start, one.end))[:top]


def _spans(window: Encoding, rows: NDArray[np.float32], longest: int) -> tuple[Iterator[tuple[int, int, float]], float]:
    """The characters and the scores of all spans of a window, and the score of the first token, "no answer".

    The probabilities that an answer begins or ends at a token are a softmax over the tokens of the text and the first
    token. The score of a span is the product of the probabilities of its ends.
    """
    inside = np.array([token.sequence == 1 for token in window])
    allowed = inside.copy()
    allowed[0] = True
    begins, ends = (softmax(np.where(allowed, column, -np.inf)) for column in rows.T)

    def spans() -> Iterator[tuple[int, int, float]]:
        places = np.flatnonzero(inside)
        for place in places:
            for last in range(place, min(place + longest, places[-1] + 1)):
                score = float(begins[place] * ends[last])
                yield window[int(place)].start, window[int(last)].end, score

    return spans(), float(begins[0] * ends[0])


# Labels of tokens, with the characters that they cover (named entities, parts of speech).
#
# The groups follow the token classification pipeline of transformers (``aggregation_strategy``).

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
    label of its first token, of the mean of its probabilities, or of the token with the highest probability. Raises
    InvalidRequest if the grouping is unknown.
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
