"""Documents in the order of their relevance to a query, and prompts with a query and a document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.encoders.tasks import EncoderModel, classify, embed, sparse, token_vectors
from pellucid.engine.encoder_inputs import EncoderInput
from pellucid.engine.inputs import Inputs
from pellucid.errors import ContextOverflow, InvalidRequest, brief, shown
from pellucid.model.outputs import PairPrompt, Similarity, Task
from pellucid.trace.edits import Edit
from pellucid.util import checks

# Prompts with a query and a document.
#
# A reranker made of a language model reads both in its own prompt (``outputs.PairPrompt``). A sentence encoder reads
# them apart, each with its own prompt.

PLACE = "{instruction}"
LINE = re.compile(r"[^\n]*\{instruction\}\n?")
ROLES = [re.compile(f"""["']{role}["']""") for role in ("query", "document")]
"""The roles of messages that a chat template for rerankers names."""
INSTRUCT = re.compile(r"(?<=Instruct: )[^\n]*(?=\nQuery:)")
"""The instruction in the prompt of a query: "Instruct: ...\\nQuery:" (Wang et al. 2023, E5-Mistral)."""
QUERY_PROMPTS = ("query", "retrieval.query")
DOCUMENT_PROMPTS = ("document", "passage", "corpus", "retrieval.passage")
"""Names of the prompts of queries and of documents, as in sentence-transformers and in Jina's models."""


def pair_inputs(
    inputs: Inputs, query: str, documents: Sequence[str], instruction: str = "", truncate: bool = False
) -> list[EncoderInput]:
    """The token ids of the query with each document: in the model's prompt, or as a pair of texts without a template.

    ``instruction`` is a text or the name of a prompt ("": the model's default instruction). In a pair of texts it is
    put before the query. With ``truncate``, the end
    of a document that is too long is left out.

    Raises:
        InvalidRequest: a text is empty, the model takes no instruction, or its prompt is missing.
        ContextOverflow: a pair is longer than the context, and ``truncate`` is off or the query alone is too long.
        TemplateError: the chat template fails.
    """
    encode = _encoder(inputs, query, instruction)
    if encode is None:
        if instruction and not inputs.spec.prompts:
            raise _takes_none(inputs, instruction)
        return inputs.pairs([(query, document) for document in documents], truncate, instruction)
    for text in (query, *documents):
        checks.text("text", text)
    shorten = _shortened if truncate else lambda inputs, encode, document: encode(document)
    return [EncoderInput(inputs.sentence_ids(shorten(inputs, encode, one))) for one in documents]


def _encoder(inputs: Inputs, query: str, instruction: str) -> Callable[[str], list[int]] | None:
    """The function from a document to the ids of the model's prompt with it; None: the model has no prompt."""
    tokenizer, spec = inputs.tokenizer, inputs.spec
    prompt = spec.pair_prompt or PairPrompt()
    stated = inputs.prompt_of(instruction) if instruction else prompt.instruction
    if tokenizer.chat_template and all(role.search(tokenizer.chat_template) for role in ROLES):
        system = [{"role": "system", "content": stated}] if stated else []
        before = [*system, {"role": "query", "content": query}]
        return lambda document: tokenizer.encode_chat(
            [*before, {"role": "document", "content": document}], add_generation_prompt=prompt.generation_prompt
        )
    template = prompt.template
    if template:
        if instruction and PLACE not in template:
            raise _takes_none(inputs, instruction)
        template = template if stated else LINE.sub("", template)
        texts = {"query": query, "instruction": stated}
        return lambda document: tokenizer.encode_filled(template, {**texts, "document": document})
    if tokenizer.chat_template and spec.labels is not None and spec.labels.relevant is not None:
        raise InvalidRequest(
            f'{shown(spec.name)} needs a chat template with the roles "query" and "document", which its files lack: '
            "load it with chat_template"
        )
    return None


def _shortened(inputs: Inputs, encode: Callable[[str], list[int]], document: str) -> list[int]:
    """The ids of the prompt with as much of the document as fits into the context."""
    ids, context = encode(document), inputs.context
    if len(ids) > context and inputs.cut == "left":
        raise InvalidRequest(
            f"{shown(inputs.spec.name)} reads a prompt, in which only the end of a document is cut off"
        )
    while len(ids) > context:
        offsets = inputs.tokenizer.encode_with_offsets(document, add_special=False).offsets
        kept = len(offsets) - (len(ids) - context)
        if kept < 1:
            raise ContextOverflow(
                f"the query is too long: with the prompt {len(ids) - len(offsets):,} tokens, and the context is "
                f"{context:,} tokens: shorten the query"
            )
        # Tokens that share a character end at the same place.
        document = document[: min(offsets[kept - 1][1], len(document) - 1)]
        ids = encode(document)
    return ids


def retrieval_prompts(inputs: Inputs, instruction: str = "") -> tuple[str, str]:
    """The prompts of a sentence encoder for a query and for documents ("": its default prompt). Raises InvalidRequest
    if the prompt of a query has no instruction.
    """
    prompts = dict(inputs.spec.prompts)
    query, document = (
        next((name for name in names if name in prompts), "") for names in (QUERY_PROMPTS, DOCUMENT_PROMPTS)
    )
    if inputs.spec.adapters and inputs.spec.adapter not in (query, document):
        query = document = ""  # other adapters, and the base model, read both as they are
    if instruction:
        if not INSTRUCT.search(prompts.get(query, "")):
            raise _takes_none(inputs, instruction)
        query = INSTRUCT.sub(lambda _: instruction, prompts[query])
    return query, document


def prompt_for(inputs: Inputs, purpose: str) -> str:
    """The name of the prompt for a purpose: "query", "document", or the name of another prompt.

    A model without a prompt for the purpose reads the text as it is, with its default prompt if it has one ("").
    """
    query, document = retrieval_prompts(inputs)
    found = {"query": query, "document": document}.get(purpose, purpose)
    return found if found in dict(inputs.spec.prompts) else ""


def _takes_none(inputs: Inputs, instruction: str) -> InvalidRequest:
    return InvalidRequest(
        f"instruction={brief(instruction)}: {shown(inputs.spec.name)} takes no instruction: leave it out"
    )


# Documents in the order of their relevance to a query.
#
# A cross-encoder reads query and document together (Nogueira and Cho 2019); a reranker made of a language model reads
# them in its own prompt. A sentence encoder compares their vectors, with its prompts for queries and documents, by the
# similarity that its file states. A model with a vector for each token adds, for each token of the query, the best
# product with a token of the document (Khattab and Zaharia 2020, ColBERT).

MOST = 1 << 31
PAIR_TASKS: Sequence[Task] = ("classify", "embed", "tokens", "sparse")  # tasks whose models compare two texts


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
    model: EncoderModel, encoded: Sequence[list[int]], count: int, asked: Sequence[int], edits: Sequence[Edit] | None
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
    return [float(sum((own * vector).sum(1).max() for vector in rows[i])) for i, own in zip(asked, rows[count:])]


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
