"""Documents in the order of their relevance to a query.

A cross-encoder reads query and document together (Nogueira and Cho 2019); a reranker made of a language model reads
them in its own prompt. A sentence encoder compares their vectors, with its prompts for queries and documents, by the
similarity that its file states. A model with a vector for each token adds, for each token of the query, the best
product with a token of the document (Khattab and Zaharia 2020, ColBERT).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.encoders.classification import classify
from pellucid.encoders.embedding import embed, sparse, token_vectors
from pellucid.encoders.model import EncoderModel
from pellucid.encoders.pair_prompts import pair_inputs, retrieval_prompts
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import shown
from pellucid.model.outputs import Similarity, Task
from pellucid.trace.edits import Edit
from pellucid.util import checks

MOST = 1 << 31
PAIR_TASKS: Sequence[Task] = ("classify", "embed", "tokens", "sparse")
"""Tasks whose models compare two texts."""


class RankedDocument(Struct, frozen=True):
    """A document: its place in the list that was given, its relevance, and its text."""

    index: int
    score: float
    text: str


def rerank(
    model: EncoderModel,
    query: str,
    documents: Iterable[str],
    *,
    instruction: str = "",
    top: int | None = None,
    truncate: bool = False,
    edits: Sequence[Edit] | None = None,
) -> list[RankedDocument]:
    """The ``top`` most relevant documents (None: all), the most relevant first; equal ones in the given order.

    ``instruction`` says what makes a document relevant ("": the model's default).

    Raises:
        InvalidRequest: ``documents`` is not a list of texts, ``top`` is below 1, the model takes no instruction, or it
            classifies texts by labels that are no relevance.
        ContextOverflow: a text is longer than the context and ``truncate`` is off.
    """
    documents = checks.strings("documents", documents)
    checks.text("query", query)
    checks.string("instruction", instruction)
    truncate = checks.boolean("truncate", truncate)
    if top is not None:
        top = checks.whole("top", top, 1, MOST)
    scores, _ = pair_scores(model, [(query, one) for one in documents], truncate, edits, instruction)
    order = sorted(range(len(documents)), key=lambda index: -scores[index])
    return [RankedDocument(index, scores[index], documents[index]) for index in order[:top]]


def pair_scores(
    model: EncoderModel,
    pairs: Sequence[tuple[str, str]],
    truncate: bool = False,
    edits: Sequence[Edit] | None = None,
    instruction: str = "",
    raw: bool = False,
) -> tuple[list[float], int]:
    """The relevance of the document to the query in each pair (query, document), and the number of tokens.

    With ``raw``, the relevance of a cross-encoder is its logit, without the scale of ``Labels``. Errors as ``rerank``.
    """
    model.inputs.check_task(*PAIR_TASKS)
    task, inputs = model.spec.task, model.inputs
    if task == "classify":
        return _read_together(model, pairs, truncate, edits, instruction, raw)
    if not pairs:
        return [], 0
    of_query, of_document = retrieval_prompts(inputs, instruction)
    places = {query: at for at, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
    encoded = inputs.sentences(list(places), truncate, of_query)
    encoded += inputs.sentences([document for _, document in pairs], truncate, of_document)
    asked = [places[query] for query, _ in pairs]
    return _similarities(model, encoded, len(places), asked, edits), sum(map(len, encoded))


def _read_together(
    model: EncoderModel,
    pairs: Sequence[tuple[str, str]],
    truncate: bool,
    edits: Sequence[Edit] | None,
    instruction: str,
    raw: bool,
) -> tuple[list[float], int]:
    """The scores of a cross-encoder, and the number of tokens."""
    labels = model.spec.labels
    assert labels is not None
    label = labels.relevance
    if label is None:
        raise InvalidRequest(
            f"{shown(model.spec.name)} has the labels {', '.join(map(shown, labels.names[:3]))}: ranking needs one "
            "label, the relevance: use classify"
        )
    inputs = [
        one
        for query, own in groupby(pairs, itemgetter(0))
        for one in pair_inputs(model.inputs, query, [document for _, document in own], instruction, truncate)
    ]
    found = classify(model, inputs, edits)
    return [(one.logits if raw else one.scores)[label] for one in found], sum(len(one.ids) for one in inputs)


def _similarities(
    model: EncoderModel,
    encoded: Sequence[list[int]],
    count: int,
    asked: Sequence[int],
    edits: Sequence[Edit] | None,
) -> list[float]:
    """The similarity of each text after the first ``count`` texts to the text ``asked[i]`` of the first."""
    task = model.spec.task
    if task == "embed":
        vectors = embed(model, encoded, edits=edits)
        return similarity_of_rows(vectors[list(asked)], vectors[count:], model.spec.similarity)
    if task == "sparse":
        weights = sparse(model, encoded, edits)
        pairs = [(weights[i], other) for i, other in zip(asked, weights[count:])]
        return [sum(weight * other.get(token, 0.0) for token, weight in own.items()) for own, other in pairs]
    rows = [own.astype(np.float64) for own in token_vectors(model, encoded, edits)]
    return [
        float(sum((own * vector).sum(1).max() for vector in rows[i])) for i, own in zip(asked, rows[count:])
    ]


def similarity_of_rows(
    first: NDArray[np.float32], second: NDArray[np.float32], kind: Similarity = "cosine"
) -> list[float]:
    """The similarity of each row of ``first`` (B, N) to the row of ``second`` (B, N)."""
    # In row-major order, because the order of a sum's terms, and so its rounding, depends on the layout.
    left, right = first.astype(np.float64, order="C"), second.astype(np.float64, order="C")
    # Sums of rows, not matrix products, whose rounding depends on the number of rows.
    if kind == "manhattan":
        found = -np.abs(left - right).sum(1)
    elif kind == "euclidean":
        found = -np.sqrt(((left - right) ** 2).sum(1))
    else:
        found = (left * right).sum(1)
    if kind == "cosine":
        lengths = np.sqrt((left * left).sum(1)) * np.sqrt((right * right).sum(1))
        found = found / np.maximum(lengths, 1e-30)
    return [float(one) for one in found]
