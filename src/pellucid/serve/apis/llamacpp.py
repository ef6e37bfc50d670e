"""llama.cpp's paths: state, chat, embedding, decisions; its completions are in ``llamacpp_completion.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.responses import Response

from pellucid.base_llm import BaseLLM
from pellucid.decide.questions import LEAST_LEVELS, MOST_LEVELS, MOST_OPTIONS, MOST_QUESTIONS
from pellucid.encoders.tasks import embed, token_vectors
from pellucid.errors import ContextOverflow, InvalidRequest, QueueFull, UnsupportedTask, shown
from pellucid.llm import LLM
from pellucid.sample.options import Options
from pellucid.serve.api import DATA_SSE, NO_DETAILS, Api, ClientCall, ErrorDetails, Route, StreamForm, json_response
from pellucid.serve.apis import openai_chat, responses
from pellucid.serve.apis.cohere import RANKING, ranked
from pellucid.serve.apis.llamacpp_completion import (
    COMPLETION,
    INFILL,
    LlamaCompletion,
    LlamaPrompts,
    infill_request,
    prompts_of,
)
from pellucid.serve.apis.llamacpp_fields import BUILD, LLAMACPP_RULES, NO_LIMIT, RANDOM, settings_of, with_telemetry
from pellucid.serve.apis.openai_chat import CHAT, ChatRequest, ConversationFields, FunctionTool, offered_tools
from pellucid.serve.chat.chat_run import Conversation, template_input
from pellucid.serve.chat.messages import MAX_TOOLS
from pellucid.serve.encoder_inputs import check_task
from pellucid.serve.json_schema import Schema, closed_object
from pellucid.serve.live_requests import LiveRequest
from pellucid.serve.openai_parts import OPENAI_RULES
from pellucid.serve.request_body import BodyRules, BodyType, ModelFields, RequestBody
from pellucid.serve.routes import facts_route, generating_route, model_route, plain_route

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""llama.cpp's error type for an HTTP status. Other types: "invalid_request_error" below 500, else "server_error"."""


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if details.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    return {"error": {"code": status, "message": message, "type": kind, "param": details.param}}


# /props and /slots: state of the server, in llama.cpp's form.
#
# The engine has no slots: any number of requests share a step. /slots lists the running sequences and one idle slot.

ELSEWHERE = 256  # slots that a model on replicas reports


def properties(llm: BaseLLM[Any], name: str) -> dict[str, Any]:
    """Body of GET /props for the model ``name``."""
    tokenizer = llm.tokenizer
    usual = Options.of(**(llm.recommended or LLAMACPP_RULES.defaults))
    return {
        "default_generation_settings": {**_idle(0, llm), "params": settings_of(usual, None)},
        "total_slots": _most(llm),
        "model_alias": name,
        "model_path": llm.checkpoint.path.name,  # without the folder, which is private to the server
        "modalities": {"vision": False, "video": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": tokenizer.chat_template or "",
        "bos_token": tokenizer.named_tokens.get("bos_token", ""),
        "eos_token": tokenizer.named_tokens.get("eos_token", ""),
        "build_info": BUILD,
        "is_sleeping": False,
    }


def slots(llm: BaseLLM[Any], running: Sequence[LiveRequest]) -> list[dict[str, Any]]:
    """Body of GET /slots: the running sequences, and an idle slot if there is room for another sequence."""
    slot_list = list[dict[str, Any]]()
    for live in running:
        for group in live.groups:
            for one in group.outputs:
                most = group.options.max_new_tokens
                remaining = -1 if most is None else most - len(one.ids)
                state = {"has_next_token": not one.ended, "n_remain": remaining, "n_decoded": len(one.ids)}
                shown = {"request": live.number, "is_processing": not one.ended, "next_token": [state]}
                slot_list.append({**_idle(len(slot_list), llm), "n_prompt_tokens": len(group.prompt), **shown})
    return slot_list if len(slot_list) >= _most(llm) else [*slot_list, _idle(len(slot_list), llm)]


def _idle(number: int, llm: BaseLLM[Any]) -> dict[str, Any]:
    return {
        "id": number,
        "n_ctx": llm.context,
        "speculative": False,
        "is_processing": False,
        "next_token": [{"has_next_token": False, "n_remain": -1, "n_decoded": 0}],
    }


def _most(llm: BaseLLM[Any]) -> int:
    return llm.engine.runner.limits.sequences if isinstance(llm, LLM) else ELSEWHERE


# /embedding and /embeddings in llama.cpp's own form: for each prompt a list of vectors.

# Largest component if embd_normalize is 0, as in llama.cpp. It fits into int16.
LARGEST = 32_760.0


class LlamaEmbeddingFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /embedding. ``content`` and ``input`` are names of one field."""

    content: LlamaPrompts | None = None
    input: LlamaPrompts | None = None
    embd_normalize: Annotated[int, Meta(ge=-1, le=1024)] = 2


EMBEDDING = BodyType(LlamaEmbeddingFields, BodyRules(ignored=frozenset({"user"}), only={"encoding_format": "float"}))


def llama_embedding(body: RequestBody[LlamaEmbeddingFields], llm: BaseLLM[Any], name: str, number: str) -> list[Any]:
    """Response body of /embedding.

    A model without pooling has a vector for each token; llama.cpp does not normalise them either.
    """
    check_task(llm, "embed", "tokens")
    fields = body.fields
    if fields.content is not None and fields.input is not None:
        raise InvalidRequest("content and input are names of one field: remove one of the two")
    field = "input" if fields.content is None else "content"
    if body.raw.get(field) is None:
        raise InvalidRequest("input is missing: the request must have it")
    prompts, _ = prompts_of(llm, field, body.raw[field])
    for at, one in enumerate(prompts):
        if not one:
            raise InvalidRequest(f"{field}[{at}] is empty: give at least one character")
        if len(one) > llm.context:
            raise ContextOverflow(f"{field}[{at}] has {len(one):,} tokens; the limit is {llm.context:,}: shorten it")
    if llm.spec.task == "tokens":
        return [{"index": at, "embedding": one.tolist()} for at, one in enumerate(token_vectors(llm, prompts))]
    vectors = _normalised(embed(llm, prompts), fields.embd_normalize)
    return [{"index": at, "embedding": [vector]} for at, vector in enumerate(vectors.tolist())]


def _normalised(vectors: NDArray[np.float32], norm: int) -> NDArray[np.float64]:
    """Vectors (n, D), each divided by its norm: -1 (none), 0 (maximum) or p (p-norm)."""
    values = vectors.astype(np.float64)
    if norm < 0:
        return values
    values /= np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-30)
    if norm == 0:
        values *= LARGEST
    else:
        # The division above makes the largest component 1. Without it, high powers of small components underflow to 0.
        values /= (np.abs(values) ** norm).sum(axis=1, keepdims=True) ** (1 / norm)
    return values


# /v1/systemone: typed questions about a state, each answered with a probability for each option.
#
# Source: the section "POST /v1/systemone" of llama.cpp's tools/server/README.md, and the OpenAPI of TypeSafe's API.

CONTENT: Schema = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array"}]}
DESCRIPTION: Schema = {"anyOf": [*CONTENT["anyOf"], {"type": "null"}]}


def _question(kind: str, criteria: Schema, *required: str) -> Schema:
    fields = {"type": {"const": kind}, "instructions": CONTENT, "criteria": criteria}
    return closed_object(fields, ("type", "instructions", *required))


QUESTION: Schema = {
    "anyOf": [
        _question(
            "choice",
            {
                "type": "object",
                "additionalProperties": DESCRIPTION,
                "minProperties": 1,
                "maxProperties": MOST_OPTIONS,
                "description": "The options, each with a description or null.",
            },
            "criteria",
        ),
        _question(
            "score",
            {
                "type": "array",
                "items": CONTENT,
                "minItems": LEAST_LEVELS,
                "maxItems": MOST_LEVELS,
                "description": "The levels, the lowest first.",
            },
            "criteria",
        ),
        _question(
            "noul",
            {
                **closed_object({"true": DESCRIPTION, "false": DESCRIPTION}),
                "description": "What counts as yes and as no.",
            },
        ),
    ]
}
Questions = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={
            "additionalProperties": QUESTION,
            "minProperties": 1,
            "maxProperties": MOST_QUESTIONS,
            "description": "The questions by id: a choice, a score, or yes/no (noul).",
        }
    ),
]


class SystemOneFields(ModelFields, frozen=True, kw_only=True):
    """Fields of /v1/systemone. The last two are Pellucid's: reasons, and instruct models."""

    state: Any
    questions: Questions
    explain: bool = False
    uncalibrated: bool = False


SYSTEMONE = BodyType(
    SystemOneFields, BodyRules(only={"files": [], "images": [], "videos": [], "assets": {}, "stream": False})
)


def systemone(body: RequestBody[SystemOneFields], llm: BaseLLM[Any], name: str, number: str) -> dict[str, Any]:
    """Answer the questions, and return the response body of the model ``name``."""
    fields = body.fields
    if llm.decider.format is None and not fields.uncalibrated:
        raise UnsupportedTask(
            f"{shown(name)} is no decision model, so its probabilities are not calibrated: load a decision model, or "
            "set uncalibrated=true"
        )
    decisions = llm.decide(fields.state, fields.questions, explain=fields.explain)
    usage = {"input_tokens": decisions.prompt_tokens, "output_tokens": 0}
    return {"model": name, "answers": decisions.as_dict(), "usage": usage}


EVENTS = StreamForm(DATA_SSE.media_type, DATA_SSE.encode)


async def _slots(call: ClientCall) -> Response:
    """Slots of the client's running sequences. With an admin key, slots of all running sequences."""
    name = call.queried_model()
    async with call.use(name) as llm:
        listed = slots(llm, [one for one in call.live.visible_to(call.viewer) if one.model == name])
    if call.request.query_params.get("fail_on_no_slot") and all(one["is_processing"] for one in listed):
        raise QueueFull(f"all of {len(listed):,} slots are busy: retry later")
    return json_response(listed)


COMPLETE = generating_route("Continue a text.", COMPLETION, LlamaCompletion.of, EVENTS)
EMBED = model_route("Vectors of texts.", EMBEDDING, llama_embedding)
RERANK = model_route("Rank documents by a query.", RANKING, ranked)
LLAMACPP = Api(
    "llama.cpp",
    {
        "POST /completion": COMPLETE,
        "POST /completions": COMPLETE,
        "POST /infill": generating_route("Fill a gap in a text.", INFILL, infill_request, EVENTS),
        "POST /embedding": EMBED,
        "POST /embeddings": EMBED,
        **{f"POST {path}": RERANK for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")},
        "POST /v1/systemone": model_route("Answer typed questions about a state.", SYSTEMONE, systemone),
        "GET /props": facts_route("Properties of the server and a model.", properties),
        "GET /slots": Route(_slots, "The running sequences."),
    },
    error_body,
)


# llama.cpp's chat: OpenAI's API with timings, and prompts rendered by the chat template.


class TemplateFields(ConversationFields, frozen=True, kw_only=True):
    """Fields of requests for the prompt of a conversation."""

    tools: Annotated[Sequence[FunctionTool], Meta(max_length=MAX_TOOLS)] = ()
    tool_choice: Literal["none", "auto", "required"] = "auto"


LLAMA_CHAT = BodyType(
    CHAT.struct, replace(OPENAI_RULES, absent={**NO_LIMIT, "seed": RANDOM, "grammar": ("",)}), required=()
)
TEMPLATE = BodyType(TemplateFields, BodyRules(ignored=frozenset({"tools[].function.strict"})))


def _template_route(summary: str, answer: Callable[[BaseLLM[Any], Conversation, bool], dict[str, Any]]) -> Route:
    """A route whose response ``answer`` computes from the model, the conversation and ``begins``.

    ``begins`` is True if the prompt ends with the start of an answer.
    """

    def answered(body: RequestBody[TemplateFields], llm: BaseLLM[Any], name: str, number: str) -> dict[str, Any]:
        fields, continues_last = body.fields, body.fields.continue_final_message
        begins = not continues_last if fields.add_generation_prompt is None else fields.add_generation_prompt
        if begins and continues_last:
            raise InvalidRequest(
                "add_generation_prompt and continue_final_message are both true: remove one of the two"
            )
        tools, choice = offered_tools(fields.tools, fields.tool_choice, True)
        messages, variables = body.raw["messages"], fields.variables()
        conversation = Conversation(messages, {}, 1, tools, choice, None, "", variables, continues_last)
        return answer(llm, conversation, begins)

    return model_route(summary, TEMPLATE, answered)


def rendered(llm: BaseLLM[Any], conversation: Conversation, begins: bool) -> str:
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


def _counted_tokens(llm: BaseLLM[Any], conversation: Conversation, begins: bool) -> dict[str, Any]:
    messages, variables = template_input(llm, conversation)
    count = len(llm.tokenizer.encode_chat(messages, add_generation_prompt=begins, **variables))
    return {"object": "response.input_tokens", "input_tokens": count}


def _models(call: ClientCall) -> dict[str, Any]:
    entries = []
    for name in call.models.names:
        entry = openai_chat.model(call, name)
        if llm := call.models.llm(name):
            sizes = {"n_vocab": llm.tokenizer.vocab_size, "n_ctx_train": llm.spec.context, "n_ctx": llm.context}
            entry["meta"] = sizes
        entries.append(entry)
    return {"object": "list", "data": entries}


COUNT = _template_route("Count a conversation's tokens.", _counted_tokens)
LLAMACPP_CHAT = Api(
    "llama.cpp chat",
    {
        "GET /models": plain_route("The models of this server.", _models),
        "POST /chat/completions": generating_route(
            "Answer a conversation.", LLAMA_CHAT, with_telemetry(ChatRequest.of, own=True), DATA_SSE
        ),
        "POST /chat/completions/input_tokens": COUNT,
        "POST /v1/chat/completions/input_tokens": COUNT,
        "POST /responses": responses.RESPONSES.routes["POST /v1/responses"],
        "POST /apply-template": _template_route(
            "The prompt of a conversation, as a text.", lambda *given: {"prompt": rendered(*given)}
        ),
    },
    error_body,
)
