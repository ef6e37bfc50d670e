"""Common fields of the page's requests: a prompt, and edits of values (``look/edit_fields.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.chat.messages import ChatMessage
from pellucid.serve.look.edit_fields import EditFields
from pellucid.serve.request_body import ModelFields, RequestBody, TokenId
from pellucid.serve.served_model import ServedModel
from pellucid.util.checks import token_id


class PromptFields(ModelFields, frozen=True, kw_only=True):
    """Fields of requests about a prompt: text or token ids in ``prompt``, or ``messages``.

    In an encoder-decoder the prompt is the source, and ``answer`` has the tokens of the answer so far, without the
    first tokens of the decoder.
    """

    prompt: Annotated[str | list[TokenId] | None, Meta(title="a text or token ids")] = None
    answer: Annotated[list[TokenId] | None, Meta(title="token ids")] = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    edits: Sequence[EditFields] = ()


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of a prompt, as ``LLM.request`` takes them: ``ids``, and ``answer`` in an encoder-decoder.

    ``read`` are the tokens that the next token follows: the prompt, or the tokens of the decoder. ``source`` has the
    tokens of the source (None: the model has no source).
    """

    ids: list[int]
    answer: list[int]
    read: list[int]
    source: list[int] | None = None


def prompt_of(body: RequestBody[Any], llm: ServedModel) -> PromptTokens:
    """Tokens of the prompt or the messages of a body with ``PromptFields``.

    Raises:
        InvalidRequest: the body has neither or both, or an ``answer`` for a model without a source.
    """
    messages, prompt, answer = body.raw.get("messages"), body.fields.prompt, body.fields.answer
    if (messages is None) == (prompt is None):
        raise InvalidRequest("prompt: give either a prompt (a text, or token ids) or messages")
    if answer is not None and not llm.spec.encoder:
        raise InvalidRequest(
            f"answer={brief(answer)}: only an encoder-decoder has an answer beside its prompt: add it to the prompt"
        )
    if not llm.spec.generates:
        sentence = _sentence(prompt, llm)
        return PromptTokens(sentence, [], sentence)
    ids = llm.inputs.prompt(prompt if messages is None else messages)
    if not llm.spec.encoder:
        return PromptTokens(ids, [], ids)
    answer = [token_id("answer", token, llm.inputs.vocabulary) for token in answer or ()]
    return PromptTokens(ids, answer, llm.inputs.decoder_prompt(ids, answer), ids)


def _sentence(prompt: Any, llm: ServedModel) -> list[int]:
    """Tokens of a sentence for an encoder."""
    if isinstance(prompt, str):
        return llm.inputs.sentences([prompt])[0]
    if not isinstance(prompt, list) or not 1 <= len(prompt) <= llm.context:
        raise InvalidRequest(f"prompt={brief(prompt)}: must be a text, or 1 to {llm.context:,} token ids")
    return [token_id("prompt", token, llm.spec.embedding.vocabulary) for token in prompt]
