"""Documents in the order of their relevance to a query.

A cross-encoder reads query and document together (Nogueira and Cho 2019). A sentence encoder compares their vectors. A
model with a vector for each token adds, for each token of the query, the best product with a token of the document
(Khattab and Zaharia 2020, ColBERT).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from pellucid.encoders.classification import classify
from pellucid.encoders.embedding import embed, sparse, token_vectors
from pellucid.encoders.model import EncoderModel
from pellucid.errors import InvalidRequest
from pellucid.errors.messages import shown
from pellucid.trace.edits import Edit


class RankedDocument(Struct, frozen=True):
    """A document: its place in the list that was given, its relevance, and its text."""

    index: int
    score: float
    text: str


def rerank(
    model: EncoderModel,
    query: str,
    documents: Sequence[str],
    *,
    top: int | None = None,
    truncate: bool = False,
    edits: Sequence[Edit] | None = None,
) -> list[RankedDocument]:
    """The ``top`` most relevant documents (None: all), the most relevant first; equal ones in the given order.

    Raises:
        InvalidRequest: the model classifies texts by more than one label.
        ContextOverflow: a text is longer than the context and ``truncate`` is off.
    """
    scores, _ = relevance(model, query, documents, truncate, edits)
    order = sorted(range(len(documents)), key=lambda index: -scores[index])
    return [RankedDocument(index, scores[index], documents[index]) for index in order[:top]]


def relevance(
    model: EncoderModel,
    query: str,
    documents: Sequence[str],
    truncate: bool = False,
    edits: Sequence[Edit] | None = None,
) -> tuple[list[float], int]:
    """The relevance of each document to the query, and the number of tokens that were read. Errors as ``rerank``."""
    model.inputs.check_task("classify", "embed", "tokens", "sparse")
    task, inputs = model.spec.task, model.inputs
    if task == "classify":
        labels = model.spec.labels
        assert labels is not None
        if len(labels.names) > 1:
            raise InvalidRequest(
                f"{shown(model.spec.name)} has the labels {', '.join(map(shown, labels.names[:3]))}: ranking needs one "
                "label, the relevance: use classify"
            )
        pairs = inputs.pairs([(query, document) for document in documents], truncate)
        tokens = sum(len(pair.ids) for pair in pairs)
        return [one.scores[0] for one in classify(model, pairs, edits)], tokens
    encoded = inputs.sentences([query, *documents], truncate)
    tokens = sum(map(len, encoded))
    if task == "embed":
        vectors = embed(model, encoded, edits=edits).astype(np.float64)
        lengths = np.sqrt((vectors * vectors).sum(1))
        # Sums of rows, not matrix products, whose rounding depends on the number of documents.
        products = (vectors[1:] * vectors[0]).sum(1)
        return [float(score) for score in products / np.maximum(lengths[1:] * lengths[0], 1e-30)], tokens
    if task == "sparse":
        asked, *others = sparse(model, encoded, edits)
        terms = ((weight * other.get(token, 0.0) for token, weight in asked.items()) for other in others)
        return list(map(sum, terms)), tokens
    of_query, *rows = (own.astype(np.float64) for own in token_vectors(model, encoded, edits))
    return [float(sum((own * vector).sum(1).max() for vector in of_query)) for own in rows], tokens
