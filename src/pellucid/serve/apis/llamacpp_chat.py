"""llama.cpp's chat: OpenAI's API with timings, and prompts rendered by the chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest
from pellucid.serve.api import DATA, Api, ClientCall, Route, answer
from pellucid.serve.apis import openai, responses
from pellucid.serve.chat.request import Conversation, template_input
from pellucid.serve.chat.tools import MAX_TOOLS, FunctionFields
from pellucid.serve.ignored_fields import ignored
from pellucid.serve.llamacpp.generation_fields import NO_LIMIT, RANDOM
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer_constraints import FunctionTool
from pellucid.serve.openai.chat_completions import (
    CHAT,
    ChatRequest,
    ConversationFields,
    blank_chunk,
    offered_tools,
)
from pellucid.serve.openai.fields import OPENAI_RULES
from pellucid.serve.openai.response_parts import error_body
from pellucid.serve.request_body import BodyType
from pellucid.serve.responses.fields import RESPONSE

T = TypeVar("T")


class TemplateFunction(FunctionFields, frozen=True):
    """A function of which only the template reads something."""

    strict: Annotated[bool | None, ignored("tools[].strict")] = None


class TemplateTool(FunctionTool, frozen=True):
    """A tool of which only the template reads something."""

    function: TemplateFunction


class TemplateFields(ConversationFields, frozen=True, kw_only=True):
    """Fields of requests for the prompt of a conversation."""

    tools: Annotated[Sequence[TemplateTool], Meta(max_length=MAX_TOOLS)] = ()
    tool_choice: Literal["none", "auto", "required"] = "auto"


LLAMA_CHAT = BodyType(
    CHAT.struct, replace(OPENAI_RULES, absent={**NO_LIMIT, "seed": RANDOM, "grammar": ("",)}), required=()
)
TEMPLATE = BodyType(TemplateFields, required=())


async def _result(call: ClientCall, function: Callable[[ServedModel, Conversation, bool], T]) -> T:
    """Result of ``function(model, conversation, begins)``. ``begins``: the prompt ends as an answer begins."""
    body = await call.read(TEMPLATE)
    fields = body.fields
    name, goes_on = call.model(fields.model), fields.continue_final_message
    begins = not goes_on if fields.add_generation_prompt is None else fields.add_generation_prompt
    if begins and goes_on:
        raise InvalidRequest(
            "add_generation_prompt and continue_final_message are both true: remove one of the two"
        )
    tools, choice = offered_tools(fields.tools, fields.tool_choice, True)
    conversation = Conversation(
        body.raw["messages"], {}, tools=tools, choice=choice, variables=fields.variables(), goes_on=goes_on
    )
    async with call.use(name) as llm:
        return await run_in_threadpool(function, llm, conversation, begins)


def rendered(llm: ServedModel, asked: Conversation, begins: bool) -> str:
    """Prompt as text. A BOS that /completion adds by itself is left out."""
    tokenizer = llm.tokenizer
    messages, variables = template_input(llm, asked)
    if asked.goes_on:
        text = tokenizer.decode(tokenizer.encode_chat(messages, **variables), skip_special=False)
    else:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=begins, **variables)
    added = tokenizer.encode("")
    bos = tokenizer.decode(added[:1], skip_special=False) if added[:1] == [tokenizer.bos_id] else ""
    return text.removeprefix(bos)


def _count(llm: ServedModel, asked: Conversation, begins: bool) -> int:
    messages, variables = template_input(llm, asked)
    return len(llm.tokenizer.encode_chat(messages, add_generation_prompt=begins, **variables))


async def _apply_template(call: ClientCall) -> Response:
    return answer({"prompt": await _result(call, rendered)})


async def _input_tokens(call: ClientCall) -> Response:
    return answer({"object": "response.input_tokens", "input_tokens": await _result(call, _count)})


async def _models(call: ClientCall) -> Response:
    def meta(name: str) -> dict[str, Any]:
        if (llm := call.models.llm(name)) is None:
            return {}
        return {
            "meta": {
                "n_vocab": llm.tokenizer.vocab_size,
                "n_ctx_train": llm.spec.context,
                "n_ctx": llm.context,
            }
        }

    found = [{**openai.model(call, name), **meta(name)} for name in call.models.names]
    return answer({"object": "list", "data": found})


RESPOND = responses.RESPONSES.routes["POST /v1/responses"]
COUNT = Route(_input_tokens, "Count a conversation's tokens.", TEMPLATE)
LLAMACPP_CHAT = Api(
    "llama.cpp chat",
    {
        "GET /models": Route(_models, "The models of this server."),
        "POST /chat/completions": Route(
            openai.generates(LLAMA_CHAT, ChatRequest.of, blank_chunk, own=True),
            "Answer a conversation.",
            LLAMA_CHAT,
            DATA.media_type,
        ),
        "POST /chat/completions/input_tokens": COUNT,
        "POST /v1/chat/completions/input_tokens": COUNT,
        "POST /responses": replace(RESPOND, body=RESPONSE.with_optional_model()),
        "POST /apply-template": Route(_apply_template, "The prompt of a conversation, as a text.", TEMPLATE),
    },
    error_body,
)
