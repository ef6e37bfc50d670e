"""llama.cpp's chat: OpenAI's API with timings, and prompts rendered by the chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest
from pellucid.serve.api import DATA_SSE, Api, ClientCall, Route, json_response
from pellucid.serve.apis import openai_chat, responses
from pellucid.serve.apis.llamacpp import error_body
from pellucid.serve.apis.llamacpp_fields import NO_LIMIT, RANDOM, with_telemetry
from pellucid.serve.apis.openai_chat import (
    CHAT,
    ChatRequest,
    ConversationFields,
    FunctionTool,
    empty_chunk,
    offered_tools,
)
from pellucid.serve.chat.chat_run import Conversation, template_input
from pellucid.serve.chat.messages import MAX_TOOLS
from pellucid.serve.generation_response import generating_route
from pellucid.serve.openai_parts import OPENAI_RULES
from pellucid.serve.request_body import BodyRules, BodyType
from pellucid.serve.served_model import ServedModel

T = TypeVar("T")


class TemplateFields(ConversationFields, frozen=True, kw_only=True):
    """Fields of requests for the prompt of a conversation."""

    tools: Annotated[Sequence[FunctionTool], Meta(max_length=MAX_TOOLS)] = ()
    tool_choice: Literal["none", "auto", "required"] = "auto"


LLAMA_CHAT = BodyType(
    CHAT.struct, replace(OPENAI_RULES, absent={**NO_LIMIT, "seed": RANDOM, "grammar": ("",)}), required=()
)
TEMPLATE = BodyType(TemplateFields, BodyRules(ignored=frozenset({"tools[].function.strict"})))


async def _result(call: ClientCall, function: Callable[[ServedModel, Conversation, bool], T]) -> T:
    """Read a request's conversation, and return the result of ``function(model, conversation, begins)``.

    ``begins`` is True if the prompt ends with the start of an answer.
    """
    body = await call.read(TEMPLATE)
    fields = body.fields
    name, continues_last = call.model(fields.model), fields.continue_final_message
    begins = not continues_last if fields.add_generation_prompt is None else fields.add_generation_prompt
    if begins and continues_last:
        raise InvalidRequest("add_generation_prompt and continue_final_message are both true: remove one of the two")
    tools, choice = offered_tools(fields.tools, fields.tool_choice, True)
    conversation = Conversation(
        body.raw["messages"],
        {},
        tools=tools,
        choice=choice,
        variables=fields.variables(),
        continues_last=continues_last,
    )
    async with call.use(name) as llm:
        return await run_in_threadpool(function, llm, conversation, begins)


def rendered(llm: ServedModel, conversation: Conversation, begins: bool) -> str:
    """The prompt as text, without the BOS token that /completion adds itself."""
    tokenizer = llm.tokenizer
    messages, variables = template_input(llm, conversation)
    if conversation.continues_last:
        text = tokenizer.decode(tokenizer.encode_chat(messages, **variables), skip_special=False)
    else:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=begins, **variables)
    added = tokenizer.encode("")
    bos = tokenizer.decode(added[:1], skip_special=False) if added[:1] == [tokenizer.bos_id] else ""
    return text.removeprefix(bos)


def _count(llm: ServedModel, conversation: Conversation, begins: bool) -> int:
    messages, variables = template_input(llm, conversation)
    return len(llm.tokenizer.encode_chat(messages, add_generation_prompt=begins, **variables))


async def _apply_template(call: ClientCall) -> Response:
    return json_response({"prompt": await _result(call, rendered)})


async def _input_tokens(call: ClientCall) -> Response:
    return json_response({"object": "response.input_tokens", "input_tokens": await _result(call, _count)})


async def _models(call: ClientCall) -> Response:
    def meta(name: str) -> dict[str, Any]:
        if (llm := call.models.llm(name)) is None:
            return {}
        return {"meta": {"n_vocab": llm.tokenizer.vocab_size, "n_ctx_train": llm.spec.context, "n_ctx": llm.context}}

    entries = [{**openai_chat.model(call, name), **meta(name)} for name in call.models.names]
    return json_response({"object": "list", "data": entries})


COUNT = Route(_input_tokens, "Count a conversation's tokens.", TEMPLATE)
LLAMACPP_CHAT = Api(
    "llama.cpp chat",
    {
        "GET /models": Route(_models, "The models of this server."),
        "POST /chat/completions": generating_route(
            "Answer a conversation.", LLAMA_CHAT, with_telemetry(ChatRequest.of, empty_chunk, own=True), DATA_SSE
        ),
        "POST /chat/completions/input_tokens": COUNT,
        "POST /v1/chat/completions/input_tokens": COUNT,
        "POST /responses": responses.RESPONSES.routes["POST /v1/responses"],
        "POST /apply-template": Route(_apply_template, "The prompt of a conversation, as a text.", TEMPLATE),
    },
    error_body,
)
