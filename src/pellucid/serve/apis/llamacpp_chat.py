"""llama.cpp's chat: OpenAI's API with timings, and prompts rendered by the chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.api import DATA, Api, ClientCall, Route, answer
from pellucid.serve.apis import openai, responses
from pellucid.serve.body import Body
from pellucid.serve.chat.request import Conversation, template_input
from pellucid.serve.llamacpp.fields import NO_LIMIT, RANDOM
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import error_body
from pellucid.serve.openai.chat import ChatRequest, blank_chunk, template_variables, tools_of
from pellucid.serve.openai.fields import OPENAI_BODY
from pellucid.serve.schema import FLAG, TEXT, body, closed, function, harmless, of_any_model, one_of, tools

T = TypeVar("T")
CHAT_BODY = replace(OPENAI_BODY, absent={**NO_LIMIT, "seed": RANDOM, "grammar": ("",)})
CHAT = openai.generates(ChatRequest.of, blank_chunk, CHAT_BODY, own=True)
ABOUT = ("reasoning_effort", "enable_thinking", "chat_template_kwargs")
CALLABLE = closed({"type": one_of("function"), "function": function(strict=harmless("tools[].strict"))})
CONVERSATION = body(
    {"messages": openai.CHAT["properties"]["messages"]},
    {
        "model": TEXT,
        **{name: openai.CHAT["properties"][name] for name in ABOUT},
        "tools": tools(CALLABLE),
        "tool_choice": one_of("none", "auto", "required"),
        "add_generation_prompt": FLAG,
        "continue_final_message": FLAG,
    },
)


async def _made(call: ClientCall, made: Callable[[ServedModel, Conversation, bool], T]) -> T:
    """Result of ``made(model, conversation, begins)``. ``begins``: the prompt ends with the beginning of an answer."""
    fields = Body(await call.json(), CHAT_BODY)
    name, messages = call.model(fields), fields.required("messages")
    described, choice = tools_of(fields)
    variables, goes_on = template_variables(fields), fields.flag("continue_final_message")
    begins = fields.flag("add_generation_prompt", not goes_on)
    if begins and goes_on:
        raise InvalidRequest(
            "add_generation_prompt and continue_final_message are both true: remove one of the two"
        )
    if left := fields.rest():
        raise InvalidRequest(f"unknown field {brief(min(left))}: a conversation has messages and tools")
    asked = Conversation(messages, {}, tools=described, choice=choice, variables=variables, goes_on=goes_on)
    async with call.use(name) as llm:
        return await run_in_threadpool(made, llm, asked, begins)


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
    return answer({"prompt": await _made(call, rendered)})


async def _input_tokens(call: ClientCall) -> Response:
    return answer({"object": "response.input_tokens", "input_tokens": await _made(call, _count)})


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


ANSWERING = responses.RESPONSES.routes["POST /v1/responses"]
COUNTING = Route(_input_tokens, "Count a conversation's tokens.", CONVERSATION)
LLAMACPP_CHAT = Api(
    "llama.cpp chat",
    {
        "GET /models": Route(_models, "The models of this server."),
        "POST /chat/completions": Route(
            CHAT, "Answer a conversation.", of_any_model(openai.CHAT), DATA.media_type
        ),
        "POST /chat/completions/input_tokens": COUNTING,
        "POST /v1/chat/completions/input_tokens": COUNTING,
        "POST /responses": replace(ANSWERING, body=of_any_model(ANSWERING.body or {})),
        "POST /apply-template": Route(
            _apply_template, "The prompt of a conversation, as a text.", CONVERSATION
        ),
    },
    error_body,
)
