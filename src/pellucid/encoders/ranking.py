"""Documents in the order of their relevance to a query.

A cross-encoder reads query and document together (Nogueira and Cho 2019); a reranker made of a language model reads
them in its own prompt. A sentence encoder compares their vectors, with its prompts for queries and documents. A model
with a vector for each token adds, for each token of the query, the best product with a token of the document
(Khattab and Zaharia 2020, ColBERT).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from pellucid.encoders.classification import classify
from pellucid.encoders.embedding import embed, sparse, token_vectors
from pellucid.encoders.model import EncoderModel
from pellucid.encoders.pair_prompts import pair_inputs, retrieval_prompts
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
    instruction: str = "",
    top: int | None = None,
    truncate: bool = False,
    edits: Sequence[Edit] | None = None,
) -> list[RankedDocument]:
    """The ``top`` most relevant documents (None: all), the most relevant first; equal ones in the given order.

    ``instruction`` says what makes a document relevant ("": the model's default).

    Raises:
        InvalidRequest: the model takes no instruction, or classifies texts by labels that are no relevance.
        ContextOverflow: a text is longer than the context and ``truncate`` is off.
    """
    scores, _ = relevance(model, query, documents, truncate, edits, instruction)
    order = sorted(range(len(documents)), key=lambda index: -scores[index])
    return [RankedDocument(index, scores[index], documents[index]) for index in order[:top]]


def relevance(
    model: EncoderModel,
    query: str,
    documents: Sequence[str],
    truncate: bool = False,
    edits: Sequence[Edit] | None = None,
    instruction: str = "",
) -> tuple[list[float], int]:
    """The relevance of each document to the query, and the number of tokens that were read. Errors as ``rerank``."""
    model.inputs.check_task("classify", "embed", "tokens", "sparse")
    task, inputs = model.spec.task, model.inputs
    if task == "classify":
        labels = model.spec.labels
        assert labels is not None
        label = labels.relevance
        if label is None:
            raise InvalidRequest(
                f"{shown(model.spec.name)} has the labels {', '.join(map(shown, labels.names[:3]))}: ranking needs one "
                "label, the relevance: use classify"
            )
        pairs = pair_inputs(inputs, query, documents, instruction, truncate)
        tokens = sum(len(pair.ids) for pair in pairs)
        return [one.scores[label] for one in classify(model, pairs, edits)], tokens
    of_query, of_document = retrieval_prompts(inputs, instruction)
    encoded = inputs.sentences([query], truncate, of_query)
    if documents:
        encoded += inputs.sentences(documents, truncate, of_document)
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
    asked_rows, *rows = (own.astype(np.float64) for own in token_vectors(model, encoded, edits))
    return [float(sum((own * vector).sum(1).max() for vector in asked_rows)) for own in rows], tokens
