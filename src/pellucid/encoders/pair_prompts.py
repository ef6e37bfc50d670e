"""Prompts with a query and a document.

A reranker made of a language model reads both in its own prompt (``outputs.PairPrompt``). A sentence encoder reads them
apart, each with its own prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pellucid.engine.encoder_input import EncoderInput
from pellucid.engine.inputs import Inputs
from pellucid.errors import ContextOverflow, InvalidRequest
from pellucid.errors.messages import brief, shown
from pellucid.model.outputs import PairPrompt
from pellucid.util import checks

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
            [*before, {"role": "document", "content": document}],
            add_generation_prompt=prompt.generation_prompt,
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
    """The prompts of a sentence encoder for a query and for documents ("": its default prompt).

    Raises:
        InvalidRequest: the prompt of a query has no instruction.
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
